"""The wall on a running guest: what `isolation.wall_rules` cannot answer at once, and what becomes of what is refused.

Why it exists: damage that is planted in a call can be used outside calls: by user code through a forged page table, by
an interrupt, by patched text. What it has to pass is the TLB fill (`machine.wall_hooks`).

Rules of this file:
- Whoever runs is asked about, not whoever wrote: an access is refused wherever it comes from.
- In an isolated call a refused access is that call's violation. User code of a tenant ends by a signal. Where nobody
  can be killed (an interrupt, a kernel thread, work on the kernel's own table) a store goes nowhere, a load reads ones.
- What was judged of a page is remembered of page cache only, as long as it is the same file's (`seen_pages`).
"""

from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import PAGE_BYTES, U64, to_signed
from thinbox.enforcement.outside_work import count_outside
from thinbox.isolation import wall_rules
from thinbox.isolation.page_ownership import ViewVerdict
from thinbox.isolation.verdict import Access, Verdict, kind_of
from thinbox.isolation.view_rules import view_rule
from thinbox.kernel.sealed import find_sealed
from thinbox.kernel.user_pages import find_user_pages
from thinbox.machine import cpu as registers
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState
    from thinbox.enforcement.views import Views
    from thinbox.enforcement.violation_action import ViolationAction

USER_CODE = "user code"
"""What stands for the call in the record of a violation outside calls."""
_STORE, _FETCH = 1, 2
_MOST_PATCHERS = 64
"""Places that call `__text_poke`; a kernel has some ten."""


