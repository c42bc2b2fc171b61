"""A booted guest: run programs on it, audit its calls, attack it. Every run begins from the same waiting guest."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from thinbox.api.inside import Inside
from thinbox.api.options import Options, Tenant, run_options, tenant_spec
from thinbox.api.results import AttackResult, AuditResult, Result, TenantResults
from thinbox.boot.params import DEFAULT_MEMORY_MIB, BootParams
from thinbox.boot.ready import ReadyGuest, prepare
from thinbox.errors import InputError
from thinbox.machine.cpu_model import DEFAULT_CPU, cpu_model
from thinbox.session.options import ALONE
from thinbox.session.session import Session

if TYPE_CHECKING:
    import os
    from typing import Unpack

    from thinbox.audit.case import Case
    from thinbox.session.options import RunResult
    from thinbox.surface.residual import Surface

Say = Callable[[str], None]


def boot(
    kernel: "str | os.PathLike[str] | None" = None,
    *,
    memory_mib: int = DEFAULT_MEMORY_MIB,
    append: str = "",
    kaslr: bool = False,
    kaslr_seed: int = 0,
    cpu: str = DEFAULT_CPU,
    progress: Say | None = None,
) -> "Guest":
    """Return a guest that waits for programs: from the cache if it was booted before, by booting it if not.

    `kernel` is what `thinbox run --kernel` takes, `,symbols=FILE,types=FILE` too; None is Debian's newest cloud kernel,
    fetched without root. `cpu` is the CPU's level of the x86-64 ABI, "v1" or "v2", with features behind it: "v2,-smap".
    `append` are words for the kernel's command line. `progress` is told what takes time.

    Raises:
        InputError: there is no such kernel, or it cannot be used.
        MachineError: it did not boot.
    """
    params = BootParams(memory_mib, append, kaslr=kaslr, kaslr_seed=kaslr_seed, cpu=cpu)
    ready = prepare(None if kernel is None else str(kernel), params, progress)
    return Guest(ready, cpu_model(cpu).level)


class Guest:
    """One waiting guest; made by `boot`. It is never changed: what a program does is gone when it has ended."""

    def __init__(self, ready: ReadyGuest, level: int) -> None:
        self._ready = ready
        self._level = level

    @property
    def release(self) -> str:
        """The kernel's release, as `uname -r` prints it."""
        return self._ready.facts.release

    @property
    def from_cache(self) -> bool:
        """Whether it was booted before, and came from the cache."""
        return self._ready.from_cache

    def run(self, command: Sequence[str] = (), **options: "Unpack[Options]") -> Result:
        """Run `command`, a list of words, as a tenant, and return what came of it; see `thinbox.api.options.Options`.

        With an `image` it may be left out: the image's own.

        Raises:
            InputError: an option or the command cannot be meant, or the program is not there.
        """
        words, chosen = run_options(command, options, self._level)
        session = Session.alone(self._ready, words, chosen)
        return self._finish(session, options)()

    def session(self, command: Sequence[str] = (), **options: "Unpack[Options]") -> Inside:
        """Return `command` about to run, to be looked into; options and errors as for `run`."""
        words, chosen = run_options(command, options, self._level)
        session = Session.alone(self._ready, words, chosen)
        measure = self._measure(session, options)

        def finish() -> Result:
            return self._result(session.finish()[ALONE], measure)

        return Inside(session, finish)

    def run_tenants(self, tenants: Sequence[Tenant], *, progress: Say | None = None) -> TenantResults:
        """Run tenants side by side, each in namespaces and with options of its own; return each one's result by name.

        Raises:
            InputError: as `run`; or two have one name, or there are too many.
        """
        if not all(isinstance(tenant, Tenant) for tenant in tenants):
            raise InputError("run_tenants takes a list of thinbox.Tenant(name, command, ...)")
        session = Session.apart(
            self._ready, [tenant_spec(tenant, self._level) for tenant in tenants], progress=progress
        )
        measures = {tenant.name: self._measure(session, tenant.options, tenant.name) for tenant in tenants}
        found = session.run()
        return TenantResults({name: self._result(result, measures[name]) for name, result in found.items()})

    def _finish(self, session: Session, options: Options) -> Callable[[], Result]:
        measure = self._measure(session, options)
        return lambda: self._result(session.run()[ALONE], measure)

    def _measure(self, session: Session, options: Options, tenant: str = ALONE) -> "Surface | None":
        if not options.get("surface"):
            return None
        from thinbox.surface.run_surface import load_surface

        return load_surface(session, tenant=tenant)

    def _result(self, found: "RunResult", measure: "Surface | None") -> Result:
        if measure is None:
            return Result(found, None, self._ready.facts)
        from thinbox.surface.run_surface import tabulate

        return Result(found, tabulate(found.record, measure), self._ready.facts)

    def audit(
        self,
        *calls: "str | Case",
        policy: str = "live",
        view: str = "none",
        jobs: int = 1,
        progress: Say | None = None,
    ) -> AuditResult:
        """Run the cases of these calls (none: of all), isolated and not, and compare. A `thinbox.Case` is run as it is.

        Raises:
            InputError: there is no such call, policy or view, or the call has no cases.
        """
        from thinbox.audit.run import AuditOptions, audit, audit_own_cases
        from thinbox.isolation.view_rules import view_rule

        view_rule(view)
        names = tuple(call for call in calls if isinstance(call, str))
        own = tuple(call for call in calls if not isinstance(call, str))
        options = AuditOptions(names, policy, view, jobs, progress=progress)
        return AuditResult(audit_own_cases(self._ready, own, options) if own else audit(self._ready, options))

    def attack(
        self,
        *attacks: str,
        policy: str | Sequence[str] = ("none", "live"),
        view: str | Sequence[str] = "none",
        on_violation: str = "undo",
        jobs: int = 1,
    ) -> AttackResult:
        """Try these exploits (none: all) under each policy and view; policy none is the kernel without isolation.

        Raises:
            InputError: there is no such attack, policy or view.
        """
        from thinbox.attacks.matrix import MatrixOptions, run_matrix
        from thinbox.session.options import VIOLATIONS

        if on_violation not in VIOLATIONS:
            raise InputError(f"on_violation is {', '.join(VIOLATIONS)}, not {on_violation!r}")
        policies = (policy,) if isinstance(policy, str) else tuple(policy)
        views = (view,) if isinstance(view, str) else tuple(view)
        return AttackResult(run_matrix(self._ready, MatrixOptions(attacks, policies, views, jobs, on_violation)))

    def __repr__(self) -> str:
        return f"<Guest with Linux {self.release}, {self._ready.params.memory_mib} MiB>"


__all__ = ["Guest", "boot"]
