"""What becomes of a refused access: the task ends as after an oops, the call is undone first, or the run stops.

Why it exists: `--on-violation`. Whatever it is, the violation is in the record before anything else happens.

Rules of this file:
- A kill takes the guest's own ways of ending a task: `rewind_stack_and_make_dead` for an oops,
  `do_group_exit` for a call that was rolled back.
- A call that cannot be rolled back any more dies by the oops path, and its record says `undone: false`.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

from thinbox import paging
from thinbox.address import U64, to_signed
from thinbox.enforcement.open_call import CallEvent
from thinbox.enforcement.undo import SIGKILL
from thinbox.errors import MachineError
from thinbox.isolation.page_ownership import ViewVerdict
from thinbox.isolation.verdict import Access, AccessKind, Verdict, Violation
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.state_bits import IF, NT, TF
from thinbox.records.run import CallRecord, Restored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from thinbox.enforcement.call_switch import CallSwitch
    from thinbox.enforcement.integrity import Finding
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState
    from thinbox.enforcement.undo import Undo

SIGSYS = 31
MOST_RESTORED = 1000
"""Objects put back that a record lists: a tenant chooses how often it tries."""
UNSEEN_END = Verdict(granted=False, rule="4", reason="the call was left by another way than its return")
_AC, _DF = 1 << 18, 1 << 10


class ViolationAction:
    """Ends calls and tasks for one guest."""

    def __init__(self, target: "Target", tasks: "TaskList", switch: "CallSwitch", undo: "Undo | None") -> None:
        self._target, self._sites, self._tasks, self._switch, self._undo = target, target.sites, tasks, switch, undo
        self._cpu, self._slot = target.cpu, target.slot
        self._to_undo: tuple[TaskState, OpenCall] | None = None

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        self._to_undo = None
        if self._undo:
            self._undo.reset()

    def of(
        self, state: "TaskState", call: "OpenCall", verdict: Verdict, access: Access, hidden: ViewVerdict | None = None
    ) -> None:
        """Act on a refused access, from inside the fault hook: the CPU goes on somewhere else.

        `hidden` is the verdict of the tenant's view, if it was the view that refused.
        """
        undo = self._undo
        if undo is not None and undo.possible and state.tenant.isolation.on_violation == "undo":
            self._note(state, call, verdict, access, hidden, undone=True)
            self._to_undo = (state, call)
            self._cpu.stop()
            return
        self.kill(state, call, verdict, access, hidden)
        # The guest's own way of ending a task after an oops: rewind its stack, then make_task_dead(SIGKILL).
        self._cpu.set_rip(self._sites.death)

    def refuse_here(
        self, state: "TaskState", call: "OpenCall", verdict: Verdict, vaddr: int, hidden: ViewVerdict | None = None
    ) -> None:
        """As `of`, from inside a code hook: what was found at `vaddr` is as if the call had written there."""
        self.of(state, call, verdict, Access(vaddr, AccessKind.WRITE, self._cpu.rip, None, 0, 0), hidden)
        if self._to_undo is None:
            self._cpu.jump(self._sites.death)

    def of_dead(self, state: "TaskState", call: "OpenCall", vaddr: int, hidden: ViewVerdict) -> bool:
        """As `refuse_here`, for a task that is dead and about to leave the CPU: tell whether its call is undone. Else
        it is only noted: there is nothing left to kill."""
        undo, access = self._undo, Access(vaddr, AccessKind.WRITE, self._cpu.rip, None, 0, 0)
        if undo is not None and undo.possible and state.tenant.isolation.on_violation == "undo":
            self.of(state, call, hidden.verdict, access, hidden)
            return True
        self._note(state, call, hidden.verdict, access, hidden, undone=False)
        return False

    def left_unseen(self, state: "TaskState", call: "OpenCall") -> bool:
        """A call begins before the end of `call` was seen: its task left the kernel by another way, as exploits do.

        For an isolated call that is a violation; it cannot be undone, for the tenant has run since. Tell whether.
        """
        if not call.isolated:
            self._switch.close(state, call)
            return False
        rip = self._cpu.rip
        self.kill(state, call, UNSEEN_END, Access(rip, AccessKind.FETCH, rip, None, 0, 0))
        self._cpu.jump(self._sites.death)
        return True

    def violate_here(self, verdict: Verdict) -> None:
        """Treat where the running isolated call stands as a violation: between two runs of the CPU, for tests and
        for watchers that see more than page faults.

        Raises:
            MachineError: no isolated call is running.
        """
        running = self._tasks.running
        if running is None or running.call is None or not running.call.isolated:
            raise MachineError("no isolated call is running")
        access = running.tenant.judge_of(running.call).describe(self._cpu.rip, paging.FAULT_FETCH, self._cpu.rip)
        self.of(running, running.call, verdict, access)
        self.after_stop()

    def kill(
        self, state: "TaskState", call: "OpenCall", verdict: Verdict, access: Access, hidden: ViewVerdict | None = None
    ) -> None:
        """Note the kill, leave the call, and make the registers those of `make_task_dead(SIGKILL)`."""
        self._note(state, call, verdict, access, hidden, undone=False)
        if call.is_exit or state.is_exiting:
            self._tasks.parked.add(state.tenant.name)
        self._switch.close(state, call, CallEvent.KILL)
        self._cpu.regs[registers.RDI] = SIGKILL
        self._cpu.flags = self._cpu.flags & ~(TF | NT | _AC | _DF)

    def end_as_planned(self, state: "TaskState", record: "CallRecord", violation: Violation) -> None:
        """At the first instruction of a call's entry: end the process as seccomp's SECCOMP_RET_KILL_PROCESS does.

        `do_group_exit(SIGSYS)` (kernel/exit.c) instead of the call: nothing of it runs, no handler can catch it, and
        the parent sees a death by SIGSYS.
        """
        self._remember(state, record, violation)
        self._cpu.regs[registers.RDI] = SIGSYS
        self._cpu.flags = self._cpu.flags | IF
        self._cpu.jump(self._sites.undone_death)

    def note_outside(
        self, state: "TaskState", what: str, verdict: Verdict, access: Access, hidden: ViewVerdict | None
    ) -> None:
        """A task of a tenant was refused an access in no call of its own, but by `what`."""
        record = CallRecord(-1, state.tenant.name, state.pid, -1, what, ())
        self._remember(state, record, self._violation(state, record, verdict, access, hidden, undone=False))

    def end_here(self, state: "TaskState") -> None:
        """At the first instruction of an exception's handler: end the process, for what was noted, by SIGKILL."""
        if state.call is not None:
            self._switch.close(state, state.call, CallEvent.KILL)
        self._cpu.regs[registers.RDI] = SIGKILL
        self._cpu.flags = self._cpu.flags | IF
        self._cpu.jump(self._sites.undone_death)

    def after_stop(self) -> None:
        """Between two runs of the CPU: roll a killed call back."""
        undo = self._undo
        if self._to_undo is None or undo is None:
            return
        (state, call), self._to_undo = self._to_undo, None
        self._switch.roll_back(state, call)
        undo.die()

    def _note(
        self,
        state: "TaskState",
        call: "OpenCall",
        verdict: Verdict,
        access: Access,
        hidden: ViewVerdict | None,
        *,
        undone: bool,
    ) -> None:
        self._remember(state, call.record, self._violation(state, call.record, verdict, access, hidden, undone=undone))

    @staticmethod
    def _violation(
        state: "TaskState",
        record: "CallRecord",
        verdict: Verdict,
        access: Access,
        hidden: ViewVerdict | None,
        *,
        undone: bool,
    ) -> Violation:
        isolation = state.tenant.isolation
        return Violation(
            call=record.name,
            reason=verdict.reason,
            rule=verdict.rule,
            vaddr=access.vaddr,
            symbol=access.symbol,
            offset=access.offset,
            policy=isolation.policy.name,
            kind=access.kind.value,
            undone=undone,
            tenant=isolation.tenant,
            view=None if hidden is None else isolation.view,
            owner=None if hidden is None else hidden.owner,
        )

    def _remember(self, state: "TaskState", call: "CallRecord", violation: Violation) -> None:
        record = state.tenant.record
        record.kills.append(violation)
        if record.killed is None:
            record.killed = violation
        state.killed = True
        state.killed_ns = self._slot[slots.CLOCK]
        call.verdict = "killed"
        if state.tenant.isolation.on_violation == "stop":
            record.stopped = True
            # At once: whoever is to run next would run on to the end of this stretch of CPU.
            self._cpu.stop()

    # -- what was changed -----------------------------------------------------------------------------
    def act_on(self, state: "TaskState", call: "OpenCall", found: "Iterable[Finding]") -> bool:
        """Put back what changed; the running call dies if it wrote it: tell whether. From inside a code hook."""
        for finding in found:
            self.restore(state, finding)
            if finding.is_writer:
                self.refuse_here(state, call, finding.verdict, finding.vaddr)
                return True
        return False

    def _own_spans(self, vaddr: int, size: int) -> list[tuple[int, int]]:
        """Return the pieces (paddr, bytes) of a range of the kernel's, none where it is not mapped, or a table leads
        elsewhere than the kernel laid it out: that was forged, too, and may lead to anything."""
        memory, home, spans = self._target.memory, self._target.view.home_of(vaddr), []
        with suppress(LookupError):
            spans = list(memory.spans(self._target.kernel_root, to_signed(vaddr), size))
        for paddr, count in spans:
            if home < 0 or paddr != home:
                return []
            home += count
        return spans

    def restore(self, state: "TaskState", finding: "Finding") -> None:
        """Put back what changed, in the kernel's memory, and note it in the running task's record."""
        memory, root = self._target.memory, self._target.kernel_root
        put_back = 0
        for vaddr, content in finding.repair:
            spans = self._own_spans(vaddr & U64, len(content))
            for paddr, _count in spans:
                if self._undo is not None:
                    self._undo.save(paddr)
            if spans:
                memory.write_virtual(root, to_signed(vaddr & U64), content)
                put_back += 1
        if len(state.tenant.record.restored) < MOST_RESTORED and (finding.repair or not finding.is_writer):
            during = "" if state.call is None else state.call.record.name
            # What the old ids lay in may be gone, and another's by now: then nothing is written.
            rule = finding.verdict.rule if put_back else f"{finding.verdict.rule}, not put back"
            wrote = finding.is_writer
            state.tenant.record.restored.append(Restored(rule, finding.vaddr, finding.whose, during, wrote))
