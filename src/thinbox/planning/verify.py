"""Run a recorded workload again under a plan: does it end as it did, and was anything refused?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from thinbox.report.sentences import shorten
from thinbox.sandbox.plan import Plan

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.records.run import RunRecord
    from thinbox.session.session import RunOptions


@dataclass(frozen=True, slots=True)
class Check:
    """One workload under the plan. `refusals` and `violations` are sentences, each once; `refused` says how many there
    were of the former. `unisolated` are calls that reached the shared kernel un-isolated."""

    command: tuple[str, ...]
    exit_before: int
    exit_after: int
    refused: str
    refusals: tuple[str, ...]
    violations: tuple[str, ...]
    calls: int
    reaching: int
    unisolated: int

    @property
    def holds(self) -> bool:
        """Whether it ended as recorded, with nothing refused and nothing killed."""
        return self.exit_before == self.exit_after and not self.refusals and not self.violations

    def render(self) -> str:
        """Return a few lines for people."""
        verdict = "holds" if self.holds else "FAILS"
        ended = f"{' '.join(self.command)[:80]}: status {self.exit_after} (recorded: {self.exit_before})"
        reached = f"{self.reaching} reached the kernel, {self.unisolated} of them un-isolated"
        refused = f"; {self.refused}" if self.refusals else ""
        lines = (*shorten(self.refusals), *shorten(self.violations))
        return "\n".join(
            [f"{verdict}: {ended}; {self.calls} calls, {reached}{refused}", *(f"  {line}" for line in lines)]
        )


def verify_plan(
    guest: "ReadyGuest", plan: Plan, command: Sequence[str], exit_code: int, options: "RunOptions | None" = None
) -> Check:
    """Run `command` under `plan`; `exit_code` is what it ended with when it was recorded, `options` say how and in
    which root it ran then."""
    from thinbox.session.session import RunOptions, run

    result = run(guest, command, replace(options or RunOptions(), plan=plan))
    return make_check(result.record, tuple(command), exit_code)


def make_check(record: "RunRecord", command: tuple[str, ...], exit_code: int) -> Check:
    """Judge a finished run."""
    return Check(
        command=command,
        exit_before=exit_code,
        exit_after=record.exit_code,
        refused=record.refusals.headline(),
        refusals=record.refusals.sentences(),
        violations=tuple(dict.fromkeys(kill.sentence() for kill in record.kills if kill.kind != "call")),
        calls=len(record.calls),
        reaching=record.totals["reaching_kernel"],
        unisolated=record.totals["reaching_unisolated"],
    )
