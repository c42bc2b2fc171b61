"""What isolation would cost on real CPUs: from the model, out of a run on the page or out of `thinbox cost --json`.

Why it exists: the page asks `thinbox.cost`, it models nothing itself. Of a run it uses the counts in the record: a
trace of pages is not opened (docs/report.md says why), so misses are bounded, and the intervals are wide.

Rules of this file: every figure is modelled, and says so.
"""

from typing import Any

from thinbox.errors import InputError
from thinbox.report.page.blocks import (
    Block,
    Cell,
    Headline,
    Notes,
    Part,
    Section,
    Table,
    Tone,
    cells,
    columns,
    count,
    number,
)
from thinbox.report.page.cost_file import CostFile, Range
from thinbox.report.page.run_file import RunFile
from thinbox.report.page.visible import shorten

_MODES = ("pti", "sci", "sci-prepopulated")
_LONGEST_NAME = 60
_SHOWN = 200
_MODELLED = (
    "Modelled cycles added to a call by the mode, over no isolation on that CPU: events counted in the emulator times "
    "published or assumed cycles of the CPU, from the lowest to the highest. Nothing was measured on these CPUs."
)
_BOUNDED = (
    " Misses of the TLB are bounded, not replayed: for narrower intervals give this page what `thinbox cost --json` "
    "made of a record with `--events`."
)


def run_cost_blocks(run: RunFile, raw: dict[str, Any]) -> tuple[Block, ...]:
    """Return what the run would cost, nothing if the record lacks what that needs; `raw` is the object it was."""
    if run.events is None or not run.totals.isolated:
        return ()
    from thinbox.cost.model import Interval, Model
    from thinbox.cost.modes import find_mode
    from thinbox.cost.profiles import cpu_names, find_profile
    from thinbox.cost.workload import workload_of
    from thinbox.report.cost_table import rate_for, span

    try:
        model = Model(workload_of(raw, None))
    except InputError as error:
        return (Notes((f"No cost: {error}.",)),)
    modes = tuple(mode for name in _MODES if (mode := find_mode(name)))
    rows = []
    for cost in model.costs([find_profile(name) for name in cpu_names()], modes):
        mean = cost.total.scaled(1 / max(1, len(cost.per_call)))
        free = mean == Interval(0.0, 0.0)
        rate = "never" if free else span(rate_for(cost, 0.01))
        rows.append(cells(cost.cpu.title, cost.mode.name, span(cost.median), span(mean), rate))
    return (_table(rows, _BOUNDED),)


def _table(rows: list[tuple[Cell, ...]], more: str) -> Table:
    return Table(
        "Cycles added to a call, modelled",
        columns("CPU", "mode", "#median call", "#mean call", "#calls a second from which it costs 1 % of a CPU"),
        tuple(rows),
        _MODELLED + more,
    )


def cost_section(found: CostFile, source: str) -> Section:
    """Return the section of a file of `thinbox cost --json`."""
    rows = [
        cells(
            shorten(row.cpu, _LONGEST_NAME),
            shorten(row.mode, _LONGEST_NAME),
            _span(row.median_call_cycles),
            _span(row.mean_call_cycles),
            _span(row.calls_per_second_for["0.01"]) if "0.01" in row.calls_per_second_for else None,
        )
        for row in found.rows[:_SHOWN]
        if row.mode != "none"
    ]
    parts = [Part("Cost by CPU and mode", (_table(rows, "" if found.replayed else _BOUNDED),))]
    if found.break_even:
        parts.append(Part("Against user-space emulation", (_break_even(found),)))
    given = dict.fromkeys((row.mode, row.gives_away) for row in found.rows)
    away = tuple(cells(shorten(mode, _LONGEST_NAME), shorten(text, 300)) for mode, text in list(given)[:_SHOWN])
    modes = Table("What each mode gives away", columns("mode", "what it gives away"), away)
    parts.append(Part("Modes", (modes,)))
    how = "misses replayed through the TLB model" if found.replayed else "misses bounded"
    cut = f"; the trace is cut, {count(found.trace_lost, 'word')} lost" if found.trace_lost else ""
    text = (
        f"Modelled from {count(found.calls, 'call')} with {found.faults_median:,.0f} faults at the median; {how}{cut}."
    )
    tone: Tone = "warn" if found.trace_lost else "plain"
    return Section("Cost", source, shorten(found.workload, _LONGEST_NAME), Headline(tone, text), (), tuple(parts))


def _break_even(found: CostFile) -> Table:
    platforms = list(dict.fromkeys(name for row in found.break_even for name in row.gvisor_ns))
    heads = [f"#gVisor {name} adds, ns" for name in platforms] + [f"cheaper than {name}" for name in platforms]
    words = {"isolation": Cell("yes", "good"), "gvisor": Cell("no", "bad"), "open": Cell("open")}
    rows = []
    for row in found.break_even[:_SHOWN]:
        theirs = [_span(row.gvisor_ns[name]) if name in row.gvisor_ns else None for name in platforms]
        said = [words.get(row.cheaper.get(name, ""), Cell("")) for name in platforms]
        rows.append(cells(Cell(row.call, code=True), row.mode, _span(row.added_ns), *theirs, *said))
    return Table(
        "Isolation, modelled, against gVisor as measured: ns added to a call",
        columns("call", "mode", "#isolation adds, ns", *heads),
        tuple(rows),
        f"On the profile of {found.break_even[0].cpu}, the CPU nearest to where gVisor was measured. "
        "Open: the intervals meet.",
    )


def _span(value: Range) -> str:
    low, high = number(round(value.low)), number(round(value.high))
    return low if low == high else f"{low}..{high}"
