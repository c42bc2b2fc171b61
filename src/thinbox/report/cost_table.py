"""The cost report: a table for the terminal and the object of `thinbox cost --json`."""

import shutil
from dataclasses import asdict
from typing import Any

import numpy as np

from thinbox.cost import replay
from thinbox.cost.model import CAUSES, Interval, ModeCost, Model
from thinbox.cost.peers import break_even, reference_cpu
from thinbox.cost.prepopulate import remaining_faults, surface_added

SCHEMA = "thinbox.cost/1"
_MOST_WIDTH = 140
_COUNTS = {
    "cr3_flush": replay.SWITCH_FLUSH,
    "cr3_keep": replay.SWITCH_KEEP,
    "l2_hits": replay.L2_HITS,
    "walks": replay.WALKS,
    "walk_loads": replay.WALK_LOADS,
    "faults": replay.FAULTS,
}


def render_costs(title: str, costs: list[ModeCost]) -> str:
    """Return the table as text: what each mode adds on each CPU, in cycles, by cause."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ("cpu", "mode", "median call", "mean call", *CAUSES, "1% from calls/s")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("cpu", "mode") else "right", no_wrap=True)
    last = ""
    for cost in costs:
        if cost.mode.name == "none":
            continue
        calls = max(1, len(cost.per_call))
        cells = [cost.median, cost.total.scaled(1 / calls), *[cost.causes[c].scaled(1 / calls) for c in CAUSES]]
        cells.append(rate_for(cost, 0.01))
        table.add_row(cost.cpu.name if cost.cpu.name != last else "", cost.mode.name, *map(span, cells))
        last = cost.cpu.name
    width = max(min(shutil.get_terminal_size((_MOST_WIDTH, 24)).columns, 2 * _MOST_WIDTH), _MOST_WIDTH)
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    how = "misses replayed" if costs and costs[0].replayed else "misses bounded: no trace (record with --events)"
    head = f"{title}: cycles added to no isolation, low..high from the profiles' figures; {how}; nothing is measured"
    return f"{head}\n{captured.get().rstrip()}"


def short(value: float) -> str:
    """Return a count in three digits and a letter."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:,.0f}"


def span(interval: Interval) -> str:
    """Return an interval as text."""
    return short(interval.high) if interval.low == interval.high else f"{short(interval.low)}..{short(interval.high)}"


def rate_for(cost: ModeCost, share: float) -> Interval:
    """Return from how many calls a second the mode costs more than `share` of a CPU's time.

    Low: dearest figures on the slowest clock. The clock is the profile's.
    """
    frequency = cost.cpu.figures["frequency_ghz"]
    mean = cost.total.scaled(1 / max(1, len(cost.per_call)))
    return Interval(
        share * frequency.low * 1e9 / max(mean.high, 1e-9), share * frequency.high * 1e9 / max(mean.low, 1e-9)
    )


def per_fault(model: Model, cost: ModeCost) -> Interval:
    """Cycles of one granted fault: the round trip, two CR3 writes, the judgement."""
    figures = cost.cpu.figures
    write = figures["cr3_keep"] if cost.cpu.pcid and cost.mode.wants_pcid is not False else figures["cr3_flush"]
    parts = (figures["fault_round_trip"], write, write, model.software["grant"], model.software["forget"])
    return Interval(sum(part.low for part in parts), sum(part.high for part in parts))


def surface_json(model: Model) -> dict[str, Any] | None:
    """Return what pre-populating maps beyond what calls touch, and the faults it leaves; None without a trace."""
    trace = model.workload.trace
    if trace is None or not (trace.grants[:, 0] >= 0).any():
        return None
    names, pids = model.workload.names, model.workload.pids
    left = remaining_faults(trace.grants, names, pids, "profile")
    return asdict(surface_added(trace.grants, names, pids, left))


def costs_json(title: str, model: Model, costs: list[ModeCost]) -> dict[str, Any]:
    """Return the object of `thinbox cost --json`."""
    rows = []
    for cost in costs:
        calls = max(1, len(cost.per_call))
        low, high = cost.counts[0].sum(axis=0), cost.counts[1].sum(axis=0)
        rows.append(
            {
                "cpu": cost.cpu.name,
                "mode": cost.mode.name,
                "gives_away": cost.mode.gives_away,
                "median_call_cycles": asdict(cost.median),
                "mean_call_cycles": asdict(cost.total.scaled(1 / calls)),
                "total_cycles": asdict(cost.total),
                "causes": {name: asdict(value) for name, value in cost.causes.items()},
                "events_added": {n: {"low": int(low[i]), "high": int(high[i])} for n, i in _COUNTS.items()},
                "calls_per_second_for": {str(s): asdict(rate_for(cost, s)) for s in (0.01, 0.05, 0.10)},
            }
        )
    return {
        "schema": SCHEMA,
        "workload": title,
        "calls": len(model.workload.names),
        "faults_median": float(np.median(model.workload.faults)) if len(model.workload.faults) else 0.0,
        "replayed": model.workload.trace is not None,
        "trace_lost": model.workload.trace.lost if model.workload.trace else 0,
        "prepopulation": surface_json(model),
        "rows": rows,
        "break_even": break_even_json(model, costs),
    }


def break_even_json(model: Model, costs: list[ModeCost]) -> list[dict[str, Any]]:
    """Return the comparison with gVisor, on the profile closest to where gVisor was measured."""
    return [
        {"cpu": cost.cpu.name, "mode": cost.mode.name, **asdict(row)}
        for cost in costs
        if cost.cpu.name == reference_cpu() and cost.mode.name != "none"
        for row in break_even(cost, model.workload.names, per_fault(model, cost))
    ]
