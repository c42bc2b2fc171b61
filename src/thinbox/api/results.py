"""What the public API returns: of a run, of tenants, of an audit, of attacks.

Rules of this file: a result is read, not changed; `to_json` gives the object that the command's `--json` writes.
"""

import json
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from thinbox.api.failures import RunError
from thinbox.api.tables import render_html, to_arrow, to_polars
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts
    from thinbox.isolation.verdict import Violation
    from thinbox.records.attack import AttackRecord, AttackRow
    from thinbox.records.audit import AuditEntry, AuditRecord
    from thinbox.records.coverage import RunCoverage
    from thinbox.records.run import CallRecord, FaultRecord
    from thinbox.session.options import RunResult
    from thinbox.surface.run_surface import RunSurface

_SHOWN = 12


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What came of one program. `stdout` and `stderr` are bytes; `console` is what the kernel printed."""

    run: "RunResult" = field(repr=False)
    surface: "RunSurface | None" = None
    """What each call left to an exploit, if `surface` was asked for."""
    facts: "KernelFacts | None" = field(default=None, repr=False)

    @property
    def exit_code(self) -> int:
        """Its status; 128 + n if signal n ended it, 137 if thinbox killed a task, 126 or 127 if it never began."""
        return self.run.exit_code

    @property
    def stdout(self) -> bytes:
        """What it wrote to stdout."""
        return self.run.stdout

    @property
    def stderr(self) -> bytes:
        """What it wrote to stderr."""
        return self.run.stderr

    @property
    def text(self) -> str:
        """Its stdout as text; what is no UTF-8 is replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def console(self) -> str:
        """What the kernel printed meanwhile."""
        return self.run.console

    @property
    def calls(self) -> "tuple[CallRecord, ...]":
        """Its system calls, in the order they were made."""
        return tuple(self.run.record.calls)

    @property
    def faults(self) -> "tuple[FaultRecord, ...]":
        """Every granted page, if `faults` was asked for."""
        return tuple(self.run.record.faults)

    @property
    def kills(self) -> "tuple[Violation, ...]":
        """Every refused access."""
        return tuple(self.run.record.kills)

    @property
    def refusals(self) -> tuple[str, ...]:
        """What a plan refused, in sentences."""
        return self.run.record.refusals.sentences()

    @property
    def coverage(self) -> "RunCoverage | None":
        """Functions and pages, if `coverage` was asked for."""
        return self.run.record.coverage

    @property
    def totals(self) -> dict[str, Any]:
        """The sums of the record."""
        return self.run.record.totals

    def check(self) -> Self:
        """Return the result; raise `RunError` if it was killed, could not be executed, or its status is not 0."""
        shown = shlex.join(self.run.record.command)
        if self.run.not_started:
            raise RunError(self.run.not_started, self.exit_code)
        if self.kills:
            raise RunError(f"{shown}: {self.kills[0].sentence()}", self.exit_code)
        if self.exit_code:
            last = self.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise RunError(f"{shown}: status {self.exit_code}" + "".join(f": {line}" for line in last), self.exit_code)
        return self

    def summary(self) -> str:
        """Return the table that `thinbox run` writes to stderr."""
        from thinbox.report.summary import render_summary

        return render_summary(self.run.record)

    def to_json(self) -> dict[str, Any]:
        """Return the object of `thinbox run --json`."""
        record = self.run.record.to_json()
        return record if self.surface is None else record | {"surface": self.surface.to_json()}

    def save(self, path: str | Path) -> None:
        """Write that object, for `thinbox report`, `plan` and `cost`; InputError if it cannot be written."""
        _write(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())

    def save_profile(self, path: str | Path) -> None:
        """Write what each call touched, for `prefault` and policy `profile:FILE`; `faults` must have been asked for."""
        from thinbox.records.profile import profile_of

        if self.facts is None or not self.run.record.faults:
            raise InputError("a profile is made of the pages a run was granted: run with faults=True")
        _write(path, profile_of([self.run.record], self.facts.symbols))

    def to_arrow(self) -> Any:
        """Return the calls as a `pyarrow.Table`; InputError where pyarrow is not installed."""
        return to_arrow([asdict(call) for call in self.calls])

    def to_polars(self) -> Any:
        """Return the calls as a `polars.DataFrame`; InputError where polars is not installed."""
        return to_polars([asdict(call) for call in self.calls])

    def _headline(self) -> str:
        record, totals = self.run.record, self.totals
        killed = f"{totals['killed']} killed" if totals["killed"] else "none killed"
        began = f"; {self.run.not_started}" if self.run.not_started else ""
        return (
            f"{shlex.join(record.command)!r}: status {self.exit_code}, {totals['calls']} calls, "
            f"{totals['isolated']} isolated under {record.policy}, {killed}{began}"
        )

    def __repr__(self) -> str:
        return f"<Result of {self._headline()}>"

    def _repr_html_(self) -> str:
        groups: dict[str, list[CallRecord]] = defaultdict(list)
        for call in self.calls:
            groups[call.name].append(call)
        faults = {name: sum(c.code_faults + c.data_faults for c in calls) for name, calls in groups.items()}
        ordered = sorted(groups, key=lambda name: (-faults[name], name))[:_SHOWN]
        rows: list[tuple[object, ...]] = [
            (name, len(groups[name]), sum(call.isolated for call in groups[name]), f"{faults[name]:,}")
            for name in ordered
        ]
        rows += [("killed", "", "", kill.sentence()) for kill in self.kills]
        return render_html(self._headline(), ("call", "times", "isolated", "faults"), rows)


