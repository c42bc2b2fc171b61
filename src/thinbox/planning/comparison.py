"""The same workload natively, under its seccomp profile, under gVisor, and in thinbox un-isolated, isolated and
thinned.

Why it exists: a thinner sandbox is an answer only beside the others.

Rules of this file:
- Wall time is a ratio within one world: host runs to the native run, emulated runs to the un-isolated emulated run.
- A figure that was not measured here is marked with its source.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinbox.errors import InputError
from thinbox.planning import worlds
from thinbox.planning.evidence import gather_evidence
from thinbox.planning.exports.bpf import render_bpf
from thinbox.planning.filters import make_filter
from thinbox.planning.make_plan import PlanOptions, make_plan
from thinbox.planning.microbench import LOOPS, build_loop
from thinbox.planning.runtime_calls import RUNTIMES
from thinbox.sandbox.plan_file import load_plan

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.session.session import RunResult

SCHEMA = "thinbox.compare/1"
HOST, EMULATED = "host", "emulated"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One world. `reaching` calls ran in the shared kernel, `unisolated` of them as they are; None: not known."""

    world: str
    clock: str
    exit_code: int | None
    calls: int | None
    reaching: int | None
    unisolated: int | None
    functions: int | None
    host_calls: int | None
    ratio: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, in order."""

    command: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object of `thinbox compare --json`."""
        rows = [{name: getattr(row, name) for name in Row.__slots__} for row in self.rows]
        return {"schema": SCHEMA, "command": list(self.command), "rows": rows}


def compare_worlds(guest: "ReadyGuest", command: Sequence[str], root: Path, runs: int, say: Say) -> Comparison:
    """Run `command` in every world; `root` is a directory with its root file system."""
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
    rows = [*_host_rows(plan, command, root, runs, total, say)]
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
    rows: list[Row] = []
    native = None
    try:
        say("natively")
        native = worlds.run_native(root, command, runs=runs)
        rows.append(
            Row("native", HOST, native.exit_code, total, total, total, None, None, 1.0, "calls as counted in thinbox")
        )
        say("under its seccomp profile")
        made = make_filter(plan, (RUNTIMES["exec"],))
        under = worlds.run_native(root, command, program=render_bpf(made), runs=runs)
        note = f"{len(made.allowed())} different calls allowed"
        ratio = round(under.wall_s / native.wall_s, 3)
        rows.append(
            Row("seccomp profile", HOST, under.exit_code, total, total, total, None, len(made.allowed()), ratio, note)
        )
    except InputError as error:
        rows.append(_absent("native, seccomp profile", str(error)))
    host_calls = len(load_plan("gvisor-ptrace-sentry").rules)
    try:
        say("under gVisor")
        gvisor = worlds.run_gvisor(root, command, runs=runs)
        ratio_g = round(gvisor.wall_s / native.wall_s, 3) if native else None
        note = "150 to 250 ms of that are its start; host calls: those its Sentry allows itself"
        rows.append(Row("gVisor, ptrace", HOST, gvisor.exit_code, total, None, None, None, host_calls, ratio_g, note))
    except InputError as error:
        rows.append(replace(_absent("gVisor", str(error)), host_calls=host_calls))
    return rows


def _absent(world: str, note: str) -> Row:
    return Row(world, HOST, None, None, None, None, None, None, None, note)


def _emulated(world: str, result: "RunResult", base: float, note: str) -> Row:
    record = result.record
    reaching = [call for call in record.calls if call.reaches_kernel]
    return Row(
        world,
        EMULATED,
        result.exit_code,
        len(record.calls),
        len(reaching),
        sum(not call.isolated for call in reaching),
        record.coverage.hap if record.coverage else None,
        None,
        round(record.wall_s / base, 3),
        note,
    )


