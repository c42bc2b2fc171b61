"""Puts a fault before the policy: what the policy may know of the call, and what of its answer is kept.

Why it exists: the enforcer knows when a fault must be judged; this knows how a judgement is asked for and
remembered. Policies stay pure: everything they see of the machine is in `SeenCall`.

Rules of this file:
- A verdict is remembered no wider than it says (`Verdict.cacheable` and its qualifications), and nothing about
  the text is remembered across a change of the text.
- A full table of approvals is emptied, never overwritten: what is forgotten is asked again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import U64, to_signed
from thinbox.errors import UserCodeError
from thinbox.guest.live_symbols import LiveSymbols, Origin
from thinbox.host.mistake import mistake
from thinbox.isolation import fault, stack
from thinbox.isolation.assembly import ONE_FUNCTION
from thinbox.isolation.transfers import Frame, Source, Stack
from thinbox.isolation.verdict import Access, AccessKind, Verdict, kind_of
from thinbox.kernel.text import find_text_patchers
from thinbox.machine import cpu as registers
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.target import Target
    from thinbox.guest.live_symbols import LiveSymbol
    from thinbox.image.symbols import Symbol
    from thinbox.isolation.callgraph import CallGraph
    from thinbox.isolation.policies import Policy

APPROVED_SLOTS = 1 << 18
"""Room for four times the 60,000 text symbols of a kernel, so that a probe is short."""
CONDITION_SLOTS = 1 << 15
"""Room for twenty times the pages of kernel text that a function goes on to."""
ROW_COUNT = 1 << 17
"""Room for four times the approvals by block, and frames, that a script of 300 lines leaves."""
COMPAT_KEY = 1 << 40
"""Added to the number of a 32-bit call, so that its approvals are not those of the 64-bit call of that number."""
_MOST_CONDITIONS = 2


class SeenCall:
    """The call as a policy sees it (`isolation.policies.CallView`)."""

    def __init__(self, judge: "Judge", root: int, call: "OpenCall", source: Source | None, rip: int) -> None:
        self._judge, self._root, self._rip = judge, root, rip
        self.granted_pages = call.granted_pages
        self.notes = call.notes
        self.name = call.record.name
        self.nr = -1 if call.record.name.startswith("i386#") else call.record.nr
        self.text_version = judge.text_version
        self.text_start: int = judge.view.symbols.text_start
        self.source = source
        self._stack: Stack | None = None

    def is_executable(self, vaddr: int) -> bool:
        memory = self._judge.memory
        return memory.tables.is_executable(self._root, vaddr)

    @property
    def stack(self) -> Stack:
        if self._stack is None:
            self._stack = self._judge.walk(self._rip)
        return self._stack

    @property
    def registers(self) -> Sequence[int]:
        return tuple(self._judge.cpu.regs)

    @property
    def graph(self) -> "CallGraph":
        return self._judge.graph

    def read_code(self, vaddr: int, size_bytes: int) -> bytes:
        judge = self._judge
        return judge.memory.read_virtual(judge.slot[slots.KERNEL_ROOT], vaddr, size_bytes)

    def read_word(self, vaddr: int) -> int | None:
        judge = self._judge
        paddr = judge.memory.tables.translate(judge.slot[slots.KERNEL_ROOT], to_signed(vaddr))
        memory = judge.memory
        return None if paddr < 0 or paddr & 7 or paddr + 8 > memory.guest_bytes else memory.words[paddr >> 3] & U64

    def symbol_at(self, vaddr: int) -> "Symbol | LiveSymbol | None":
        judge = self._judge
        return judge.view.symbols.text_symbol_at(vaddr) or judge.live.symbol_at(vaddr, judge.slot[slots.KERNEL_ROOT])

    def starts_of(self, name: str, near: int) -> Sequence[int]:
        judge = self._judge
        if judge.view.symbols.is_text(near):
            return judge.view.symbols.addresses_of(name)
        return judge.live.starts_of(name, near, judge.slot[slots.KERNEL_ROOT])

    def is_fixup(self, vaddr: int) -> bool:
        return vaddr in self._judge.fixups


class Judge:
    """Asks `policy` about faults on one machine, and fills the tables of what it granted for good."""

    def __init__(self, target: "Target", policy: "Policy") -> None:
        self.memory, self.cpu, self.slot, self.view = target.memory, target.cpu, target.slot, target.view
        self.live = LiveSymbols(self.view, self.memory)
        self.policy = policy
        self.text_version = 0
        self._judges_stack = bool(getattr(policy, "judges_stack", False))
        self._approved = np.zeros(APPROVED_SLOTS, dtype=np.int64)
        self._rows = np.zeros(ROW_COUNT * stack.ROW_WORDS, dtype=np.int64)
        self._conditions = np.zeros(CONDITION_SLOTS * fault.CONDITION_WORDS, dtype=np.int64)
        self._row_count = self._approved_count = self._condition_count = 0
        self._walk = np.zeros(3, dtype=np.int64)
        self._graph: CallGraph | None = None
        self._fixups: frozenset[int] | None = None
        self._row_kinds = 0
        self._bottoms = np.array([to_signed(vaddr) for vaddr in target.sites.returns], dtype=np.int64)
        keep = self.cpu.keep_array
        self._shared: dict[int, int] = {
            slots.APPROVED: keep(self._approved),
            slots.APPROVED_MASK: APPROVED_SLOTS - 1,
            slots.CONDITIONS: keep(self._conditions),
            slots.CONDITIONS_MASK: CONDITION_SLOTS - 1,
            slots.ROWS: keep(self._rows),
            slots.ROWS_MASK: ROW_COUNT - 1,
            slots.STACK_JUDGED: int(self._judges_stack),
            slots.CACHEABLE_DATA: int(getattr(policy, "grants_all_data", False)),
            slots.WALK: keep(self._walk),
            slots.BOTTOMS: keep(self._bottoms),
            slots.BOTTOMS_COUNT: len(self._bottoms),
        }
        if self._judges_stack:
            self._share_unwind_table()
        if getattr(policy, "needs_graph", False):
            self._graph = _load_graph(target)

    def _share_unwind_table(self) -> None:
        from thinbox.guest.unwind_tables import load_unwind_table

        table = load_unwind_table(self.view, self.memory)
        starts = np.array([to_signed(vaddr) for vaddr in self.view.symbols.text_starts], dtype=np.int64)
        keep = self.cpu.keep_array
        self._ips, self._orc = table.ips.data, table.entries.data
        self._shared |= {
            slots.ORC_IPS: keep(table.ips),
            slots.ORC: keep(table.entries),
            slots.ORC_COUNT: len(table.ips),
            slots.STARTS: keep(starts),
            slots.STARTS_COUNT: len(starts),
        }

    def use(self) -> None:
        """The call that runs now is judged by this policy: its tables are the compiled hooks'."""
        for slot, value in self._shared.items():
            self.slot[slot] = value
        self.slot[slots.ROW_KINDS] = self._row_kinds

    def install(self) -> None:
        """Watch the kernel patching its own text: what was approved by looking at it goes."""
        for vaddr in find_text_patchers(self.view.facts):
            self.cpu.add_code_hook(vaddr, self.forget_text)

    def forget_text(self) -> None:
        """Forget everything that was read from text."""
        self.text_version += 1
        self._forget_rows()

    def _forget_rows(self) -> None:
        if self._row_count:
            self._rows[:] = 0
            self._row_count = 0

    @property
    def graph(self) -> "CallGraph":
        """The static call graph; ValueError for a policy that did not ask for it."""
        if self._graph is None:
            raise ValueError(f"policy {self.policy.name} uses the call graph but has no needs_graph = True")
        return self._graph

    @property
    def fixups(self) -> frozenset[int]:
        """Where the exception table sends faulting instructions."""
        if self._fixups is None:
            from thinbox.guest.unwind_tables import load_fixups

            self._fixups = load_fixups(self.view, self.memory, self.slot[slots.KERNEL_ROOT])
        return self._fixups

    # -- asking -----------------------------------------------------------------------------------------
    def ask(
        self, root: int, call: "OpenCall", vaddr: int, error: int, rip: int, *, resumed: bool = False
    ) -> tuple[Access, Verdict]:
        """Ask the policy about one fault (signed addresses) on the SCI table `root`; keep what it grants for good."""
        access = self.describe(vaddr & U64, error, rip & U64)
        source = self._source(vaddr, rip) if access.kind is AccessKind.FETCH and not resumed else None
        seen = SeenCall(self, root, call, source, rip)
        verdict = self._verdict(access, seen)
        if verdict.granted and access.kind is AccessKind.FETCH:
            if self._judges_stack:
                self._approve_frames(seen.stack)
            # What is not the image's own text can go, and its address become another's.
            if verdict.cacheable and self.view.symbols.is_text(access.vaddr):
                self._approve(vaddr, source, verdict)
        return access, verdict

    def _verdict(self, access: Access, seen: "SeenCall") -> Verdict:
        try:
            verdict = self.policy.check_access(access, seen)
        except Exception as error:
            raise mistake(self._asked(access, seen), error) from error
        if not isinstance(verdict, Verdict):
            raise UserCodeError(f"{self._asked(access, seen)} returned {verdict!r}; it must return a Verdict")
        return verdict

    def _asked(self, access: Access, seen: "SeenCall") -> str:
        return f"policy {self.policy.name}, asked about a {access.kind.value} at {access.place} in {seen.name},"

    def _source(self, vaddr: int, rip: int) -> Source:
        if vaddr != rip:
            return Source(rip & U64, vaddr & U64, straight=True)
        return Source(self.slot[slots.BLOCK_START] & U64, self.slot[slots.BLOCK_END] & U64)

    def describe(self, vaddr: int, error: int, rip: int) -> Access:
        """Return the access, with the symbol around it."""
        symbol = self.view.symbols.text_symbol_at(vaddr)
        if symbol is None:
            live = self.live.symbol_at(vaddr, self.slot[slots.KERNEL_ROOT]) if error & paging.FAULT_FETCH else None
            if live is None:
                return Access(vaddr, kind_of(error), rip, None, 0, 0)
            generated = live.origin is Origin.GENERATED
            return Access(vaddr, AccessKind.FETCH, rip, live.name, live.start, live.end_exclusive, generated)
        name, start = symbol.name, symbol.start
        if vaddr != start and name in ONE_FUNCTION:
            whole = self.view.symbols.find(ONE_FUNCTION[name])
            if whole is not None and whole < start:
                name, start = ONE_FUNCTION[name], whole
        return Access(vaddr, kind_of(error), rip, name, start, symbol.end_exclusive)

    def walk(self, rip: int) -> Stack:
        """Walk the stack of the task that runs, from `rip` (signed) to the call's entry."""
        if not self._judges_stack:
            raise ValueError(f"policy {self.policy.name} looks at the stack but has no judges_stack = True")
        words, end, root = self.memory.words, self.memory.guest_bytes, self.slot[slots.KERNEL_ROOT]
        bottoms = set(self._bottoms.tolist())
        lookup = to_signed(rip & U64)
        sp, bp = (to_signed(self.cpu.regs[register]) for register in (registers.RSP, registers.RBP))
        frames: list[Frame] = []
        out = [0, 0, 0]
        for _ in range(stack.MAX_FRAMES):
            if not stack.next_frame(words, end, root, self._ips, self._orc, len(self._ips), lookup, sp, bp, out):
                break
            frames.append(Frame(lookup & U64, out[stack.RETURN_ADDRESS] & U64))
            if out[stack.RETURN_ADDRESS] in bottoms:
                return Stack(tuple(frames), complete=True)
            lookup, sp, bp = out[stack.RETURN_ADDRESS] - 1, out[stack.CALLER_SP], out[stack.CALLER_BP]
        return Stack(tuple(frames), complete=False)

    # -- keeping ----------------------------------------------------------------------------------------
    def _approve(self, vaddr: int, source: Source | None, verdict: Verdict) -> None:
        if verdict.while_mapped:
            if not verdict.per_source and not verdict.per_syscall and len(verdict.while_mapped) <= _MOST_CONDITIONS:
                self._approve_while(vaddr, *map(to_signed, verdict.while_mapped))
            return
        if not verdict.per_source and not verdict.per_syscall:
            if self._approved_count * 2 > APPROVED_SLOTS:
                self._approved[:] = 0
                self._approved_count = 0
            index = fault.approved_slot(self._approved, APPROVED_SLOTS - 1, vaddr)
            self._approved_count += self._approved[index] == 0
            self._approved[index] = vaddr
            return
        if verdict.per_source and source is None:
            return
        first = second = 0
        if verdict.per_source and source is not None:
            first, second = to_signed(source.start), to_signed(source.end)
        nr = self.slot[slots.CALL_KEY] if verdict.per_syscall else stack.ANY_CALL
        self._add_row(vaddr, first, second, nr)
        self._row_kinds |= 1 << (verdict.per_source + 2 * verdict.per_syscall)
        self.slot[slots.ROW_KINDS] = self._row_kinds

    def _approve_while(self, vaddr: int, first: int, second: int | None = None) -> None:
        if self._condition_count * 2 > CONDITION_SLOTS:
            self._conditions[:] = 0
            self._condition_count = 0
        at = fault.CONDITION_WORDS * fault.condition_slot(self._conditions.data, CONDITION_SLOTS - 1, vaddr)
        self._condition_count += self._conditions[at] == 0
        self._conditions[at : at + fault.CONDITION_WORDS] = vaddr, first, first if second is None else second

    def _approve_frames(self, seen: Stack) -> None:
        symbols = self.view.symbols
        for frame in seen.frames if seen.complete else ():
            symbol = symbols.text_symbol_at(frame.lookup)
            if symbol is not None:
                self._add_row(to_signed(frame.back), to_signed(symbol.start), 0, stack.FRAME_TAG)

    def _add_row(self, *row: int) -> None:
        if self._row_count * 2 > ROW_COUNT:
            self._forget_rows()
        index = stack.ROW_WORDS * stack.row_of(self._rows.data, ROW_COUNT - 1, *row)
        if self._rows[index] == 0:
            self._rows[index : index + stack.ROW_WORDS] = row
            self._row_count += 1


def _load_graph(target: "Target") -> "CallGraph":
    from thinbox.enforcement.callgraph_cache import load_live_graph

    return load_live_graph(target.view, target.memory, tuple(target.sites.entries))
