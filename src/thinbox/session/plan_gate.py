"""The gates: at a tenant's call instruction, what its plan says is done, before the kernel runs anything of the call.

Why it exists: dispositions. `isolate` and `pass` let the call in; `deny` and `emulate` put the result into RAX and
go on behind the instruction, as `sysret` would (RCX, R11); `kill` lets it in to die at the first instruction of its
entry.

Rules of this file:
- A call of a tenant's task that no plan's rule and no default decides does not exist: `Plan.decide` always answers.
- The first call is thinbox's own: the `execve` that starts the program is not judged.
- A buffer the kernel has not brought in yet is brought in by a call made in between (`session.awaited_pages`), on the
  same terms as the tenant's calls, and on the record.
"""

import errno
from typing import TYPE_CHECKING

from thinbox.enforcement.planned_entry import PlannedEntry
from thinbox.errors import UserCodeError
from thinbox.host.mistake import mistake
from thinbox.isolation.verdict import PLANNED, Violation
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.records.refusals import Refusal
from thinbox.records.run import CallRecord
from thinbox.sandbox.call_error import CallError, NotOursError, PageWantedError
from thinbox.sandbox.emulated_call import EmulatedCall, Handler, Services
from thinbox.sandbox.emulation import load_handler
from thinbox.sandbox.handlers import HANDLERS
from thinbox.sandbox.handlers.files import FILES
from thinbox.sandbox.owned_files import Files
from thinbox.sandbox.plan import Answer, Decision, Disposition, Plan
from thinbox.sandbox.random_stream import RandomStream
from thinbox.session.awaited_pages import ARGUMENTS, AwaitedPages, WaitingCall
from thinbox.syscalls.io_uring import BY_PATH, calls_of_operation
from thinbox.syscalls.table import call_name, call_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from thinbox.enforcement.enforcer import Enforcer
    from thinbox.enforcement.tasks import TaskState
    from thinbox.enforcement.tenants import Tenant

U64 = (1 << 64) - 1
MARKER_FD = 0xFFFFFFFF
"""`write` to descriptor -1 is a phase marker that any program can make: it fails with EBADF and does nothing else."""
_TOP = 1 << 63
_WRITE = 1


class PlanGates:
    """The gates of one enforcer's tenants, by name; a tenant without a plan has none."""

    def __init__(self, enforcer: "Enforcer", plans: "Mapping[str, Plan | None]") -> None:
        """InputError for a plan whose handler cannot be loaded."""
        self._enforcer = enforcer
        self._gates = {
            name: Gate(enforcer, enforcer.tenants[name], plan) for name, plan in plans.items() if plan is not None
        }
        if self._gates:
            enforcer.cpu.set_callback(slots.ON_CALL, self._on_call)

    def _on_call(self, compat: int, _second: int, _third: int) -> int:
        """Called at each call instruction of user code, whoever runs."""
        state = self._enforcer.running
        if state is None or state.task != self._enforcer.view.current or state.killed:
            return slots.ENTER
        gate = self._gates.get(state.tenant.name)
        return slots.ENTER if gate is None else gate.decide(state, is_compat=bool(compat))

    def gone(self, state: "TaskState") -> None:
        """A tenant's task is dead, and off the CPU for good."""
        if state.tenant.name in self._gates:
            self._gates[state.tenant.name].gone(state.task)

    def forked(self, parent: int, child: int) -> None:
        """A tenant's task has a child."""
        state = self._enforcer.tasks.get(parent)
        if state is not None and state.tenant.name in self._gates:
            self._gates[state.tenant.name].forked(parent, child)


