"""The runner: one machine under one enforcer, which makes a trial, forgets it, and makes the next.

Why it exists: audits, attacks and the kill stress differ in what their processes do and in what is asked of it
afterwards; putting the guest back, starting the processes and ending them in time is the same.

Rules of this file:
- Every trial starts from the same machine state, to the byte; nothing of one reaches another. What a trial keeps is an
  object of its own (`Trial`), made for it and dropped with it.
- Every trial ends, by limits that count what the guest did (`harness.limits`).

How it goes, and what breaks otherwise: 1. the machine goes back (the enforcer reads it next); 2. the enforcer forgets
its tasks (they are gone); 3. the process the machine stands in is adopted; 4. work is given out, first to that process
(it drops everybody else's); 5. the CPU runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from thinbox.enforcement.tenants import Isolation
from thinbox.errors import MachineError
from thinbox.guest.agent_channel import GuestScript, Park
from thinbox.harness.checkpoint import Checkpoint, attach, reset
from thinbox.harness.limits import Budget, Limits
from thinbox.records.run import RunRecord

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.isolation.policy import Policy
    from thinbox.records.profile import KnownPages
    from thinbox.session.opened import RestoredGuest


class Trial(Protocol):
    """What a runner asks of the trial under way."""

    def isolates(self, nr: int) -> bool:
        """Whether this call is isolated; asked once at every call of the tenant's tasks."""
        ...


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """`kind` stands in records; `tenant` names the tenant, whose 32-bit calls are isolated too if `compat`; the rest
    as for a run."""

    kind: str
    tenant: str
    compat: bool = False
    on_violation: str = "oops"
    view: str = "none"
    prefault: "KnownPages | None" = None


class Ending(Enum):
    """How a trial ended."""

    PARKED = "the agent has nothing left to do"
    KILLED = "a call was killed"
    WAITING = "every process waits for ever"
    LIMIT = "it did not end within its limits"


class Runner:
    """Makes trials from one checkpoint under one policy."""

    def __init__(self, guest: "ReadyGuest", checkpoint: Checkpoint, policy: "Policy", options: RunnerOptions) -> None:
        self._ready, self._policy, self._kind = guest, policy, options.kind
        self._trial: Trial | None = None
        self.checkpoint = checkpoint
        self.opened: RestoredGuest = attach(guest, checkpoint)
        self.machine, self.view, self.agent = self.opened.machine, self.opened.view, self.opened.agent
        isolation = Isolation(
            policy,
            self._isolates,
            isolates_compat=options.compat,
            keep_faults=True,
            on_violation=options.on_violation,
            tenant=options.tenant,
            view=options.view,
            prefault=options.prefault,
        )
        self.enforcer = self.opened.watch([(isolation, self._new_record())]).enforcer
        self.tenant = self.enforcer.tenants[options.tenant]
        self.exceeded = ""
        """The limit that ended the last trial, in words; empty if none did."""

    def _new_record(self) -> RunRecord:
        facts = self._ready.facts
        return RunRecord(facts.release, facts.sha256, self._policy.name, (self._kind,))

    def _isolates(self, nr: int) -> bool:
        """Asked by the enforcer at every call of the tenant's tasks."""
        return self._trial is not None and self._trial.isolates(nr)

    # -- one trial ----------------------------------------------------------------------------------
    def begin(self) -> RunRecord:
        """Put the guest back, and return the new trial's record; the process the machine stands in is the tenant's."""
        self._trial, self.exceeded = None, ""
        record = self._new_record()
        reset(self.opened, self.checkpoint)
        self.enforcer.reset()
        self.tenant.record = record
        self.enforcer.adopt_current(self.tenant.name)
        return record

    def drive(
        self, trial: Trial, scripts: Mapping[int, GuestScript], limits: Limits, *, stops_at_kill: bool = True
    ) -> Ending:
        """After `begin`: let the current process do the script of task 0, and those inside a call, by their
        task_struct, theirs when that call returns; until the agent parks, a call is killed or a limit is exceeded.

        Raises:
            GuestResetError: the guest went down.
            MachineError: the machine itself failed; this runner is of no use then.
            ThinboxError: as a script raised it.
        """
        self._trial = trial
        record, budget = self.tenant.record, Budget(self.machine, limits)
        self.agent.resume(scripts[0])
        for task, script in scripts.items():
            if task:
                self.agent.assign(task, script)

        def is_over() -> bool:
            if self.agent.parked or (stops_at_kill and record.kills):
                return True
            self.exceeded = budget.exceeded()
            return bool(self.exceeded)

        try:
            self.machine.run(is_over)
        except MachineError as error:
            if "nothing to wake it" not in str(error):
                raise
            return Ending.WAITING
        if stops_at_kill and record.kills:
            return Ending.KILLED
        return Ending.PARKED if self.agent.parked else Ending.LIMIT


def await_end() -> GuestScript:
    """A process inside a wait for another: when that is gone, the trial is over."""
    yield Park()  # stands for the wait it is in
    yield Park()
