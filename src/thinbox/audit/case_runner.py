"""The case runner: one machine that runs a case, forgets it, and runs the next.

Why it exists: a boot takes seconds and a restored session half a second; a case takes milliseconds. The
process that makes the calls is prepared once and frozen; after a case only the pages it wrote are
dropped.

Rules of this file:
- Every case starts from the same machine state, to the byte; nothing of one case reaches another.
- Only the measured call is isolated, and only in the isolated run; everything else of a case runs plainly.
- A killed call ends the case at once: what the guest does afterwards is not the audit's matter.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinbox.audit.case import Case, CaseFailedError, Steps
from thinbox.audit.case_process import AREA_BYTES, SIGCHLD, Process
from thinbox.audit.neighbour import NEIGHBOUR, TENANT, start_neighbour
from thinbox.enforcement.enforcer import Enforcer
from thinbox.enforcement.tenants import Isolation
from thinbox.errors import MachineError
from thinbox.guest.agent_channel import AgentChannel, GuestScript, Park, call, must
from thinbox.guest.cgroups import clone_in_cgroup
from thinbox.guest.charged_sockets import ChargedSockets
from thinbox.guest.kernel_view import KernelView
from thinbox.guest.sites import Sites
from thinbox.machine.machine import Machine
from thinbox.machine.snapshot import restore_snapshot
from thinbox.records.run import CallRecord, RunRecord
from thinbox.syscalls.table import call_number

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.isolation.policies import Policy
    from thinbox.records.profile import KnownPages

_CASE_LIMIT_NS = 60 * 1_000_000_000
"""Virtual time a case may take."""
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
class Checkpoint:
    """The frozen machine: a file of its RAM (shared by processes), and the rest of its state."""

    ram: int
    cpu: bytes
    devices: dict[str, Any]
    agent: dict[str, Any]
    agent_task: int
    process: int
    neighbour: int = 0
    """The neighbour's task_struct (`audit.neighbour`), 0 if the process is alone and no tenant."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a case. `problem` is None if everything was as the case expects; `memory` is a hash of the user
    memory afterwards, `record` that of the measured call (None if it was never made)."""

    problem: str | None
    memory: str
    record: CallRecord | None
    killed: str | None

    @property
    def ret(self) -> int | None:
        """The measured call's result."""
        return None if self.record is None else self.record.ret


def make_checkpoint(guest: "ReadyGuest", *, tenants: bool = False) -> Checkpoint:
    """Restore `guest`, prepare the process that will make the calls, and freeze.

    With `tenants` the process is in a cgroup of its own, and there is a neighbour: a lab with a view needs that.
    """
    machine = Machine(guest.params.memory_mib)
    restore_snapshot(machine, guest.snapshot)
    view = KernelView(machine, guest.facts)
    agent = AgentChannel(machine)
    agent.restore(guest.snapshot.notes["agent"], view)
    if tenants:
        ChargedSockets(machine, view)
    agent_task = view.current
    agent.resume(_prepare(agent, tenants=tenants))
    machine.run(lambda: agent.parked)
    process, neighbour = view.current, agent.task_of_area(_NEIGHBOUR_AREA) if tenants else 0
    saved = (machine.memory.freeze(), machine.cpu.save(), machine.save_devices(), agent.save())
    return Checkpoint(*saved, agent_task, process, neighbour)


def _prepare(agent: AgentChannel, *, tenants: bool) -> GuestScript:
    if tenants:
        yield from start_neighbour(agent, _NEIGHBOUR_AREA, SIGCHLD)
    agent.adopt_next_child(_first_process(agent), 0)
    if tenants:
        child = yield from clone_in_cgroup(TENANT, SIGCHLD)
    else:
        child = yield from must("clone", SIGCHLD, 0, 0, 0, 0)
    yield from must("wait4", child, agent.scratch + _STATUS_AREA, 0, 0)


def _first_process(agent: AgentChannel) -> GuestScript:
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
    yield from call("getpid")
    agent.write(agent.scratch, bytes(1 << 20))
    yield Park()


