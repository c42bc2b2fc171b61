"""The gates: at a tenant's call instruction, what its plan says is done, before the kernel runs anything of the call.

Why it exists: dispositions. `isolate` and `pass` let the call in; `deny` and `emulate` put the result into RAX and
go on behind the instruction, as `sysret` would (RCX, R11); `kill` lets it in to die at the first instruction of its
entry.

Rules of this file:
- A call of a tenant's task that no plan's rule and no default decides does not exist: `Plan.decide` always answers.
- The first call is thinbox's own: the `execve` that starts the program is not judged.
- A buffer the kernel has not brought in yet is brought in by a call made in between (`madvise`, populate), on the same
  terms as the tenant's calls, and on the record.
"""

import errno
from dataclasses import dataclass, field, replace
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
_POPULATE_READ, _POPULATE_WRITE = 22, 23
"""MADV_POPULATE_READ and _WRITE (include/uapi/asm-generic/mman-common.h, Linux 5.14)."""
_ARGUMENTS = (slots.CALL_ARG0, slots.CALL_ARG1, slots.CALL_ARG2, slots.CALL_ARG3, slots.CALL_ARG4, slots.CALL_ARG5)
_SAVED = (registers.RAX, registers.RDI, registers.RSI, registers.RDX)
_MOST_WAITING = 32
"""Emulated calls of one task that wait for a page, one in the signal handler of the other; of more, the oldest are
forgotten: a handler that never returns leaves one behind."""
_MOST_TRIES = 64
"""Times that one page is brought in for one call."""
_MOST_PAGES = 4096
"""Pages brought in for one call; its buffers are at most 1 MiB or a path, so a handler that wants more runs in
circles."""


@dataclass(slots=True)
class _Bringing:
    """An emulated call that waits for a page: where it stands, its registers, and what happened so far."""

    rip: int
    rsp: int
    saved: tuple[int, ...]
    page: int
    refused: set[int] = field(default_factory=set)
    count: int = 0
    again: int = 0
    """How often the kernel said that it is there, and it was not: a fork takes the right to write it back."""


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
        self._bringing: dict[int, list[_Bringing]] = {}
        """By task, the innermost last."""
        self._groups: dict[int, int] = {}
        """The process (thread group) of each task, and how many tasks each process has."""
        self._members: dict[int, int] = {}
        self._started = self._steady = False
        self._populate = call_number("madvise")
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
        nr = self._slot[slots.CALL_NR]
        bringing = self._take_waiting(state.task)
        if bringing is not None:
            nr = self._brought(bringing)
        args = self._arguments()
        name = call_name(nr) if nr >= 0 else f"#{nr}"
        self._look_for_marker(nr, args)
        decision = self._plan.decide(nr, args, steady=self._steady)
        handler = self._handler(name, decision)
        if handler is not None:
            call = EmulatedCall(nr, name, args, state.task, state.pid, self._services)
            if bringing:
                call.refused = frozenset(bringing.refused)
            try:
                return self._answer(state, call, decision, self._run(handler, call))
            except PageWantedError as wanted:
                if bringing and (bringing.again >= _MOST_TRIES or bringing.count >= _MOST_PAGES):
                    # It is said to be there and is not, time and again (a filter or a tracer of the tenant's answers),
                    # or pages are wanted for ever: the tenant's affair.
                    return self._answer(state, call, decision, -errno.EFAULT)
                return self._bring(state, bringing, wanted, decision)
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
        return tuple(self._slot[slot] & U64 for slot in _ARGUMENTS)

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

    # -- pages of emulated calls ------------------------------------------------------------------
    def _bring(self, state: "TaskState", before: _Bringing | None, wanted: PageWantedError, decision: Decision) -> int:
        """Let the kernel bring a page in; the call instruction runs again behind that."""
        regs = self._cpu.regs
        saved = before.saved if before else tuple(regs[register] for register in _SAVED)
        waiting = _Bringing(self._cpu.rip, regs[registers.RSP], saved, wanted.vaddr)
        if before:
            waiting.refused, waiting.count = before.refused, before.count + 1
            waiting.again = before.again + 1 if before.page == wanted.vaddr else 0
        pending = self._bringing.setdefault(state.task, [])
        pending.append(waiting)
        del pending[:-_MOST_WAITING]
        advice = _POPULATE_WRITE if wanted.write else _POPULATE_READ
        for register, value in zip(_SAVED, (self._populate, wanted.vaddr, 4096, advice), strict=True):
            regs[register] = value
        state.planned = PlannedEntry(isolated=True, disposition="populate", line=decision.line)
        return slots.ENTER_AND_REPEAT

    def _take_waiting(self, task: int) -> _Bringing | None:
        """Return the call of `task` that goes on here, if one does; those that began in handlers within it are gone."""
        pending = self._bringing.get(task, [])
        for at in range(len(pending) - 1, -1, -1):
            if self._is_same_call(pending[at]):
                found = pending[at]
                del pending[at:]
                return found
        return None

    def _is_same_call(self, bringing: _Bringing) -> bool:
        """Tell whether the call instruction runs again behind a page that was brought in: the registers are still those
        of that, and not of another call that a signal's handler came to."""
        regs = self._cpu.regs
        here = (self._cpu.rip, regs[registers.RSP], regs[registers.RDI], regs[registers.RSI])
        wanted = (bringing.rip, bringing.rsp, bringing.page, 4096)
        return here == wanted and regs[registers.RDX] in (_POPULATE_READ, _POPULATE_WRITE)

    def _brought(self, bringing: _Bringing) -> int:
        """Put the registers of the emulated call back; return its number."""
        regs = self._cpu.regs
        if regs[registers.RAX]:
            bringing.refused.add(bringing.page)
        for register, value in zip(_SAVED, bringing.saved, strict=True):
            regs[register] = value
        low = bringing.saved[0] & 0xFFFFFFFF
        nr = low - (low >> 31 << 32)
        self._slot[slots.CALL_NR] = nr
        for slot, register in ((slots.CALL_ARG0, 1), (slots.CALL_ARG1, 2), (slots.CALL_ARG2, 3)):
            value = bringing.saved[register]
            self._slot[slot] = value - (value >> 63 << 64)
        return nr

    # -- tasks ------------------------------------------------------------------------------------
    def executed(self, task: int) -> None:
        """A task runs a new program."""
        self._files.executed(self._group(task))

    def _group(self, task: int) -> int:
        view = self._enforcer.view
        return view.read_u32(task + view.tgid_offset, self._enforcer.kernel_root)

    def forked(self, parent: int, child: int) -> None:
        """A task has a child: it has what its parent has open, and returns where its parent does."""
        waiting = self._bringing.get(parent, [])
        self._bringing[child] = [replace(call, refused=set(call.refused)) for call in waiting]
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
        self._bringing.pop(task, None)
        group = self._groups.pop(task, None)
        if group is None:
            return
        self._members[group] -= 1
        if not self._members[group]:
            del self._members[group]
            self._files.ended(group)


__all__ = ["PlanGates"]
