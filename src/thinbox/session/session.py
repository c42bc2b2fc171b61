"""Run one tenant on a ready guest: restore, watch, pump, record. The only loop.

Why it exists: it is the Python API as well as the command: `run(guest, ["sh", "-c", "id"])`.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from thinbox.boot.params import MAXIMUM_MEMORY_MIB
from thinbox.boot.ready import ReadyGuest
from thinbox.enforcement.enforcer import Enforcer
from thinbox.enforcement.hang_detector import HangDetector
from thinbox.enforcement.tenants import Isolation
from thinbox.errors import EXIT_KILLED, InputError, RootfsError
from thinbox.guest.agent_channel import AgentChannel, GuestScript
from thinbox.guest.engine_mounts import mount_engine_view
from thinbox.guest.kernel_view import KernelView
from thinbox.guest.populate import ROOT, populate_root, require_room, share_mounts
from thinbox.guest.rootfs import open_rootfs
from thinbox.guest.sites import Sites
from thinbox.guest.tenant import TenantIo, TenantOptions, run_tenant
from thinbox.guest.terminal import Terminal
from thinbox.isolation.policies import Policy, load_policy
from thinbox.isolation.view_rules import view_rule
from thinbox.machine.machine import Machine
from thinbox.machine.snapshot import restore_snapshot
from thinbox.records.profile import (
    KnownPages,
    load_policy_object,
    read_policy_file,
    require_known_here,
    require_same_kernel,
)
from thinbox.records.run import RunRecord
from thinbox.sandbox.plan import Plan
from thinbox.session.event_recorder import EventRecorder
from thinbox.session.plan_gate import Gate
from thinbox.session.stdin import Input
from thinbox.syscalls.table import call_number

if TYPE_CHECKING:
    from thinbox.container.image import ContainerImage
    from thinbox.coverage.recorder import Recorder

_DOORBELL = b"!"
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run: `isolate` is "all", "none" or names of calls; `policy` a name or a policy object.
    The root is `rootfs`, or `image` with what container engines mount, or the guest's own; `user` is a name or number,
    with :group if wanted, looked up there (None: root). An image's own command is in `ContainerImage.launch`.
    `coverage` records which functions and pages each call uses, in `record.coverage`.

    With a `plan` it says what becomes of each call; `isolate` then counts for the program's start only.

    With a `terminal`, stdio is one: what the tenant writes to it comes as stdout, and `keys` may change, or act
    on, what is typed.
    """

    policy: str | Policy = "sci"
    isolate: str = "all"
    rootfs: Path | None = None
    image: "ContainerImage | None" = None
    user: str | None = None
    environment: tuple[str, ...] | None = None
    workdir: str = "/"
    keep_faults: bool = False
    keep_trace: bool = False
    coverage: bool = False
    on_violation: str = "oops"
    view: str = "none"
    prefault: KnownPages | None = None
    plan: Plan | None = None
    stdin: BinaryIO | None = None
    terminal: Terminal | None = None
    keys: Callable[[bytes], bytes] | None = None
    on_output: Callable[[int, bytes], None] | None = None
    on_machine: Callable[[Machine, Enforcer], None] | None = None
    progress: Callable[[str], None] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of it; `stdout` and `stderr` are empty if `on_output` took them. `console` is what the
    kernel printed during the run."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    record: RunRecord
    console: str = ""


def parse_isolate(text: str) -> Callable[[int], bool]:
    """Return the predicate of `--isolate all|none|CALL,…`; `InputError` for an unknown name."""
    if text == "all":
        return lambda _nr: True
    if text == "none":
        return lambda _nr: False
    chosen = frozenset(call_number(name.strip()) for name in text.split(",") if name.strip())
    if not chosen:
        raise InputError("--isolate takes all, none, or names of calls separated by commas")
    return lambda nr: nr in chosen


def choose_policy(policy: str | Policy) -> Policy:
    """Return the policy of a name, or the one given; `InputError` for a name there is not."""
    return load_policy(policy, read_policy_file, load_policy_object) if isinstance(policy, str) else policy


