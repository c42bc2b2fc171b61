"""One tenant of a session: its options, its record, its streams, and what comes of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from thinbox.enforcement.tenants import Isolation
from thinbox.errors import EXIT_KILLED
from thinbox.guest.cgroups import Limits
from thinbox.guest.disks import parse_disk
from thinbox.guest.tenant import TenantOptions
from thinbox.isolation.view_rules import view_rule
from thinbox.records.profile import require_known_here, require_same_kernel
from thinbox.records.run import RunRecord
from thinbox.session.options import Confinement, RunResult, choose_policy, parse_isolate, require_command
from thinbox.session.stdin import GivenInput, Input
from thinbox.syscalls.table import call_number

SIGKILL = 9

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinbox.boot.ready import ReadyGuest
    from thinbox.guest.pump import TenantIo
    from thinbox.guest.terminal import Terminal
    from thinbox.isolation.policies import Policy

Output = Callable[[int, bytes], None]


class RunningTenant:
    """`name` runs `command` as `options` say; with an `output`, that takes what it writes."""

    def __init__(
        self,
        guest: "ReadyGuest",
        name: str,
        command: "Sequence[str]",
        options: Confinement,
        output: Output | None = None,
    ) -> None:
        """InputError for options that do not fit this guest."""
        self.name, self.options, self.command = name, options, require_command(command)
        self.disk = None if options.disk is None else parse_disk(options.disk)
        policy = choose_policy(options.policy)
        require_same_kernel(policy, guest.facts.sha256)
        require_known_here(options.prefault, guest.facts)
        self.isolation = self._isolation(policy)
        facts = guest.facts
        self.record = RunRecord(facts.release, facts.sha256, policy.name, self.command, view=options.view)
        self.record.kernel_slide = facts.slide
        self._output: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self.output = output or self._keep
        self.io: TenantIo
        stdin = options.stdin
        if isinstance(stdin, bytes | bytearray | memoryview):
            self.input: Input | GivenInput = GivenInput(bytes(stdin))
        else:
            terminal, keys = getattr(options, "terminal", None), getattr(options, "keys", None)
            self.input = Input(stdin, typed=terminal is not None, keys=keys)

    def _isolation(self, policy: "Policy") -> Isolation:
        options = self.options
        isolates = parse_isolate(options.isolate)
        isolates_ends = isolates(call_number("exit_group"))
        return Isolation(
            policy,
            isolates,
            isolates_compat=options.isolate != "none",
            keep_faults=options.keep_faults,
            on_violation=options.on_violation,
            tenant=self.name,
            view=options.view,
            prefault=options.prefault,
            isolates_ends=isolates_ends,
            ends_by_policy=isolates_ends,
        )

    def _keep(self, stream: int, data: bytes) -> None:
        self._output[stream] += data

    @property
    def has_own_root(self) -> bool:
        """Whether its root is not the guest's own."""
        return self.options.rootfs is not None or self.options.image is not None

    def guest_options(self, root: str, terminal: "Terminal | None" = None) -> TenantOptions:
        """Return what the agent is told: the tenant's `/` is `root` in the guest."""
        options = self.options
        defaults = TenantOptions(self.command)
        limits = Limits(options.memory_bytes, options.tasks)
        return TenantOptions(
            self.command,
            defaults.environment if options.environment is None else tuple(options.environment),
            root,
            options.workdir,
            terminal,
            "" if options.user is None and options.image else options.user,
            self.name if view_rule(options.view) or limits != Limits() else None,
            limits,
            self.disk,
        )

    def result(self, console: str) -> RunResult:
        """Return what came of it, once it has ended."""
        record, status = self.record, self.io.wait_status
        if status is None:
            # It was cut off: no status of its own, and none that could be taken for an end.
            record.stuck = record.stuck or not (record.stopped or self.io.not_started)
            status = SIGKILL
        own = 128 + (status & 0x7F) if status & 0x7F else status >> 8 & 0xFF
        record.exit_code = EXIT_KILLED if record.kills else own
        record.not_started = self.io.not_started
        out, err = bytes(self._output[1]), bytes(self._output[2])
        return RunResult(record.exit_code, out, err, record, console, self.io.not_started)


__all__ = ["RunningTenant"]