def render_comparison(found: Comparison) -> str:
    """Return Markdown: the table, then the published figures with their sources."""
    from thinbox.coverage.published import PUBLISHED

    names = "world,status,calls,reach the kernel,un-isolated,kernel functions entered,host calls,wall ratio,note"
    lines = [f"| {names.replace(',', ' | ')} |", "|---|---:|---:|---:|---:|---:|---:|---:|---|"]
    for row in found.rows:
        values = [row.exit_code, row.calls, row.reaching, row.unisolated, row.functions, row.host_calls]
        shown = ["" if value is None else f"{value:,}" for value in values]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({row.clock})"
        lines.append(f"| {row.world} | {' | '.join(shown)} | {ratio} | {row.note} |")
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


@dataclass(frozen=True, slots=True)
class CallCost:
    """One call natively and under gVisor, ns of this machine's wall clock; None where it could not be measured, or
    was lost in the noise of starting a process."""

    name: str
    native_ns: float | None
    gvisor_ns: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as long it takes under gVisor."""
        return self.gvisor_ns / self.native_ns if self.gvisor_ns and self.native_ns else None


_NATIVE_COUNTS, _GVISOR_COUNTS = {"fork+wait": 1_000}, {"fork+wait": 200, "mmap+munmap": 5_000}
_NATIVE_COUNT, _GVISOR_COUNT = 200_000, 30_000


def measure_calls(folder: Path, say: Say, runs: int = 3, chosen: Sequence[str] = ()) -> tuple[CallCost, ...]:
    """Measure each loop of `microbench`, natively and under gVisor; `folder` is an empty directory for a root."""
    import shutil

    for name in ("bin", "dev", "proc", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    has_gvisor = shutil.which("runsc") is not None
    cpus = os.sched_getaffinity(0)
    # On one CPU, as gVisor's own table was measured; children inherit it.
    os.sched_setaffinity(0, {min(cpus)})
    try:
        return tuple(_cost(folder, name, runs, say, has_gvisor=has_gvisor) for name in chosen or LOOPS)
    finally:
        os.sched_setaffinity(0, cpus)


def _cost(folder: Path, name: str, runs: int, say: Say, *, has_gvisor: bool) -> CallCost:
    say(f"measuring {name}")
    native = _per_call(folder, name, _NATIVE_COUNTS.get(name, _NATIVE_COUNT), runs, gvisor=False)
    count = _GVISOR_COUNTS.get(name, _GVISOR_COUNT)
    return CallCost(name, native, _per_call(folder, name, count, runs, gvisor=True) if has_gvisor else None)


def _per_call(root: Path, name: str, count: int, runs: int, *, gvisor: bool) -> float | None:
    """Return ns of one turn of the loop: a long run less a short one, by the difference of their turns."""
    times = []
    for turns in (1, count + 1):
        program = root / "bin" / "loop"
        program.write_bytes(build_loop(name, turns))
        program.chmod(0o755)
        ran = [
            worlds.run_gvisor(root, ["/bin/loop"]) if gvisor else worlds.run_native(root, ["/bin/loop"])
            for _ in range(runs)
        ]
        if any(one.exit_code for one in ran):
            raise InputError(
                f"the loop of {name} ended with {ran[0].exit_code}: {ran[0].stderr.decode(errors='replace')[:200]}"
            )
        times.append(statistics.median(one.wall_s for one in ran))
    return (times[1] - times[0]) * 1e9 / count if times[1] > times[0] else None


def render_costs(found: Sequence[CallCost]) -> str:
    """Return Markdown, as the table of docs/plan.md."""
    lines = ["| call | native, ns | gVisor ptrace, ns | ratio |", "|---|---:|---:|---:|"]
    for cost in found:
        native, gvisor = ("" if ns is None else f"{ns:,.0f}" for ns in (cost.native_ns, cost.gvisor_ns))
        ratio = "" if cost.ratio is None else f"{cost.ratio:.0f}"
        lines.append(f"| {cost.name} | {native} | {gvisor} | {ratio} |")
    if all(cost.gvisor_ns is None for cost in found):
        lines += ["", worlds.INSTALL_RUNSC]
    return "\n".join(lines)
