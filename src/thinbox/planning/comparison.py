"""The same workload natively, under its seccomp profile, under gVisor, and in thinbox un-isolated, isolated and
thinned.

Why it exists: a thinner sandbox is an answer only beside the others.

Rules of this file:
- Wall time is a ratio within one runtime: host runs to the native run, emulated runs to the un-isolated emulated run.
- A figure that was not measured here is marked with its source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinbox.errors import InputError
from thinbox.planning import runtimes
from thinbox.planning.evidence import gather_evidence
from thinbox.planning.exports.bpf import render_bpf
from thinbox.planning.filters import make_filter
from thinbox.planning.gvisor_rows import GvisorChoice, Workload, gvisor_rows
from thinbox.planning.make_plan import PlanOptions, make_plan
from thinbox.planning.runtime_calls import RUNTIMES
from thinbox.planning.runtime_row import EMULATED, HOST, NATIVE, Row, absent

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.session.session import RunResult

SCHEMA = "thinbox.compare/2"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, in order."""

    command: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object of `thinbox compare --json`."""
        return {"schema": SCHEMA, "command": list(self.command), "rows": [row.to_json() for row in self.rows]}


def compare_runtimes(
    guest: "ReadyGuest", command: Sequence[str], root: Path, runs: int, say: Say, choice: GvisorChoice | None = None
) -> Comparison:
    """Run `command` in every runtime; `root` is a directory with its root file system."""
    from thinbox.session.session import RunOptions, run

    options = RunOptions(rootfs=root, coverage=True)
    say("in thinbox, un-isolated")
    plain = run(guest, command, replace(options, isolate="none"))
    say("in thinbox, isolated")
    isolated = run(guest, command, options)
    plan = make_plan(gather_evidence([isolated.record.to_json()]), PlanOptions("compared"))
    say("in thinbox, thinned")
    thinned = run(guest, command, replace(options, plan=plan))
    total = len(plain.record.calls)
    rows = _host_rows(plan, command, root, runs, total, say)
    native_s = next((row.wall_s for row in rows if row.runtime == NATIVE), None)
    workload = Workload(tuple(command), root, runs, total, native_s)
    rows += gvisor_rows(choice or GvisorChoice(), workload, say)
    base = plain.record.wall_s
    rows += [
        _emulated("thinbox, un-isolated", plain, base, "all calls on the kernel's own table"),
        _emulated("thinbox, isolated", isolated, base, "every call on its own page table"),
        _emulated(
            "thinbox, thinned", thinned, base, "isolated, or answered outside the kernel, by the plan made of the run"
        ),
    ]
    return Comparison(tuple(command), tuple(rows))


def _host_rows(plan: Any, command: Sequence[str], root: Path, runs: int, total: int, say: Say) -> list[Row]:
    try:
        say("natively")
        native = runtimes.run_native(root, command, runs=runs)
        say("under its seccomp profile")
        made = make_filter(plan, (RUNTIMES["exec"],))
        under = runtimes.run_native(root, command, program=render_bpf(made), runs=runs)
    except InputError as error:
        return [absent("native, seccomp profile", str(error))]
    counted = "calls as counted in thinbox"
    shared = Row(NATIVE, HOST, native.exit_code, total, total, total, ratio=1.0, wall_s=native.wall_s, note=counted)
    allowed = len(made.allowed())
    return [
        shared,
        replace(
            shared,
            runtime="seccomp profile",
            exit_code=under.exit_code,
            host_calls=allowed,
            ratio=round(under.wall_s / native.wall_s, 3),
            wall_s=under.wall_s,
            note=f"{allowed} different calls allowed",
        ),
    ]


def _emulated(runtime: str, result: "RunResult", base: float, note: str) -> Row:
    record = result.record
    totals = record.totals
    return Row(
        runtime,
        EMULATED,
        result.exit_code,
        totals["calls"],
        totals["reaching_kernel"],
        totals["reaching_unisolated"],
        record.coverage.hap if record.coverage else None,
        ratio=round(record.wall_s / base, 3),
        wall_s=record.wall_s,
        note=note,
    )


def render_comparison(found: Comparison) -> str:
    """Return Markdown: the table, then the published figures with their sources."""
    from thinbox.coverage.published import PUBLISHED

    names = "runtime,status,calls,reach the kernel,un-isolated,functions entered,host calls allowed,made,wall ratio"
    lines = [f"| {names.replace(',', ' | ')} | note |", f"|---|{'---:|' * 8}---|"]
    for row in found.rows:
        values = [row.exit_code, row.calls, row.reaching, row.unisolated, row.functions, row.host_calls, row.host_made]
        shown = ["" if value is None else f"{value:,}" for value in values]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({row.clock})"
        lines.append(f"| {row.runtime} | {' | '.join(shown)} | {ratio} | {row.note} |")
    lines += [
        "",
        "Ratios are to the first row of the same clock: host time is never set against emulated time.",
        "",
        "Published:",
        "",
    ]
    lines += ["| sandbox | workload | kernel functions entered |", "|---|---|---:|"]
    sources = list(dict.fromkeys(figure.source for figure in PUBLISHED))
    for figure in PUBLISHED:
        lines.append(
            f"| {figure.sandbox} [{sources.index(figure.source) + 1}] | {figure.workload} | about {figure.functions} |"
        )
    lines += ["", *(f"[{number}] {source}" for number, source in enumerate(sources, 1))]
    return "\n".join(lines)
