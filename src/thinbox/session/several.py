"""Several tenants on one guest: one machine, one enforcer, and each tenant's own policy, view, streams and record.

Why it exists: it is the Python API of `thinbox run FILE.toml`: `run_tenants(guest, [TenantSpec("a", ("id",)), ...])`.

Rules of this file:
- A tenant's record has its own calls, kills, tables and faults only; the machine's time is the same in all of them.
- A tenant has no stdin but the bytes it was given.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from thinbox.boot.ready import ReadyGuest
from thinbox.enforcement.enforcer import Enforcer
from thinbox.enforcement.hang_detector import HangDetector
from thinbox.enforcement.tenants import Isolation
from thinbox.errors import EXIT_KILLED, InputError
from thinbox.guest.agent_channel import AgentChannel, GuestScript
from thinbox.guest.cgroups import Limits
from thinbox.guest.kernel_view import KernelView
from thinbox.guest.populate import populate_root, share_mounts
from thinbox.guest.pump import TenantIo
from thinbox.guest.rootfs import open_rootfs
from thinbox.guest.sites import Sites
from thinbox.guest.tenant import TenantOptions
from thinbox.guest.tenants import TenantPlan, first_id, run_tenants_script
from thinbox.isolation.policies import Policy
from thinbox.isolation.view_rules import view_rule
from thinbox.machine.machine import Machine
from thinbox.machine.snapshot import restore_snapshot
from thinbox.records.profile import require_same_kernel
from thinbox.records.run import RunRecord
from thinbox.session.session import RunResult, choose_policy, parse_isolate

VIOLATIONS = ("undo", "oops", "stop")
"""What a refused access can lead to (`enforcement.violation_action`)."""
_DOORBELL = b"!"


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """One tenant: what it runs, how its calls are isolated, and what it may use.

    `name` is letters, digits, `-` and `_`; it is its host name too. `memory_bytes` and `tasks` limit its cgroup.
    """

    name: str
    command: tuple[str, ...]
    policy: str | Policy = "sci"
    isolate: str = "all"
    view: str = "permissive"
    on_violation: str = "oops"
    rootfs: Path | None = None
    environment: tuple[str, ...] | None = None
    workdir: str = "/"
    stdin: bytes = b""
    memory_bytes: int | None = None
    tasks: int | None = None
    keep_faults: bool = False

    def __post_init__(self) -> None:
        if not self.name or not all(letter.isalnum() or letter in "-_" for letter in self.name):
            raise InputError(f"{self.name!r} is no tenant's name; use letters, digits, - and _")
        if not self.command:
            raise InputError(f"tenant {self.name} has no program to run")
        if self.on_violation not in VIOLATIONS:
            raise InputError(f"tenant {self.name}: on_violation is {', '.join(VIOLATIONS)}, not {self.on_violation!r}")


@dataclass(slots=True)
class _Running:
    """A tenant of this run: its streams so far."""

    spec: TenantSpec
    record: RunRecord
    io: TenantIo
    output: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})


class TenantsSession:
    """One machine restored from `guest`, running all `specs`; `on_output(name, stream, bytes)` may take the output."""

    def __init__(
        self,
        guest: ReadyGuest,
        specs: Sequence[TenantSpec],
        on_output: Callable[[str, int, bytes], None] | None = None,
        on_machine: Callable[[Machine, Enforcer], None] | None = None,
    ) -> None:
        if not specs:
            raise InputError("there is no tenant to run")
        self._specs, self._on_output = tuple(specs), on_output
        isolations = [_isolation(spec, guest) for spec in specs]
        self.machine = machine = Machine(guest.params.memory_mib)
        restore_snapshot(machine, guest.snapshot)
        self.view = KernelView(machine, guest.facts)
        self.agent = AgentChannel(machine)
        self.agent.restore(guest.snapshot.notes["agent"], self.view)
        self._running = [self._prepare(guest, spec, at) for spec, at in zip(specs, isolations, strict=True)]
        # Undo is the machine's: the enforcer is made for a tenant that wants it, if there is one.
        order = sorted(range(len(specs)), key=lambda number: specs[number].on_violation != "undo")
        sites = Sites.from_json(guest.snapshot.notes["sites"])
        first, *others = order
        self.enforcer = Enforcer(machine, self.view, sites, isolations[first], self._running[first].record)
        for number in others:
            self.enforcer.add_tenant(isolations[number], self._running[number].record)
        if on_machine:
            on_machine(machine, self.enforcer)

    def _prepare(self, guest: ReadyGuest, spec: TenantSpec, isolation: Isolation) -> _Running:
        record = RunRecord(guest.facts.release, guest.facts.sha256, isolation.policy.name, spec.command, view=spec.view)
        record.kernel_slide = self.view.facts.slide
        given = [spec.stdin] if spec.stdin else []
        io = TenantIo(
            lambda stream, data: self._take_output(spec.name, stream, data),
            lambda: given.pop() if given else None,
            lambda: self._adopt(spec.name),
            lambda: self._has_tasks(spec.name),
        )
        return _Running(spec, record, io)

    def _take_output(self, name: str, stream: int, data: bytes) -> None:
        if self._on_output:
            self._on_output(name, stream, data)
            return
        next(each for each in self._running if each.spec.name == name).output[stream] += data

    def _adopt(self, name: str) -> None:
        state = self.enforcer.adopt_current(name)
        next(each for each in self._running if each.spec.name == name).io.leader = state.pid
        self.agent.forget(self.view.current)

    def _arrived(self, name: str) -> None:
        views, root = self.enforcer.views, self.view.kernel_root
        views.adopt(self.enforcer.tenants[name], self.view.current, root)

    def _has_tasks(self, name: str) -> bool:
        return any(state.tenant.name == name for state in self.enforcer.tasks.values())

    def run(self) -> dict[str, RunResult]:
        """Run until every tenant has ended; return each one's result by name."""
        started, began_ns = time.perf_counter(), self.machine.now_ns
        self.agent.resume(self._script())
        try:
            hang_detector = HangDetector(self.enforcer.target, self.enforcer.task_list)
            self.machine.run(lambda: self.agent.parked or self._is_stopped() or hang_detector.is_hung())
        finally:
            for each in self._running:
                each.record.wall_s = time.perf_counter() - started
                each.record.virtual_ns = self.machine.now_ns - began_ns
        return {each.spec.name: self._result(each) for each in self._running}

    def _script(self) -> GuestScript:
        plans = []
        for number, each in enumerate(self._running):
            spec = each.spec
            root = "/"
            if spec.rootfs:
                root = f"/mnt/{spec.name}"
                yield from populate_root(self.agent, open_rootfs(spec.rootfs), root, first_id(number))
                yield from share_mounts(root)
            environment = TenantOptions(("",)).environment if spec.environment is None else spec.environment
            options = TenantOptions(spec.command, environment, root, spec.workdir)
            limits = Limits(spec.memory_bytes, spec.tasks)
            plans.append(TenantPlan(spec.name, options, each.io, lambda name=spec.name: self._arrived(name), limits))  # type: ignore[misc]
        yield from run_tenants_script(self.agent, plans)

    def _is_stopped(self) -> bool:
        """Whether a violation stops the run."""
        return any(each.record.stopped for each in self._running)

    def _result(self, each: _Running) -> RunResult:
        record, status = each.record, each.io.wait_status or 0
        own = 128 + (status & 0x7F) if status & 0x7F else status >> 8 & 0xFF
        record.exit_code = EXIT_KILLED if record.kills else own
        console = self.machine.console.decode(errors="replace")
        return RunResult(record.exit_code, bytes(each.output[1]), bytes(each.output[2]), record, console)

    def signal(self, number: int) -> None:
        """Send a signal to every tenant's process group."""
        for each in self._running:
            each.io.signals.append(number)
        self.machine.doorbell.receive(_DOORBELL)

    def resize(self, _rows: int, _columns: int) -> None:
        """No tenant of several has a terminal: nothing happens."""


def _isolation(spec: TenantSpec, guest: ReadyGuest) -> Isolation:
    policy = choose_policy(spec.policy)
    require_same_kernel(policy, guest.facts.sha256)
    view_rule(spec.view)
    return Isolation(
        policy,
        parse_isolate(spec.isolate),
        isolates_compat=spec.isolate != "none",
        keep_faults=spec.keep_faults,
        on_violation=spec.on_violation,
        tenant=spec.name,
        view=spec.view,
    )


def run_tenants(
    guest: ReadyGuest,
    specs: Sequence[TenantSpec],
    on_output: Callable[[str, int, bytes], None] | None = None,
    on_machine: Callable[[Machine, Enforcer], None] | None = None,
) -> dict[str, RunResult]:
    """Run all tenants at once on a fresh copy of `guest`; return each one's status, output and record by name."""
    return TenantsSession(guest, specs, on_output, on_machine).run()


__all__ = ["TenantSpec", "TenantsSession", "run_tenants"]