class CaseRunner:
    """Runs cases from one template under one policy, and one view if the template has tenants."""

    def __init__(
        self,
        guest: "ReadyGuest",
        checkpoint: Checkpoint,
        policy: "Policy",
        on_violation: str = "oops",
        view: str = "none",
        prefault: "KnownPages | None" = None,
    ) -> None:
        self._guest, self._checkpoint, self._policy = guest, checkpoint, policy
        self.machine = machine = Machine(guest.params.memory_mib)
        machine.memory.attach(checkpoint.ram)
        self.agent = AgentChannel(machine)
        self._reset_machine()
        self.view = KernelView(machine, guest.facts)
        sites = Sites.from_json(guest.snapshot.notes["sites"])
        isolation = Isolation(
            policy,
            self._isolates,
            isolates_compat=False,
            keep_faults=True,
            on_violation=on_violation,
            tenant=TENANT,
            view=view,
            prefault=prefault,
        )
        self.enforcer = Enforcer(machine, self.view, sites, undo=on_violation == "undo")
        self.tenant = self.enforcer.add_tenant(isolation, self._new_record())
        self._isolating = self._measuring = self._finished = False
        self._case_nr = self._expected_status = 0
        self._measured: CallRecord | None = None
        self._left_out: list[tuple[int, int]] = []
        self._noted = hashlib.sha256()

    def _new_record(self) -> RunRecord:
        return RunRecord(self._guest.facts.release, self._guest.facts.sha256, self._policy.name, ("audit",))

    def _reset_machine(self) -> None:
        machine = self.machine
        machine.memory.clear()
        machine.console.clear()
        machine.cpu.restore(self._checkpoint.cpu)
        machine.restore_devices(self._checkpoint.devices)

    # -- one case -----------------------------------------------------------------------------------
    def run(self, case: Case, *, isolated: bool) -> Outcome:
        """Run `case` from the template. `MachineError` if the machine itself failed; the runner is of no use then."""
        self._reset_machine()
        record = self._new_record()
        self.enforcer.reset()
        self.tenant.record = record
        self.agent.restore(self._checkpoint.agent, self.view)
        self._isolating, self._measuring, self._finished = isolated, False, False
        self._case_nr, self._expected_status = call_number(case.call), -1
        self._measured = None
        self._left_out.clear()
        self._noted = hashlib.sha256()
        self.enforcer.adopt_current(TENANT)
        if self._checkpoint.neighbour and self.tenant.isolation.view != "none":
            cgroups = self.enforcer.views.cgroups
            cgroups.owners[cgroups.memcg_of(self._checkpoint.neighbour, self.view.kernel_root)] = NEIGHBOUR
        problem = self._drive(case, record)
        killed = record.kills[0].sentence() if record.kills else None
        return Outcome(None if killed else problem, self._memory_hash(), self._measured, killed)

    def _drive(self, case: Case, record: RunRecord) -> str | None:
        limit = self.machine.now_ns + _CASE_LIMIT_NS
        try:
            self.agent.resume(self._steps(case))
            self.agent.assign(self._checkpoint.agent_task, _await_end())
            self.machine.run(lambda: self.agent.parked or bool(record.kills) or self.machine.now_ns > limit)
        except CaseFailedError as error:
            return str(error)
        except MachineError as error:
            if "nothing to wake it" in str(error):
                return "every process of the case waits for ever"
            raise
        if record.kills:
            return None
        if not self.agent.parked:
            return f"the case did not end within {_CASE_LIMIT_NS // 10**9} s of virtual time"
        if self._measured is None:
            return "the case made no measured call"
        return None if self._finished else self._judge_end()

    def _judge_end(self) -> str | None:
        """The first process ended: right only if its last call was never to return."""
        status = int.from_bytes(self.agent.read(self.agent.scratch + _STATUS_AREA, 4), "little")
        if status != self._expected_status:
            expected = f"{self._expected_status:#x}" if self._expected_status >= 0 else "that it goes on"
            return f"the process ended with wait status {status:#x}, expected {expected}"
        return None

    def _steps(self, case: Case) -> Steps:
        yield from case.body(Process(self, case))
        self._finished = True
        yield Park()

    def _isolates(self, nr: int) -> bool:
        """Asked by the enforcer at every call of the case's tasks."""
        if not self._measuring or nr != self._case_nr:
            return False
        self._measuring = False
        self._measured = self.tenant.record.calls[-1]
        return self._isolating

    # -- what a case says ---------------------------------------------------------------------------
    def begin_measured(self, ends_with: int | None = None) -> None:
        """The next call of this number is the measured one; `ends_with`: the first process ends in it."""
        if self._measured is not None:
            raise CaseFailedError("a case has exactly one measured call")
        self._measuring = True
        if ends_with is not None:
            self._expected_status = ends_with

    def leave_out(self, vaddr: int, size: int) -> None:
        """Leave a part of the scratch out of the comparison."""
        self._left_out.append((vaddr - self.agent.scratch, size))

    def note(self, data: bytes) -> None:
        """Compare these bytes, too."""
        self._noted.update(struct.pack("<Q", len(data)) + data)

    def _memory_hash(self) -> str:
        scratch = bytearray(self.agent.read(self.agent.scratch, 8 * AREA_BYTES))
        for at, size in self._left_out:
            scratch[at : at + size] = bytes(size)
        found = self._noted.copy()
        found.update(scratch)
        return found.hexdigest()


def _await_end() -> Steps:
    """The agent waits for the first process; when that is gone, so is the case."""
    yield
    yield Park()
