"""Run tenants on a ready guest: restore, watch, pump, record. The only loop, for one tenant as for many.

Why it exists: `run(guest, ["sh", "-c", "id"])` is a program alone; `run_tenants(guest, [TenantSpec("a", ("id",))])` are
tenants, each in namespaces of its own. What they share is here.

Rules of this file:
- No tenant is special: each has its own policy, view, plan, streams and record; a record has its own calls, kills,
  tables and faults only. The machine's time is the same in all of them.
- The agent answers a process until its `execve` succeeded: from then on the tenant's program runs in it.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from thinbox.boot.ready import ReadyGuest
from thinbox.enforcement.hang_detector import HangDetector
from thinbox.errors import InputError
from thinbox.guest.agent_channel import GuestScript
from thinbox.guest.pump import TenantIo
from thinbox.session.disks import prepare_disks
from thinbox.session.event_recorder import EventRecorder
from thinbox.session.modules import SessionModules
from thinbox.session.opened import restore_guest
from thinbox.session.options import (
    ALONE,
    RunOptions,
    RunResult,
    TenantSpec,
    choose_policy,
    parse_isolate,
)
from thinbox.session.program_start import ProgramStarts
from thinbox.session.running_tenant import RunningTenant
from thinbox.session.start import start_alone, start_apart
from thinbox.session.stdin import LOOK_S

if TYPE_CHECKING:
    from thinbox.coverage.recorder import Recorder
    from thinbox.session.plan_gate import PlanGates

_DOORBELL = b"!"
_NS = 1_000_000_000

OnOutput = Callable[[str, int, bytes], None]
"""Takes output: the tenant's name, 1 or 2, and bytes."""
OnMachine = Callable[..., None]
"""Sees machine and enforcer just before the tenants start."""


