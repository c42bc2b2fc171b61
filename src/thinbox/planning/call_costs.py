"""What single calls cost: natively, with a supervisor that only lets them go on, and under gVisor.

Why it exists: a workload's wall time hides which calls are dear; and beside gVisor's stands what asking any other
process costs, by seccomp notification or by ptrace.

Rules of this file:
- Every column runs the same loops, pinned to one CPU; a figure is a long run less a short one.
- What is lost in the noise of starting a process is no figure. What was not measured here stands in brackets.
"""

import os
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from thinbox.errors import InputError
from thinbox.planning import runtimes
from thinbox.planning.gvisor_rows import GvisorChoice
from thinbox.planning.microbench import LOOPS, build_loop
from thinbox.planning.runsc import find_runsc, make_loop_root
from thinbox.planning.runtime_row import NATIVE
from thinbox.planning.supervised import NOTIFY, PTRACE, build_supervised

SCHEMA = "thinbox.compare-calls/1"
FILE = Path(__file__).parent.parent / "data" / "gvisor.toml"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Column:
    """One way to run the loops. `before`: key of the figures measured before; `missing`: why there are none now."""

    title: str
    before: str
    count: int = 0
    build: Callable[[str, int], bytes] = build_loop
    run: Callable[[Path], runtimes.HostRun] | None = None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class CallCosts:
    """ns of one turn by loop and column title; None where it was lost in the noise, or not measured."""

    columns: tuple[Column, ...]
    figures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object of `thinbox compare --calls --json`."""
        columns = [{"title": column.title, "missing": column.missing or None} for column in self.columns]
        calls = [{"name": name, "ns": dict(figures)} for name, figures in self.figures.items()]
        return {"schema": SCHEMA, "columns": columns, "calls": calls}


_TURNS = {
    NATIVE: 200_000,
    NOTIFY: 50_000,
    PTRACE: 20_000,
    "gvisor": 30_000,
}
_FEWER = {("fork+wait", NATIVE): 1_000, ("fork+wait", "gvisor"): 200, ("mmap+munmap", "gvisor"): 5_000}


def find_columns(choice: GvisorChoice) -> tuple[Column, ...]:
    """Return the columns of this machine, those that do not work with the reason."""
    columns = [
        Column(NATIVE, "native", _TURNS[NATIVE], build_loop, _run_natively),
        Column(
            "seccomp-notify + continue", "notify", _TURNS[NOTIFY],
            partial(build_supervised, supervisor=NOTIFY), _run_natively,
        ),
        Column(
            "PTRACE_SYSCALL", "traced", _TURNS[PTRACE], partial(build_supervised, supervisor=PTRACE), _run_natively
        ),
    ]  # fmt: skip
    gvisor = []
    for named in choice.binaries or (None,):
        for platform in choice.platforms:
            title = f"gVisor {platform}"
            try:
                runsc = find_runsc(named)
                title += f" ({runsc.version})" if len(choice.binaries) > 1 else ""
                runsc.require(platform)
            except InputError as error:
                gvisor.append(Column(title, platform, missing=str(error)))
                continue
            run = partial(_run_gvisor, runsc=runsc, platform=platform)
            gvisor.append(Column(title, platform, _TURNS["gvisor"], build_loop, run))
    # A platform that another binary has needs no reason and no old figures.
    works = {column.before for column in gvisor if column.run}
    shown = [column for column in gvisor if column.run or column.before not in works]
    return (columns[0], *shown, *columns[1:])


def measure_calls(
    folder: Path, say: Say, columns: Sequence[Column], runs: int = 3, chosen: Sequence[str] = ()
) -> CallCosts:
    """Measure each loop in each column; `folder` is an empty directory for a root.

    Raises:
        InputError: a loop failed, or was not supervised.
    """
    cpus = os.sched_getaffinity(0)
    # On one CPU, as gVisor's own table was measured; children inherit it.
    os.sched_setaffinity(0, {min(cpus)})
    try:
        figures: dict[str, dict[str, float | None]] = {}
        for name in chosen or LOOPS:
            say(f"measuring {name}")
            figures[name] = _per_turn(folder, name, [column for column in columns if column.run], runs)
        return CallCosts(tuple(columns), figures)
    finally:
        os.sched_setaffinity(0, cpus)


def _per_turn(root: Path, name: str, columns: Sequence[Column], runs: int) -> dict[str, float | None]:
    """Return ns of one turn of the loop by column: a long run less a short one, by the difference of their turns.

    Columns take turns, so that what else the machine does meanwhile falls on all of them.
    """
    long = {column.title: min(column.count, _FEWER.get((name, _kind(column)), column.count)) for column in columns}
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(runs):
        for column in columns:
            for turns in (1, long[column.title] + 1):
                seconds.setdefault((column.title, turns), []).append(_seconds(root, name, column, turns))
    figures: dict[str, float | None] = {}
    for title, count in long.items():
        difference = statistics.median(seconds[title, count + 1]) - statistics.median(seconds[title, 1])
        figures[title] = difference * 1e9 / count if difference > 0 else None
    return figures


def _kind(column: Column) -> str:
    return "gvisor" if column.title.startswith("gVisor") else NATIVE


def _seconds(root: Path, name: str, column: Column, turns: int) -> float:
    assert column.run is not None
    make_loop_root(root, column.build(name, turns))
    ran = column.run(root)
    if ran.exit_code:
        said = ran.stderr.decode(errors="replace").strip()[:200]
        raise InputError(f"the loop of {name}, {column.title}, ended with {ran.exit_code}: {said}")
    if column.build is not build_loop:
        asked = int.from_bytes(ran.stdout[:8], "little")
        if asked < turns:
            raise InputError(f"{column.title}: {asked} of {turns} calls of {name} were supervised")
    return ran.wall_s


def _run_natively(root: Path) -> runtimes.HostRun:
    return runtimes.run_native(root, ["/bin/loop"])


def _run_gvisor(root: Path, runsc: Any, platform: str) -> runtimes.HostRun:
    return runtimes.run_gvisor(root, ["/bin/loop"], runsc, platform)


def measured_before() -> tuple[str, dict[str, Mapping[str, Any]]]:
    """Return where gVisor's table was measured, and its rows by the names of the loops."""
    data = tomllib.loads(FILE.read_text())
    rows = {name: row for name in LOOPS for row in data["calls"] if name.startswith(row["name"])}
    return str(data["measured"]), rows


def render_costs(found: CallCosts) -> str:
    """Return Markdown, as the table of docs/plan.md: ns, and the ratio to native."""
    source, before = measured_before()
    lines = [f"| call | {' | '.join(column.title for column in found.columns)} |"]
    lines.append(f"|---|{'---:|' * len(found.columns)}")
    bracketed = False
    for name, figures in found.figures.items():
        native = figures.get(NATIVE)
        cells = []
        for column in found.columns:
            ns = figures.get(column.title)
            if column.missing and column.before in before[name]:
                old = before[name][column.before]
                cells.append(f"[{old:,} ({_ratio(old / before[name]['native'])}x)]")
                bracketed = True
            else:
                cells.append(_cell(ns, native, column))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "ns of one turn of the loop on one CPU, and how many times the native one that is."]
    if bracketed:
        lines.append(f"In brackets: not measured here, but on a {source}; noise about 25 %.")
    lines += [f"{column.title}: {column.missing}" for column in found.columns if column.missing]
    return "\n".join(lines)


def _cell(ns: float | None, native: float | None, column: Column) -> str:
    if ns is None:
        return ""
    return f"{ns:,.0f}" + (f" ({_ratio(ns / native)}x)" if native and column.title != NATIVE else "")


def _ratio(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