class Wall:
    """Keeps the wall on one machine; made when the first tenant has a view."""

    def __init__(self, target: "Target", tasks: "TaskList", views: "Views", action: "ViolationAction") -> None:
        self._target, self._tasks, self._views, self._action = target, tasks, views, action
        self._slot, self._memory, self._cpu = target.slot, target.memory, target.cpu
        self._image = find_sealed(target.view.facts)
        self._seals = np.zeros(target.memory.guest_bytes // PAGE_BYTES, dtype=np.int64)
        self._refused: dict[int, Verdict] = {}
        """What user code of a task (task_struct) was refused, until it ends for it."""
        self._build()
        self._cpu.set_callback(slots.ON_WALL, self._asked)
        self._cpu.add_code_hook(self._image.user_exception, self._end_refused)
        self._patchers_ends: set[int] = set()
        for vaddr in self._image.patchers:
            self._cpu.add_code_hook(vaddr, self._patching_begins)

    def _build(self) -> None:
        read, root = self._target.view.read_u64, self._target.view.kernel_root
        shared = find_user_pages(self._target.view.facts)

        def seal(seal: int, *spans: tuple[int, int]) -> None:
            for start, end in spans:
                for vaddr in range(start, end, PAGE_BYTES):
                    paddr = self._memory.tables.translate(root, to_signed(vaddr))
                    if 0 <= paddr < self._memory.guest_bytes:
                        self._seals[paddr // PAGE_BYTES] = seal

        def word(vaddr: int) -> int:
            return read(vaddr, root)

        seal(wall_rules.SEALED, self._image.text, self._image.read_only)
        seal(wall_rules.FOR_ALL, *((vaddr, vaddr + PAGE_BYTES) for vaddr in shared.unwritten(word)))
        seal(wall_rules.DATA_FOR_ALL, *((vaddr, vaddr + PAGE_BYTES) for vaddr in shared.written(word)))
        slot, keep, translate = self._slot, self._cpu.keep_array, self._memory.tables.translate
        text_start, text_end = self._image.text
        slot[slots.WALL_VIEW] = self._views.host_words
        poking = word(self._image.poking_mm)
        slot[slots.WALL_POKING] = translate(root, to_signed(word(poking + self._image.pgd_at)))
        slot[slots.WALL_TEXT], slot[slots.WALL_TEXT_END] = to_signed(text_start), to_signed(text_end)
        slot[slots.WALL_TEXT_FRAME] = translate(root, to_signed(text_start))
        slot[slots.WALL_FLUSHES] = int(not self._target.view.uses_pti)
        # From here on the fill asks.
        slot[slots.WALL_SEALS] = keep(self._seals)
        self._cpu.load_cr3(self._cpu.cr3)

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        self._refused.clear()
        for slot in (
            slots.WALL_TENANT,
            slots.WALL_TASK,
            slots.WALL_HIT,
            slots.WALL_PASS,
            slots.WALL_BUS,
            slots.WALL_PATCHING,
        ):
            self._slot[slot] = 0

    def runs(self, state: "TaskState | None") -> None:
        """A tenant's task comes onto the CPU, or another's (None)."""
        self._slot[slots.WALL_PASS] = self._slot[slots.WALL_BUS] = 0
        hidden = state is not None and view_rule(state.view)
        if state is None or not hidden:
            self._slot[slots.WALL_TENANT] = self._slot[slots.WALL_TASK] = 0
            return
        self._views.use(state)
        self._slot[slots.WALL_TENANT] = self._views.seen.number_of(state.tenant.name)
        self._slot[slots.WALL_TASK] = state.number

    # -- judging -----------------------------------------------------------------------------------------
    def _asked(self, vaddr: int, error: int, rip: int) -> int:
        """Called by the fault hook for an access that the fill did not let through (signed addresses)."""
        self._slot[slots.WALL_PASS] = 0
        rule, is_write = self._slot[slots.WALL_HIT], bool(error & paging.FAULT_WRITE)
        state = self._tasks.running
        hidden = None
        if rule == wall_rules.MAPPING and state is not None:
            hidden = self._judge(state, self._slot[slots.WALL_FRAME], is_write=is_write)
            if hidden.verdict.granted:
                self._slot[slots.WALL_PASS] = _key(vaddr, error)
                return slots.RETRY
            hidden = ViewVerdict(wall_rules.refused_mapping(hidden.verdict.reason), hidden.owner)
        verdict = wall_rules.REFUSED[rule] if hidden is None else hidden.verdict
        return self._refuse(state, verdict, hidden, (vaddr, error, rip))

    def _judge(self, state: "TaskState", frame: int, *, is_write: bool) -> ViewVerdict:
        found = self._views.check_user(state, frame, is_write=is_write)
        if found.verdict.granted:
            self._views.seen.remember(frame, state.tenant.name, state.number if is_write else 0)
        return found

    def _refuse(
        self, state: "TaskState | None", verdict: Verdict, hidden: ViewVerdict | None, fault: tuple[int, int, int]
    ) -> int:
        vaddr, error, rip = fault
        access = Access(vaddr & U64, kind_of(error), rip & U64, None, 0, 0)
        if error & paging.FAULT_USER:
            if state is not None:
                self._refused[state.task] = verdict
                self._action.note_outside(state, USER_CODE, verdict, access, hidden)
            return slots.DELIVER
        call = None if state is None else state.call
        if state is not None and call is not None and call.isolated and self._slot[slots.ACTIVE] == slots.ON_SCI:
            self._action.of(state, call, verdict, access, hidden)
            return slots.REDIRECTED
        what = f"refused by the wall ({verdict.rule})"
        for tenant in self._tasks.tenants.values() if state is None else (state.tenant,):
            count_outside(tenant.record, what, 1)
        if error & paging.FAULT_FETCH:
            return slots.DELIVER
        self._slot[slots.WALL_BUS] = _key(vaddr, error)
        return slots.RETRY

    # -- the kernel's patching of its text ---------------------------------------------------------------
    def _patching_begins(self) -> None:
        """`__text_poke`: what it stores by its own address space is the kernel's, up to where it returns to."""
        root, place = self._target.view.kernel_root, to_signed(self._cpu.regs[registers.RSP])
        behind = self._memory.word_at(root, place)
        if behind not in self._patchers_ends:
            if len(self._patchers_ends) >= _MOST_PATCHERS or not self._target.view.symbols.is_text(behind):
                return
            self._patchers_ends.add(behind)
            self._cpu.add_code_hook(behind, self._patching_ends)
        self._slot[slots.WALL_PATCHING] = 1

    def _patching_ends(self) -> None:
        self._slot[slots.WALL_PATCHING] = 0

    def _end_refused(self) -> None:
        """`exc_general_protection(regs, error)`: the kernel's own handler, of a fault that the wall delivered."""
        state = self._tasks.running
        if state is not None and self._refused.pop(state.task, None) is not None:
            self._action.end_here(state)


def _key(vaddr: int, error: int) -> int:
    """Return page and kind of an access, as the fill compares it."""
    access = _FETCH if error & paging.FAULT_FETCH else _STORE if error & paging.FAULT_WRITE else 0
    return vaddr & ~0xFFF | (access + 1)