class Session:
    """One machine restored from `guest`, running tenants; made by `alone` or `apart`."""

    def __init__(
        self,
        guest: ReadyGuest,
        tenants: list[RunningTenant],
        *,
        host: RunOptions | None = None,
        on_machine: OnMachine | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """`host` are the options of the one tenant that runs alone; None: the tenants run apart from each other."""
        self._guest, self._host, self.tenants = guest, host, {tenant.name: tenant for tenant in tenants}
        if len(self.tenants) < len(tenants):
            names = [tenant.name for tenant in tenants]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"two tenants are called {twice!r}")
        self._say = progress or (lambda _line: None)
        opened = restore_guest(guest).watch([(tenant.isolation, tenant.record) for tenant in tenants])
        self.machine, self.view, self.agent, self.enforcer = opened.machine, opened.view, opened.agent, opened.enforcer
        self._modules = SessionModules(guest, [tenant.options for tenant in tenants], opened, self._say)
        trace = host is not None and host.keep_trace
        self._events = EventRecorder(self.machine, self.view, opened.sites, trace=trace)
        self.enforcer.watch.add(self._events)
        self.recorder = self._start_coverage()
        self._starts = ProgramStarts(self.agent)
        self.enforcer.watch.add(self._starts)
        self._gates = self._make_gates()
        self.enforcer.on_new_task = self._new_task
        if self._gates is not None:
            self.enforcer.on_task_gone = self._gates.gone
        for tenant in tenants:
            tenant.io = self._io_of(tenant)
        self.machine.on_idle = self._wait_for_input
        if host is not None and host.terminal is not None:
            self.machine.look_at_input = self._look_at_keys
        if on_machine:
            on_machine(self.machine, self.enforcer)

    @classmethod
    def alone(cls, guest: ReadyGuest, command: Sequence[str], options: RunOptions | None = None) -> Self:
        """Return a session of one program, in the guest's own namespaces; it is called `ALONE`.

        Raises:
            InputError: an option cannot be meant, or does not fit this guest.
        """
        options = options or RunOptions()
        tenant = RunningTenant(guest, ALONE, command, options, options.on_output)
        return cls(guest, [tenant], host=options, on_machine=options.on_machine, progress=options.progress)

    @classmethod
    def apart(
        cls,
        guest: ReadyGuest,
        specs: Sequence[TenantSpec],
        on_output: OnOutput | None = None,
        on_machine: OnMachine | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Self:
        """Return a session of tenants side by side, each in namespaces of its own; raises as `alone`."""
        if not specs:
            raise InputError("there is no tenant to run")
        tenants = [RunningTenant(guest, spec.name, spec.command, spec, _named(on_output, spec.name)) for spec in specs]
        return cls(guest, tenants, on_machine=on_machine, progress=progress)

    def _start_coverage(self) -> "Recorder | None":
        wanted = {tenant.name for tenant in self.tenants.values() if tenant.options.coverage}
        if not wanted:
            return None
        from thinbox.coverage.recorder import Recorder

        recorder = Recorder(self.machine, self.view, self.enforcer.sites, wanted)
        self.enforcer.watch.add(recorder)
        return recorder

    def _make_gates(self) -> "PlanGates | None":
        plans = {name: tenant.options.plan for name, tenant in self.tenants.items()}
        if not any(plans.values()):
            return None
        from thinbox.session.plan_gate import PlanGates

        return PlanGates(self.enforcer, plans)

    # -- the run ----------------------------------------------------------------------------------------
    def run(self) -> dict[str, RunResult]:
        """Run until every tenant has ended; return each one's result by name."""
        self.start()
        self.go_on()
        return self.finish()

    def start(self) -> None:
        """Give the agent its work; nothing runs before `go_on`."""
        self._started_s, self._began_ns = time.perf_counter(), self.machine.now_ns
        self._hang_detector = HangDetector(self.enforcer.target, self.enforcer.task_list)
        self.agent.resume(self._script())

    def go_on(self, is_enough: Callable[[], bool] = lambda: False) -> bool:
        """Run until every tenant has ended: True; or, asked whenever the CPU stops, it `is_enough`: False."""
        try:
            self.machine.run(lambda: self._is_over() or is_enough())
        finally:
            for tenant in self.tenants.values():
                tenant.record.wall_s = time.perf_counter() - self._started_s
                tenant.record.virtual_ns = self.machine.now_ns - self._began_ns
        return self._is_over()

    def _is_over(self) -> bool:
        stopped = any(tenant.record.stopped for tenant in self.tenants.values())
        return self.agent.parked or stopped or self._hang_detector.is_hung()

    def finish(self) -> dict[str, RunResult]:
        """Sum up; return each tenant's result by name."""
        self._events.finish(self.enforcer.kernel_root)
        console = self.machine.console.decode(errors="replace")
        for name, tenant in self.tenants.items():
            tenant.record.events = self._events.of(name)
            if self.recorder is not None and tenant.options.coverage:
                tenant.record.coverage = self.recorder.finish(name, tenant.record.calls)
        return {name: tenant.result(console) for name, tenant in self.tenants.items()}

    def _script(self) -> GuestScript:
        memory_mib = self._guest.params.memory_mib
        yield from prepare_disks(self.agent, self.tenants.values(), self._modules, memory_mib)
        yield from self._modules.start()
        if self._host is not None:
            (tenant,) = self.tenants.values()
            yield from start_alone(self.agent, tenant, self._host.terminal, memory_mib, self._say)
            return
        yield from start_apart(self.agent, list(self.tenants.values()), self._arrived, memory_mib, self._say)

    # -- processes --------------------------------------------------------------------------------------
    def _io_of(self, tenant: RunningTenant) -> TenantIo:
        name = tenant.name
        return TenantIo(
            tenant.output,
            lambda: self._take_input(tenant),
            lambda: self._adopt(tenant),
            self._disown,
            lambda: any(state.tenant.name == name for state in self.enforcer.tasks.values()),
        )

    def _arrived(self, name: str) -> None:
        self.enforcer.views.adopt(self.enforcer.tenants[name], self.view.current, self.view.kernel_root)

    def _adopt(self, tenant: RunningTenant) -> None:
        """The process that runs is about to become the tenant's program."""
        state = self.enforcer.adopt_current(tenant.name)
        if self._host is None:
            tenant.io.leader = state.pid
        self._events.begin(tenant.name)
        self._starts.expect(state.task)

    def _new_task(self, parent: int, child: int) -> None:
        self._starts.born(child)
        if self._gates is not None:
            self._gates.forked(parent, child)

    def _disown(self) -> None:
        """It could not: what it still does is thinbox's own."""
        self._starts.failed(self.view.current)
        self.enforcer.disown_current()

    def signal(self, number: int) -> None:
        """Send a signal to every tenant's process group."""
        for tenant in self.tenants.values():
            tenant.io.signals.append(number)
        self.machine.doorbell.receive(_DOORBELL)

    def resize(self, rows: int, columns: int) -> None:
        """Give the tenants' terminals another size; without a terminal nothing happens."""
        for tenant in self.tenants.values():
            tenant.io.window = (rows, columns)
        self.machine.doorbell.receive(_DOORBELL)

    # -- stdin ------------------------------------------------------------------------------------------
    def _take_input(self, tenant: RunningTenant) -> bytes | None:
        """As `Input.take`; a signal that came before goes to the tenant before what comes now."""
        self.machine.check_signals()
        return b"" if tenant.io.signals else tenant.input.take()

    def _look_at_keys(self) -> None:
        """Between stretches of CPU: what is typed reaches also a tenant that computes."""
        for tenant in self.tenants.values():
            if tenant.input.look() and not tenant.io.input_waits:
                self.machine.doorbell.receive(_DOORBELL)

    def _wait_for_input(self, due_ns: int | None) -> bool:
        """The guest sleeps: if a stdin may still bring something, wait for it as long as the guest would."""
        open_ones = [t for t in self.tenants.values() if not t.io.input_ended and not t.io.input_waits]
        left_s = math.inf if due_ns is None else (due_ns - self.machine.now_ns) / _NS
        until_s = time.monotonic() + left_s
        while open_ones and left_s > 0:
            # One is waited for as long as it takes, several in turn.
            share_s = left_s if len(open_ones) == 1 else min(left_s, LOOK_S)
            for tenant in list(open_ones):
                if tenant.input.wait(share_s, self._has_interrupt):
                    if not self.machine.pic.waiting:
                        self.machine.doorbell.receive(_DOORBELL)
                    return True
                if not tenant.input.may_come:
                    open_ones.remove(tenant)
            if len(self.tenants) == 1:
                return False
            left_s = until_s - time.monotonic()
        return False

    def _has_interrupt(self) -> bool:
        self.machine.look_at_signals()
        return bool(self.machine.pic.waiting)


def _named(on_output: OnOutput | None, name: str) -> Callable[[int, bytes], None] | None:
    return None if on_output is None else lambda stream, data: on_output(name, stream, data)


def run(guest: ReadyGuest, command: Sequence[str], options: RunOptions | None = None) -> RunResult:
    """Run `command` as a tenant on a fresh copy of `guest`; return status, output and record."""
    return Session.alone(guest, command, options).run()[ALONE]


def run_tenants(
    guest: ReadyGuest,
    specs: Sequence[TenantSpec],
    on_output: OnOutput | None = None,
    on_machine: OnMachine | None = None,
) -> dict[str, RunResult]:
    """Run all tenants at once on a fresh copy of `guest`; return each one's status, output and record by name."""
    return Session.apart(guest, specs, on_output, on_machine).run()


__all__ = [
    "RunOptions",
    "RunResult",
    "Session",
    "TenantSpec",
    "choose_policy",
    "parse_isolate",
    "run",
    "run_tenants",
]
