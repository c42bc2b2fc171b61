"""Deferred work: work for the whole kernel that a tenant's call happens to be sent on.

Why it exists: a call that needs memory may have to reclaim or compact it, and one that lets soft interrupts run again
runs those that wait. Such work touches every tenant's pages and page tables by design; it is no more the call's own
than a hardware interrupt is. Under a view the call therefore leaves its table for deferred work, as for an interrupt
(rule 4), and comes back behind it. Without a view nothing is hidden, and deferred work runs on the call's table as all
else.

Rules of this file:
- Deferred work begins at the first instruction of a named function, only if it was called from a `call` of that
  function in the kernel's text, on a stack the kernel would be on, and only if each argument that is an address or an
  index is one it would pass. Else the call stays on its table, and is judged there.
- What a corrupted kernel could change is not asked: nodes and stacks are read before the tenant runs.
- It ends at the instruction behind that call, with the stack as it was. What the call holds is looked at anew then.

Source: Linux 6.1 mm/vmscan.c, mm/compaction.c, kernel/softirq.c, include/linux/mmzone.h (struct pglist_data).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thinbox.address import U64, to_signed
from thinbox.kernel.reclaim import find_reclaim
from thinbox.kernel.softirq import find_softirq
from thinbox.machine import cpu as registers
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState

_CALL = 0xE8
_CALL_BYTES = 5


@dataclass(frozen=True, slots=True)
class _Spans:
    """Where the kernel keeps its memory nodes: (start, exclusive end) of each whole one, its zones, its zone lists."""

    nodes: tuple[tuple[int, int], ...]
    zones: tuple[tuple[int, int], ...]
    zone_lists: tuple[tuple[int, int], ...]


class DeferredWork:
    """Tells when an isolated call of a tenant with a view is sent on such work, and when it is back."""

    def __init__(self, target: "Target", tasks: "TaskList") -> None:
        self._target, self._tasks = target, tasks
        self._cpu, self._slot, self._view = target.cpu, target.slot, target.view
        self._softirqs, self._reclaim = find_softirq(target.view.facts), find_reclaim(target.view.facts)
        self._spans, self._irq_rsp = self._find_spans(), self._find_irq_rsp()
        checks: dict[str, Callable[[], bool]] = {
            "try_to_free_pages": self._may_free_pages,
            "node_reclaim": lambda: self._is_start(registers.RDI, self._spans.nodes),
            "compact_node": self._may_compact_node,
            "compact_zone_order": self._may_compact_zone,
        }
        self._checks: dict[int, Callable[[], bool]] = {
            vaddr: check for name, check in checks.items() if (vaddr := self._view.symbols.find(name))
        }
        self._checks |= dict.fromkeys(self._softirqs.functions, self._may_run_softirqs)
        self._callers = self._find_callers(tuple(self._checks))

    @property
    def starts(self) -> tuple[int, ...]:
        """The first instructions of such work."""
        return tuple(self._checks)

    @property
    def ends(self) -> tuple[int, ...]:
        """The instructions behind the calls of it."""
        return tuple(sorted(frozenset().union(*self._callers.values())))

    # -- what the kernel would pass ---------------------------------------------------------------------
    def _find_spans(self) -> _Spans:
        """Read `node_data` once: what a corrupted kernel makes of it later is not believed."""
        shape, root = self._reclaim, self._target.kernel_root
        nodes: list[int] = [shape.only_node_at] if shape.only_node_at else []
        while shape.nodes_at and (node := self._view.read_u64(shape.nodes_at + 8 * len(nodes), root)):
            if self._view.read_u32(node + shape.node_id_at, root) != len(nodes):
                break
            nodes.append(node)

        def part(start: int, end: int) -> tuple[tuple[int, int], ...]:
            return tuple((node + start, node + end) for node in nodes)

        return _Spans(part(0, shape.node_bytes), part(*shape.zones), part(*shape.zone_lists))

    def _find_irq_rsp(self) -> int:
        """Return RSP at the first instruction of what is called on the stack for interrupts: below the word that holds
        the stack it came from (`thinbox.kernel.softirq`). 0 if this kernel has no such stack."""
        at = self._softirqs.stack_at
        return self._word(self._view.per_cpu + at) - self._softirqs.below if at else 0

    def _word(self, vaddr: int) -> int:
        return self._target.memory.word_at(self._target.kernel_root, vaddr)

    def _is_on_stack(self, vaddr: int) -> bool:
        """Tell whether a word lies on the running task's own stack, as it was when its table was made."""
        state = self._tasks.running
        start = 0 if state is None else state.stack & U64
        return start != 0 and vaddr & 7 == 0 and start <= vaddr < start + self._view.stack_bytes

    def _argument(self, register: int) -> int:
        return self._cpu.regs[register] & U64

    def _is_start(self, register: int, spans: tuple[tuple[int, int], ...]) -> bool:
        value = self._argument(register)
        return any(start == value for start, _end in spans)

    def _is_element(self, register: int, spans: tuple[tuple[int, int], ...], size: int) -> bool:
        value = self._argument(register)
        return any(start <= value < end and (value - start) % size == 0 for start, end in spans)

    def _may_run_softirqs(self) -> bool:
        """`__do_softirq()`, `handle_softirqs(ksirqd)`: the argument chooses between two ways of waiting."""
        return True

    def _may_free_pages(self) -> bool:
        """`try_to_free_pages(zonelist, order, gfp_mask, nodemask)`: the mask is none, or the task's own."""
        shape = self._reclaim
        own = self._view.current + shape.task_nodes_at if shape.task_nodes_at else 0
        mask = self._argument(registers.RCX)
        return mask in (0, own) and self._is_element(registers.RDI, self._spans.zone_lists, shape.zone_list_bytes)

    def _may_compact_node(self) -> bool:
        """`compact_node(pgdat, proactive)`, before 6.10 `compact_node(nid)`."""
        if self._reclaim.compacts_by_number:
            return self._argument(registers.RDI) & 0xFFFFFFFF < len(self._spans.nodes)
        return self._is_start(registers.RDI, self._spans.nodes)

    def _may_compact_zone(self) -> bool:
        """`compact_zone_order(zone, order, gfp_mask, prio, alloc_flags, highest_zoneidx, capture)`: order and index
        choose words to read, the last argument, on the stack, is written through."""
        shape = self._reclaim
        return (
            self._is_element(registers.RDI, self._spans.zones, shape.zone_bytes)
            and self._argument(registers.RSI) & 0xFFFFFFFF < shape.order_count
            and self._argument(registers.R9) & 0xFFFFFFFF < shape.zone_count
            and self._is_on_stack(self._word(self._argument(registers.RSP) + 8))
        )

    def _find_callers(self, functions: tuple[int, ...]) -> dict[int, frozenset[int]]:
        """Return for each function the addresses behind its direct calls in the kernel's live text, and behind the call
        of what it is given in a function that calls soft interrupts so."""
        symbols = self._view.symbols
        start, end = symbols.text_start, symbols.text_end
        code = self._target.memory.read_virtual(self._target.kernel_root, start, end - start)
        text = np.frombuffer(code, dtype=np.uint8)
        places = np.flatnonzero(text[: len(text) - _CALL_BYTES + 1] == _CALL).astype(np.int64)
        distances = np.zeros(len(places), dtype=np.uint32)
        for byte in range(4):
            distances |= text[places + 1 + byte].astype(np.uint32) << np.uint32(8 * byte)
        behind = places + _CALL_BYTES
        targets = behind + distances.view(np.int32).astype(np.int64)
        callers = {vaddr: {int(at) + start for at in behind[targets == vaddr - start]} for vaddr in functions}
        by = self._softirqs.called_by
        symbol = symbols.text_symbol_at(by) if by else None
        if symbol is not None:
            ends = self._softirqs.ends_of_calls(code[by - start : symbol.end_exclusive - start])
            for vaddr in self._softirqs.functions:
                callers[vaddr] |= set(ends)
        return {vaddr: frozenset(found) for vaddr, found in callers.items()}

    # -- there and back -----------------------------------------------------------------------------------
    def _running(self) -> "TaskState | None":
        """The running task, if it is in an isolated call of a tenant with a view."""
        state = self._tasks.running
        if state is None or state.call is None or not state.call.isolated or not self._slot[slots.VIEW]:
            return None
        return state if state.task == self._view.current else None

    def begins(self, function: int) -> "tuple[TaskState, OpenCall, int] | None":
        """At the first instruction of `function`: return the call that leaves its table for it, and RSP behind it
        (signed); None if that is not so."""
        state = self._running()
        if state is None or state.call is None or self._slot[slots.ACTIVE] != slots.ON_SCI:
            return None
        rsp = self._argument(registers.RSP)
        if not self._is_on_stack(rsp) and (rsp != self._irq_rsp or function not in self._softirqs.functions):
            return None
        if self._word(rsp) not in self._callers[function] or not self._checks[function]():
            return None
        return state, state.call, to_signed(rsp) + 8

    def is_back(self) -> "tuple[TaskState, OpenCall] | None":
        """Behind a call of such a function: return the call that is back from it, None if none is."""
        state = self._running()
        if state is None or state.call is None or to_signed(self._cpu.regs[registers.RSP]) != state.call.deferred_rsp:
            return None
        return state, state.call