class TenantResults(Mapping[str, Result]):
    """The results of tenants that ran side by side, by name, in the order they were given."""

    def __init__(self, results: Mapping[str, Result]) -> None:
        self._results = dict(results)

    def __getitem__(self, name: str) -> Result:
        return self._results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def check(self) -> Self:
        """Return the results; raise `RunError` for the first that `Result.check` would raise for."""
        for result in self.values():
            result.check()
        return self

    def __repr__(self) -> str:
        lines = "".join(f"\n  {name}: {result!r}" for name, result in self.items())
        return f"<TenantResults{lines}>"

    def _repr_html_(self) -> str:
        rows = [
            (name, each.exit_code, each.totals["calls"], each.totals["isolated"], len(each.kills))
            for name, each in self.items()
        ]
        return render_html(f"{len(self)} tenants", ("tenant", "status", "calls", "isolated", "killed"), rows)


@dataclass(frozen=True, slots=True, repr=False)
class AuditResult:
    """What came of an audit: an entry for each case, run isolated and not."""

    record: "AuditRecord" = field(repr=False)

    @property
    def entries(self) -> "tuple[AuditEntry, ...]":
        """All cases."""
        return tuple(self.record.entries)

    @property
    def killed(self) -> "tuple[AuditEntry, ...]":
        """Cases whose isolated call was killed, though it does nothing wrong."""
        return tuple(entry for entry in self.record.entries if entry.killed is not None)

    @property
    def different(self) -> "tuple[AuditEntry, ...]":
        """Cases that did something else isolated than not, killed ones included."""
        return tuple(self.record.different)

    @property
    def totals(self) -> dict[str, Any]:
        """The sums of the record."""
        return self.record.totals

    def check(self) -> Self:
        """Return the result; raise `RunError` if a case failed un-isolated, or was different isolated."""
        wrong = [*self.record.broken, *self.record.different]
        if wrong:
            raise RunError(f"{len(wrong)} of {len(self.entries)} cases: {wrong[0].title}: {wrong[0].reason}", 1)
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the object of `thinbox audit --json`."""
        return self.record.to_json()

    def to_arrow(self) -> Any:
        """Return the entries as a `pyarrow.Table`; InputError where pyarrow is not installed."""
        return to_arrow([entry.to_json() for entry in self.record.entries])

    def to_polars(self) -> Any:
        """Return the entries as a `polars.DataFrame`; InputError where polars is not installed."""
        return to_polars([entry.to_json() for entry in self.record.entries])

    def _headline(self) -> str:
        totals = self.totals
        return (
            f"{totals['cases']} cases under {self.record.policy}: {totals['different']} different, "
            f"{totals['killed']} killed, {totals['broken']} failed un-isolated"
        )

    def __repr__(self) -> str:
        return f"<AuditResult of {self._headline()}>"

    def _repr_html_(self) -> str:
        rows = [
            (entry.title, "same" if entry.same else entry.reason, entry.code_faults, entry.data_faults)
            for entry in self.record.entries[:_SHOWN]
        ]
        return render_html(self._headline(), ("case", "isolated", "code faults", "data faults"), rows)


@dataclass(frozen=True, slots=True, repr=False)
class AttackResult:
    """What came of attacks: a row for each, under each policy and view."""

    record: "AttackRecord" = field(repr=False)

    @property
    def rows(self) -> "tuple[AttackRow, ...]":
        """All tries."""
        return tuple(self.record.rows)

    def outcome(self, attack: str, policy: str, view: str = "none") -> str:
        """Return "succeeded", "contained" or "detected"; InputError if that was not tried."""
        for row in self.record.rows:
            if (row.attack, row.policy, row.view) == (attack, policy, view):
                return row.outcome
        raise InputError(f"{attack} was not tried under policy {policy} and view {view}")

    def to_json(self) -> dict[str, Any]:
        """Return the object of `thinbox attack --json`."""
        return self.record.to_json()

    def to_arrow(self) -> Any:
        """Return the rows as a `pyarrow.Table`; InputError where pyarrow is not installed."""
        return to_arrow([asdict(row) for row in self.record.rows])

    def to_polars(self) -> Any:
        """Return the rows as a `polars.DataFrame`; InputError where polars is not installed."""
        return to_polars([asdict(row) for row in self.record.rows])

    def __repr__(self) -> str:
        lines = "".join(f"\n  {r.attack} under {r.policy}, view {r.view}: {r.outcome}" for r in self.record.rows)
        return f"<AttackResult{lines}>"

    def _repr_html_(self) -> str:
        rows = [(row.attack, row.policy, row.view, row.outcome, row.reason) for row in self.record.rows]
        return render_html(f"{len(rows)} tries", ("attack", "policy", "view", "outcome", "why"), rows)


def render_report(results: Sequence[Result | AuditResult | AttackResult], title: str = "thinbox") -> bytes:
    """Return one self-contained HTML page (bytes of UTF-8) of these results, as `thinbox report` makes it."""
    from thinbox.report.page.contents import contents_of
    from thinbox.report.page.document import parse_document
    from thinbox.report.page.html_page import render_html as render_page

    if not results:
        raise InputError("a report is made of at least one result")
    documents = [
        parse_document(json.dumps(result.to_json()).encode(), f"result {number}")
        for number, result in enumerate(results, 1)
    ]
    return render_page(contents_of(documents, title))


def _write(path: str | Path, data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


__all__ = ["AttackResult", "AuditResult", "Result", "TenantResults", "render_report"]
