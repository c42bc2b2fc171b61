"""A fault on an SCI table that compiled code cannot answer: the policy and the view are asked, and the page is granted,
or the call violated them.

Why it exists: it is the half of the proposal's handler that needs a judgement (rules 5 and 6).

Rules of this file: what cannot be granted for want of room is a verdict, not an error.
"""

from typing import TYPE_CHECKING

from thinbox import paging
from thinbox.address import U64, to_signed
from thinbox.errors import MachineError
from thinbox.isolation import fault
from thinbox.isolation.verdict import AccessKind, Verdict
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.enforcement.call_switch import CallSwitch
    from thinbox.enforcement.grants import Grants
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState
    from thinbox.enforcement.violation_action import ViolationAction
    from thinbox.isolation.page_ownership import ViewVerdict

POOL_EMPTY = Verdict(granted=False, rule="pool", reason="thinbox has no page left for this tenant's page tables")


class FaultHandler:
    """Judges the faults of one guest."""

    def __init__(
        self, target: "Target", tasks: "TaskList", grants: "Grants", switch: "CallSwitch", action: "ViolationAction"
    ) -> None:
        self._target, self._tasks, self._grants, self._switch, self._action = target, tasks, grants, switch, action
        self._cpu, self._slot = target.cpu, target.slot

    def judge(self, vaddr: int, error: int, rip: int, *, resumed: bool = False) -> int:
        """Called by the fault hook when the policy has to be asked (signed addresses); return what it is to do."""
        state = self._tasks.running
        if state is None or state.call is None:
            raise MachineError("a fault on an SCI table outside an isolated call")
        call, views = state.call, self._switch.views
        self._grants.drain(state, call)
        if self._slot[slots.ACTIVE] == slots.ON_UNDO:
            return self._grant_unasked(vaddr, error, rip)
        access, verdict = state.tenant.judge_of(call).ask(state.root, call, vaddr, error, rip, resumed=resumed)
        hidden = None
        if views is not None and access.kind is not AccessKind.FETCH:
            hidden = views.check(state, vaddr, rip, is_write=access.kind is AccessKind.WRITE)
            if hidden is not None and not hidden.verdict.granted:
                self._action.of(state, call, hidden.verdict, access, hidden)
                return slots.REDIRECTED
        if verdict.granted:
            result = self._grant(state, vaddr, error, rip, hidden)
            if result == fault.GRANTED:
                return slots.RETRY
            if result == fault.GUEST:
                return slots.DELIVER
            verdict = POOL_EMPTY
        self._action.of(state, call, verdict, access)
        return slots.REDIRECTED

    def admit_here(self, state: "TaskState") -> None:
        """Judge the instruction the task goes on at: where it wakes up, or comes back from deferred work, or is put on
        its table in the middle of a call.

        The engine has fetched it already, on the kernel's table, so no fault will ask; the next block of the
        function would be the first to fault, and look like a jump into its middle.
        """
        rip, memory = to_signed(self._cpu.rip), self._target.memory
        if memory.tables.is_executable(state.root, rip):
            return
        if self.judge(rip, paging.FAULT_FETCH, rip, resumed=True) == slots.REDIRECTED:
            self._cpu.jump(self._target.sites.death)

    def _grant(self, state: "TaskState", vaddr: int, error: int, rip: int, hidden: "ViewVerdict | None") -> int:
        if hidden is None or not hidden.is_one_block:
            return self._target.sci.grant_page(vaddr, error, rip)
        before = self._grants.entry_before(state, vaddr)
        result = self._target.sci.grant_page(vaddr, error, rip)
        if result == fault.GRANTED:
            function = self._target.view.symbols.text_symbol_at(rip & U64) if hidden.is_while_inside else None
            self._grants.make_one_block(state, vaddr, before, rip, function)
        return result

    def _grant_unasked(self, vaddr: int, error: int, rip: int) -> int:
        """On the undo table the log or the pool was full: try again, or go on without undo, on the kernel's table."""
        result = self._target.sci.grant_page(vaddr, error, rip)
        if result == fault.GUEST:
            return slots.DELIVER
        if result == fault.EXHAUSTED:
            self._switch.give_up_undo()
        return slots.RETRY
