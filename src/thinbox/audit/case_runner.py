"""The case runner: one machine that runs a case, forgets it, and runs the next.

Why it exists: a case is run twice, isolated and not, by a process that is prepared once and frozen; what it came to
each time is compared (`audit.pool`).

Rules of this file:
- A run's own state is its `Measurement`, made for it.
- Only the measured call is isolated, and only in the isolated run; everything else of a case runs plainly.
- A killed call ends the case at once: what the guest does afterwards is not the audit's matter.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.audit.case import Case
from thinbox.audit.case_process import Process
from thinbox.audit.measurement import Measurement
from thinbox.audit.neighbour import NEIGHBOUR, TENANT, start_neighbour
from thinbox.guest.agent_channel import AgentChannel, GuestScript, Park, call, must
from thinbox.guest.cgroups import clone_in_cgroup
from thinbox.guest.charged_sockets import ChargedSockets
from thinbox.harness.checkpoint import Checkpoint, ParentWait, freeze, run_to_park
from thinbox.harness.limits import Limits
from thinbox.harness.process import AREA_BYTES, SIGCHLD, StepFailedError, Steps
from thinbox.harness.runner import Ending, Runner, RunnerOptions, await_end
from thinbox.session.opened import RestoredGuest, restore_guest

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.isolation.policy import Policy
    from thinbox.records.profile import KnownPages
    from thinbox.records.run import CallRecord

_LIMITS = Limits(virtual_ns=60 * 1_000_000_000)
"""What a case may use up."""
_STATUS_AREA = 7 * AREA_BYTES
_NEIGHBOUR_AREA = 6 * AREA_BYTES
FOLDER = "/tmp/audit"
FILE_BYTES = 10_000
"""Every case starts in `FOLDER`, which holds `file` (FILE_BYTES of `file_content()`), `dir/inner`, `link` -> file,
`dangling` -> nothing, and `fifo`."""
_O_CREAT_WRONLY = 0o101
_S_IFIFO = 0o010000


def file_content() -> bytes:
    """What `file` holds: numbered lines."""
    return b"".join(b"line %05d\n" % number for number in range(FILE_BYTES // 11 + 1))[:FILE_BYTES]


@dataclass(frozen=True, slots=True)
class CaseCheckpoint:
    """A frozen machine that stands in the process which makes a case's calls. `neighbour` is the task_struct of the
    other tenant's process (`audit.neighbour`), 0 if the process is alone and no tenant."""

    machine: Checkpoint
    neighbour: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a case. `problem` is None if everything was as the case expects; `memory` is a hash of the user
    memory afterwards, `record` that of the measured call (None if it was never made)."""

    problem: str | None
    memory: str
    record: "CallRecord | None"
    killed: str | None
    lacking: bool = False
    """The case says that this kernel cannot do it."""

    @property
    def ret(self) -> int | None:
        """The measured call's result."""
        return None if self.record is None else self.record.ret


def make_checkpoint(guest: "ReadyGuest", *, tenants: bool = False) -> CaseCheckpoint:
    """Restore `guest`, prepare the process that will make the calls, and freeze.

    With `tenants` the process is in a cgroup of its own, and there is a neighbour: a runner with a view needs that.
    """
    opened = restore_guest(guest)
    if tenants:
        ChargedSockets(opened.machine, opened.view)
    agent_task = opened.view.current
    run_to_park(opened, _prepare(opened.agent, tenants=tenants))
    neighbour = opened.agent.task_of_area(_NEIGHBOUR_AREA) if tenants else 0
    return CaseCheckpoint(freeze(opened, agent_task), neighbour)


def _prepare(agent: AgentChannel, *, tenants: bool) -> GuestScript:
    if tenants:
        yield from start_neighbour(agent, _NEIGHBOUR_AREA, SIGCHLD)
    parent = ParentWait()
    agent.adopt_next_child(_first_process(agent, parent), 0)
    if tenants:
        child = yield from clone_in_cgroup(TENANT, SIGCHLD)
    else:
        child = yield from must("clone", SIGCHLD, 0, 0, 0, 0)
    yield from parent.wait(child, agent.scratch + _STATUS_AREA, 0, 0)


def _first_process(agent: AgentChannel, parent: ParentWait) -> GuestScript:
    yield from must("mkdir", FOLDER, 0o755)
    yield from must("chdir", FOLDER)
    yield from must("mkdir", "dir", 0o755)
    for name, content in (("file", file_content()), ("dir/inner", b"inner\n")):
        handle = yield from must("open", name, _O_CREAT_WRONLY, 0o644)
        place = agent.scratch + AREA_BYTES // 2
        agent.write(place, content)
        yield from must("write", handle, place, len(content))
        yield from must("close", handle)
    yield from must("symlink", "file", "link")
    yield from must("symlink", "nothing", "dangling")
    yield from must("mknod", "fifo", _S_IFIFO | 0o644, 0)
    yield from parent.come_to()
    yield from call("getpid")
    agent.write(agent.scratch, bytes(1 << 20))
    yield Park()


class CaseRunner(Runner):
    """Runs cases from one checkpoint under one policy, and one view if the checkpoint has tenants."""

    def __init__(
        self,
        guest: "ReadyGuest",
        checkpoint: CaseCheckpoint,
        policy: "Policy",
        on_violation: str = "oops",
        view: str = "none",
        prefault: "KnownPages | None" = None,
    ) -> None:
        options = RunnerOptions("audit", TENANT, on_violation=on_violation, view=view, prefault=prefault)
        super().__init__(guest, checkpoint.machine, policy, options)
        self.neighbour = checkpoint.neighbour
        """The neighbour's task_struct, 0 if there is none."""

    def run(self, case: Case, *, isolated: bool) -> Outcome:
        """Run `case` from the checkpoint. `MachineError` if the machine itself failed; the runner is of no use then."""
        record = self.begin()
        if self.neighbour and self.tenant.isolation.view != "none":
            cgroups = self.enforcer.views.cgroups
            cgroups.owners[cgroups.memcg_of(self.neighbour, self.view.kernel_root)] = NEIGHBOUR
        measurement = Measurement(case.call, record, self.agent, isolated=isolated)
        problem = self._drive_case(case, measurement)
        killed = record.kills[0].sentence() if record.kills else None
        return Outcome(
            None if killed else problem, measurement.memory_hash(), measurement.measured, killed, measurement.lacking
        )

    def _drive_case(self, case: Case, measurement: Measurement) -> str | None:
        scripts = {0: _steps(case, self.opened, measurement), self.checkpoint.agent_task: await_end()}
        try:
            ending = self.drive(measurement, scripts, _LIMITS)
        except StepFailedError as error:
            return str(error)
        if ending is Ending.WAITING:
            return "every process of the case waits for ever"
        if ending is Ending.LIMIT:
            return f"the case did not end within {self.exceeded}"
        if ending is Ending.KILLED:
            return None
        if measurement.measured is None:
            return "the case made no measured call"
        return None if measurement.is_finished else self._judge_end(measurement.expected_status)

    def _judge_end(self, expected_status: int) -> str | None:
        """The first process ended: right only if its last call was never to return."""
        status = int.from_bytes(self.agent.read(self.agent.scratch + _STATUS_AREA, 4), "little")
        if status != expected_status:
            expected = f"{expected_status:#x}" if expected_status >= 0 else "that it goes on"
            return f"the process ended with wait status {status:#x}, expected {expected}"
        return None


def _steps(case: Case, opened: RestoredGuest, measurement: Measurement) -> Steps:
    yield from case.body(Process(opened, measurement))
    measurement.is_finished = True
    yield Park()
