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
        self._spans, self._irq_rsp = self._find_spans(), self._find_irq_rsp()
        checks: dict[str, Callable[[], bool]] = {
            "__do_softirq": lambda: True,
            "try_to_free_pages": self._may_free_pages,
            "node_reclaim": lambda: self._is_start(registers.RDI, self._spans.nodes),
            "compact_node": lambda: self._argument(registers.RDI) & 0xFFFFFFFF < len(self._spans.nodes),
            "compact_zone_order": self._may_compact_zone,
        }
        self._checks: dict[int, Callable[[], bool]] = {
            vaddr: check for name, check in checks.items() if (vaddr := self._view.symbols.find(name))
        }
        self._softirq = self._view.symbols.find("__do_softirq")
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
        types, symbols, root = self._view.facts.types, self._view.symbols, self._target.kernel_root
        array = symbols.find("node_data")
        nodes: list[int] = []
        if array is not None:
            id_at = types.offset_of("pglist_data", "node_id")
            while (node := self._view.read_u64(array + 8 * len(nodes), root)) and (
                self._view.read_u32(node + id_at, root) == len(nodes)
            ):
                nodes.append(node)
        elif (only := symbols.find("contig_page_data")) is not None:
            nodes.append(only)

        def part(member: str) -> tuple[tuple[int, int], ...]:
            at, size = types.offset_of("pglist_data", member), types.member_size("pglist_data", member)
            return tuple((node + at, node + at + size) for node in nodes)

        size = types.size_of("pglist_data")
        return _Spans(tuple((node, node + size) for node in nodes), part("node_zones"), part("node_zonelists"))

    def _find_irq_rsp(self) -> int:
        """Return RSP at the first instruction of what `call_on_irqstack` calls (asm/irq_stack.h): below the word
        `hardirq_stack_ptr` points to, which holds the stack it came from. 0 if this kernel has no such stack."""
        types, symbols, root = self._view.facts.types, self._view.symbols, self._target.kernel_root
        hot, own = symbols.find("pcpu_hot"), symbols.find("hardirq_stack_ptr")
        per_cpu = self._view.read_u64(symbols.address_of("__per_cpu_offset"), root)
        if hot is not None and types.has_member("pcpu_hot", "hardirq_stack_ptr"):
            return self._word(per_cpu + hot + types.offset_of("pcpu_hot", "hardirq_stack_ptr")) - 8
        return 0 if own is None else self._word(per_cpu + own) - 8

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

    def _may_free_pages(self) -> bool:
        """`try_to_free_pages(zonelist, order, gfp_mask, nodemask)`: the mask is none, or the task's own."""
        types = self._view.facts.types
        own = self._view.current + types.offset_of("task_struct", "mems_allowed")
        mask = self._argument(registers.RCX)
        return mask in (0, own) and self._is_element(registers.RDI, self._spans.zone_lists, types.size_of("zonelist"))

    def _may_compact_zone(self) -> bool:
        """`compact_zone_order(zone, order, gfp_mask, prio, alloc_flags, highest_zoneidx, capture)`: order and index
        choose words to read, the last argument, on the stack, is written through."""
        types = self._view.facts.types
        orders = types.member_size("zone", "free_area") // types.size_of("free_area")
        indices = types.member_size("zone", "lowmem_reserve") // 8
        return (
            self._is_element(registers.RDI, self._spans.zones, types.size_of("zone"))
            and self._argument(registers.RSI) & 0xFFFFFFFF < orders
            and self._argument(registers.R9) & 0xFFFFFFFF < indices
            and self._is_on_stack(self._word(self._argument(registers.RSP) + 8))
        )

    def _find_callers(self, functions: tuple[int, ...]) -> dict[int, frozenset[int]]:
        """Return for each function the addresses behind its direct calls in the kernel's live text."""
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
        return {vaddr: frozenset(int(at) + start for at in behind[targets == vaddr - start]) for vaddr in functions}

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
        if not self._is_on_stack(rsp) and (rsp != self._irq_rsp or function != self._softirq):
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