class Gate:
    """Applies `plan` to the calls of one tenant."""

    def __init__(self, enforcer: "Enforcer", tenant: "Tenant", plan: Plan) -> None:
        self._enforcer, self._tenant, self._plan = enforcer, tenant, plan
        self._cpu, self._slot = enforcer.cpu, enforcer.slot
        self._files = Files(plan.files)
        self._services = Services(enforcer.machine, enforcer.view, self._files, RandomStream(plan.seed))
        self._handlers = self._load_handlers()
        self._awaited = AwaitedPages(enforcer)
        self._groups: dict[int, int] = {}
        """The process (thread group) of each task, and how many tasks each process has."""
        self._members: dict[int, int] = {}
        self._started = self._steady = False
        tenant.record.plan, tenant.gate = plan.name, self

    def _load_handlers(self) -> dict[str, Handler]:
        specs = {rule.answer.handler for rule in self._plan.every_rule if rule.answer.handler}
        return {spec: load_handler(spec) for spec in sorted(specs)}

    # -- the call instruction ---------------------------------------------------------------------
    def decide(self, state: "TaskState", *, is_compat: bool) -> int:
        """Do what the plan says of the call that `state` is about to make; return what the CPU does next."""
        if not self._started:
            self._started = True
            self._join(state.task)
            state.planned = PlannedEntry(self._isolated_by_default, "", 0)
            return slots.ENTER
        if is_compat:
            nr = self._slot[slots.CALL_NR] & 0xFFFFFFFF
            return self._act(state, nr, f"i386#{nr}", self._arguments(), self._plan.decide_compat())
        waiting = self._awaited.take(state.task)
        nr = self._slot[slots.CALL_NR]
        args = self._arguments()
        name = call_name(nr) if nr >= 0 else f"#{nr}"
        self._look_for_marker(nr, args)
        decision = self._plan.decide(nr, args, steady=self._steady)
        handler = self._handler(name, decision)
        if handler is not None:
            call = EmulatedCall(nr, name, args, state.task, state.pid, self._services)
            if waiting:
                call.refused = frozenset(waiting.refused)
            try:
                return self._answer(state, call, decision, self._run(handler, call))
            except PageWantedError as wanted:
                if waiting and waiting.is_hopeless:
                    return self._answer(state, call, decision, -errno.EFAULT)
                return self._bring(state, waiting, wanted, decision)
            except NotOursError:
                decision = self._otherwise(decision)
        return self._act(state, nr, name, args, decision)

    def decide_entered(self, task: int, pid: int, nr: int, name: str, args: tuple[int, ...]) -> PlannedEntry:
        """Decide on a call that is in the kernel already: it came by a way this was not asked on, or a tracer or filter
        put it in another's place. What would need a page brought in is left to the rule's `otherwise`."""
        is_compat = name.startswith("i386#")
        if not is_compat:
            self._look_for_marker(nr, args)
        decision = self._plan.decide_compat() if is_compat else self._plan.decide(nr, args, steady=self._steady)
        handler = None if is_compat else self._handler(name, decision)
        if handler is not None:
            try:
                result = self._run(handler, EmulatedCall(nr, name, args, task, pid, self._services))
            except (PageWantedError, NotOursError):
                decision = self._otherwise(decision)
            else:
                return PlannedEntry(self._isolated_by_default, Disposition.EMULATE, decision.line, result=result)
        answer = decision.answer
        if answer.disposition.reaches_kernel:
            return PlannedEntry(answer.disposition is Disposition.ISOLATE, answer.disposition, decision.line)
        refusal = self._refuse(pid, name, decision)
        if answer.disposition is Disposition.KILL:
            death = Violation(name, refusal.sentence(), "plan", self._cpu.rip, None, 0, self._plan.name, PLANNED)
            return PlannedEntry(isolated=False, disposition="kill", line=decision.line, death=death)
        return PlannedEntry(self._isolated_by_default, answer.disposition, decision.line, result=-answer.errno)

    def refuses_operation(self, pid: int, operation: str) -> int:
        """Decide on an operation of io_uring: 0 to go on, else what it fails with (a positive errno)."""
        if self._plan.files and operation in BY_PATH:
            # The kernel would open its own file of that name.
            line, why = self._plan.default_line, "the plan has files of its own"
            decision = Decision(Answer(Disposition.DENY, errno.EPERM), line, None, "", why)
            self._refuse(pid, f"{operation} (io_uring)", decision)
            return errno.EPERM
        for name in calls_of_operation(operation):
            nr = None if name.startswith("#") else call_number(name)
            if nr is not None:
                self._look_for_marker(nr, (0,))
            decision = self._plan.decide_unseen(nr, steady=self._steady)
            if not decision.answer.disposition.reaches_kernel:
                self._refuse(pid, f"{name} (io_uring)", decision)
                return decision.answer.errno or errno.EPERM
        return 0

    def _arguments(self) -> tuple[int, ...]:
        return tuple(self._slot[slot] & U64 for slot in ARGUMENTS)

    @property
    def _isolated_by_default(self) -> bool:
        return self._tenant.isolation.isolates(0)

    def _look_for_marker(self, nr: int, args: tuple[int, ...]) -> None:
        if self._steady or not self._plan.marker:
            return
        if nr in self._plan.marker or (nr == _WRITE and args[0] & 0xFFFFFFFF == MARKER_FD):
            self._steady = True
            self._tenant.record.steady_seq = len(self._tenant.record.calls)

    def _handler(self, name: str, decision: Decision) -> Handler | None:
        """Return what answers this call; the files the sandbox owns are served wherever the call is allowed."""
        answer = decision.answer
        if answer.disposition is Disposition.EMULATE:
            return self._handlers[answer.handler] if answer.handler else HANDLERS[name]
        if self._plan.files and answer.disposition.reaches_kernel:
            return FILES.get(name)
        return None

    @staticmethod
    def _run(handler: Handler, call: EmulatedCall) -> int:
        try:
            result = handler(call)
        except CallError as error:
            return -error.errno
        except (PageWantedError, NotOursError):
            raise
        except Exception as error:
            raise mistake(f"the plan's handler of {call.name}", error) from error
        if isinstance(result, int) and not -_TOP <= result < _TOP:
            raise UserCodeError(f"the plan's handler of {call.name} returned {result}; a register has 64 bits")
        if not isinstance(result, int):
            raise UserCodeError(f"the plan's handler of {call.name} returned {result!r}; it must return an integer")
        return result

    def _otherwise(self, decision: Decision) -> Decision:
        rule = decision.rule
        if rule is None or decision.answer.disposition is not Disposition.EMULATE:
            return decision
        if rule.otherwise is None:
            why = "the emulation does not serve this form of the call, and the rule has no otherwise"
            return Decision(self._plan.default, rule.line, None, "", why)
        return Decision(rule.otherwise, rule.line, rule, "", "the emulation does not serve this form of the call")

    # -- what is done -----------------------------------------------------------------------------
    def _act(self, state: "TaskState", nr: int, name: str, args: tuple[int, ...], decision: Decision) -> int:
        answer = decision.answer
        if answer.disposition.reaches_kernel:
            isolated = answer.disposition is Disposition.ISOLATE
            state.planned = PlannedEntry(isolated, answer.disposition, decision.line)
            return slots.ENTER
        refusal = self._refuse(state.pid, name, decision)
        if answer.disposition is Disposition.KILL:
            death = Violation(name, refusal.sentence(), "plan", self._cpu.rip, None, 0, self._plan.name, PLANNED)
            state.planned = PlannedEntry(isolated=False, disposition="kill", line=decision.line, death=death)
            return slots.ENTER
        self._note(state, nr, name, args, -answer.errno, decision)
        self._cpu.regs[registers.RAX] = -answer.errno & U64
        return slots.ANSWERED

    def _answer(self, state: "TaskState", call: EmulatedCall, decision: Decision, result: int) -> int:
        answered = Decision(Answer(Disposition.EMULATE), decision.line)
        self._note(state, call.nr, call.name, call.args, result, answered)
        self._cpu.regs[registers.RAX] = result & U64
        return slots.ANSWERED

    def _note(
        self, state: "TaskState", nr: int, name: str, args: tuple[int, ...], result: int, decision: Decision
    ) -> None:
        calls, disposition = self._tenant.record.calls, decision.answer.disposition
        verdict = "emulated" if disposition is Disposition.EMULATE else "denied"
        calls.append(
            CallRecord(
                len(calls),
                self._tenant.name,
                state.pid,
                nr,
                name,
                args,
                ret=result,
                verdict=verdict,
                disposition=disposition,
                plan_line=decision.line,
            )
        )

    def _refuse(self, pid: int, name: str, decision: Decision) -> Refusal:
        answer, rule = decision.answer, decision.rule
        why = decision.why or (rule.reason if rule else "") or "its rule says so"
        shown = answer.disposition.value
        if answer.errno:
            shown += f" {errno.errorcode.get(answer.errno, answer.errno)}"
        refusal = Refusal(name, pid, shown, answer.errno, self._plan.name, decision.line, decision.arguments, why)
        self._tenant.record.refusals.add(refusal)
        return refusal

    def _bring(
        self, state: "TaskState", before: WaitingCall | None, wanted: PageWantedError, decision: Decision
    ) -> int:
        """Let the kernel bring a page in; the call instruction runs again behind that."""
        self._awaited.bring(state.task, before, wanted)
        state.planned = PlannedEntry(isolated=True, disposition="populate", line=decision.line)
        return slots.ENTER_AND_REPEAT

    # -- tasks ------------------------------------------------------------------------------------
    def executed(self, task: int) -> None:
        """A task runs a new program."""
        self._files.executed(self._group(task))

    def _group(self, task: int) -> int:
        view = self._enforcer.view
        return view.read_u32(task + view.tgid_offset, self._enforcer.kernel_root)

    def forked(self, parent: int, child: int) -> None:
        """A task has a child: it has what its parent has open, and returns where its parent does."""
        self._awaited.forked(parent, child)
        self._join(parent)
        self._files.forked(self._groups[parent], self._group(child))
        self._join(child)

    def _join(self, task: int) -> None:
        """Count a task with its process, once."""
        if task in self._groups:
            return
        self._groups[task] = group = self._group(task)
        self._members[group] = self._members.get(group, 0) + 1

    def gone(self, task: int) -> None:
        """A task is dead: with the last one of a process its descriptors go."""
        self._awaited.gone(task)
        group = self._groups.pop(task, None)
        if group is None:
            return
        self._members[group] -= 1
        if not self._members[group]:
            del self._members[group]
            self._files.ended(group)


__all__ = ["PlanGates"]