class Session:
    """One machine restored from `guest`, running one command."""

    def __init__(self, guest: ReadyGuest, command: Sequence[str], options: RunOptions) -> None:
        if not command:
            raise InputError("there is no program to run; use `thinbox run -- PROGRAM ARG…`")
        policy = choose_policy(options.policy)
        require_same_kernel(policy, guest.facts.sha256)
        require_known_here(options.prefault, guest.facts)
        isolates = parse_isolate(options.isolate)
        self._options, self._guest = options, guest
        self.machine = machine = Machine(guest.params.memory_mib)
        restore_snapshot(machine, guest.snapshot)
        notes = guest.snapshot.notes
        self.view = KernelView(machine, guest.facts)
        self.agent = AgentChannel(machine)
        self.agent.restore(notes["agent"], self.view)
        self.record = RunRecord(guest.facts.release, guest.facts.sha256, policy.name, tuple(command), view=options.view)
        self.record.kernel_slide = guest.facts.slide
        compat = options.isolate != "none"
        isolation = Isolation(
            policy,
            isolates,
            isolates_compat=compat,
            keep_faults=options.keep_faults,
            on_violation=options.on_violation,
            view=options.view,
            prefault=options.prefault,
        )
        sites = Sites.from_json(notes["sites"])
        self.enforcer = Enforcer(machine, self.view, sites, isolation, self.record)
        self._events = EventRecorder(machine, self.view, sites, trace=options.keep_trace)
        self.enforcer.watch.add(self._events)
        self._recorder = self._start_coverage(sites) if options.coverage else None
        if options.plan is not None:
            Gate(self.enforcer, options.plan)
        self._output: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self._input = Input(options.stdin, typed=options.terminal is not None, keys=options.keys)
        self.io = TenantIo(
            options.on_output or self._keep, self._take_input, self._adopt, lambda: bool(self.enforcer.tasks)
        )
        root = ROOT if options.rootfs or options.image else "/"
        defaults = TenantOptions(tuple(command))
        user = "" if options.user is None and options.image else options.user
        environment = defaults.environment if options.environment is None else options.environment
        cgroup = "tenant" if view_rule(options.view) else None
        self._tenant = TenantOptions(tuple(command), environment, root, options.workdir, options.terminal, user, cgroup)
        machine.on_idle = self._wait_for_input
        if options.terminal is not None:
            machine.look_at_input = self._look_at_keys
        if options.on_machine:
            options.on_machine(machine, self.enforcer)

    def _start_coverage(self, sites: Sites) -> "Recorder":
        from thinbox.coverage.recorder import Recorder

        recorder = Recorder(self.machine, self.view, sites)
        self.enforcer.watch.add(recorder)
        return recorder

    def _keep(self, stream: int, data: bytes) -> None:
        self._output[stream] += data

    def _adopt(self) -> None:
        self.enforcer.adopt_current()
        self._events.begin()
        self.agent.forget(self.view.current)

    def run(self) -> RunResult:
        """Run to the tenant's end."""
        started, began_ns = time.perf_counter(), self.machine.now_ns
        hang_detector = HangDetector(self.enforcer.target, self.enforcer.task_list)
        self.agent.resume(self._script())
        try:
            self.machine.run(lambda: self.agent.parked or self.record.stopped or hang_detector.is_hung())
        finally:
            self.record.wall_s = time.perf_counter() - started
            self.record.virtual_ns = self.machine.now_ns - began_ns
        self.record.events = self._events.finish(self.enforcer.kernel_root)
        if self._recorder is not None:
            self.record.coverage = self._recorder.finish(self.record.calls)
        self.record.exit_code = self._exit_code()
        console = self.machine.console.decode(errors="replace")
        return RunResult(self.record.exit_code, bytes(self._output[1]), bytes(self._output[2]), self.record, console)

    def _script(self) -> GuestScript:
        options = self._options
        if options.image is not None:
            self._say(f"copying {options.image.name} into the guest ({options.image.need_bytes >> 20} MiB)")
            memory_mib = self._guest.params.memory_mib
            try:
                yield from require_room(self.agent, options.image.need_bytes, memory_mib, MAXIMUM_MEMORY_MIB)
                yield from populate_root(self.agent, options.image.entries())
            except RootfsError as error:
                raise RootfsError(f"{options.image.name}: {error}") from error
            yield from mount_engine_view()
        elif options.rootfs:
            self._say(f"copying {options.rootfs} into the guest")
            yield from populate_root(self.agent, open_rootfs(options.rootfs))
            yield from share_mounts()
        yield from run_tenant(self.agent, self._tenant, self.io)

    def _say(self, line: str) -> None:
        if self._options.progress:
            self._options.progress(line)

    def _exit_code(self) -> int:
        if self.record.kills:
            return EXIT_KILLED
        status = self.io.wait_status or 0
        return 128 + (status & 0x7F) if status & 0x7F else status >> 8 & 0xFF

    def signal(self, number: int) -> None:
        """Send a signal to the tenant's process group."""
        self.io.signals.append(number)
        self.machine.doorbell.receive(_DOORBELL)

    def resize(self, rows: int, columns: int) -> None:
        """Give the tenant's terminal another size; without a terminal nothing happens."""
        self.io.window = (rows, columns)
        self.machine.doorbell.receive(_DOORBELL)

    # -- stdin ------------------------------------------------------------------------------------------
    def _take_input(self) -> bytes | None:
        """As `Input.take`; a signal that came before goes to the tenant before what comes now."""
        self.machine.check_signals()
        return b"" if self.io.signals else self._input.take()

    def _look_at_keys(self) -> None:
        """Between stretches of CPU: what is typed reaches also a tenant that computes."""
        if self._input.look() and not self.io.input_waits:
            self.machine.doorbell.receive(_DOORBELL)

    def _wait_for_input(self, due_ns: int | None) -> bool:
        """The guest sleeps: if stdin may still bring something, wait for it as long as the guest would."""
        if self.io.input_ended or self.io.input_waits:
            return False
        left_s = math.inf if due_ns is None else (due_ns - self.machine.now_ns) / _NS
        if not self._input.wait(left_s, self._has_interrupt):
            return False
        if not self.machine.pic.waiting:
            self.machine.doorbell.receive(_DOORBELL)
        return True

    def _has_interrupt(self) -> bool:
        self.machine.look_at_signals()
        return bool(self.machine.pic.waiting)


def run(guest: ReadyGuest, command: Sequence[str], options: RunOptions | None = None) -> RunResult:
    """Run `command` as a tenant on a fresh copy of `guest`; return status, output and record."""
    return Session(guest, command, options or RunOptions()).run()


__all__ = ["RunOptions", "RunResult", "Session", "parse_isolate", "run"]
