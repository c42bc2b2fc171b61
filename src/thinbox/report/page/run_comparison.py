"""Several runs beside one another: an overview of all, and those of the same command column by column.

Rules of this file: runs are compared only where the command is the same; kernels, policies, views and plans are rows,
so that what differs is seen.
"""

import statistics
from collections.abc import Callable, Sequence

from thinbox.report.page.blocks import Block, Cell, Column, Notes, Part, Table, cells, columns, number, share, virtual
from thinbox.report.page.call_tables import NAMES_SHOWN, VIRTUAL_NOTE, calls_by_name
from thinbox.report.page.faults import fault_spread
from thinbox.report.page.run_file import RunFile
from thinbox.report.page.run_verdict import exit_text, short_verdict
from thinbox.report.page.visible import command_line, shorten

_SHORT = 60
_MOST_COLUMNS = 12
Named = tuple[str, RunFile]
"""What a run is called on the page, and the run."""


def overview(runs: Sequence[Named], caption: str) -> Table:
    """Return one row a run."""
    rows = []
    for name, run in runs:
        word, whole = short_verdict(run)
        spread = fault_spread(run)
        rows.append(
            cells(
                name,
                Cell(word, whole.tone),
                _policy(run),
                run.view or "",
                Cell(command_line(run.command, _SHORT), code=True),
                str(run.exit_code),
                run.totals.calls,
                run.totals.isolated,
                run.totals.code_faults,
                run.totals.data_faults,
                spread.median if spread else None,
                virtual(run.totals.virtual_ns) if run.totals.virtual_ns is not None else None,
            )
        )
    heads = columns(
        "run", "verdict", "policy", "view", "command", "#status", "#calls", "#isolated", "#code faults", "#data faults",
        "#median faults", "#virtual time",
    )  # fmt: skip
    return Table(caption, heads, tuple(rows), VIRTUAL_NOTE)


def same_workloads(runs: Sequence[Named]) -> list[Part]:
    """Return a part for each command that was run more than once."""
    groups: dict[tuple[str, ...], list[Named]] = {}
    for named in runs:
        groups.setdefault(named[1].command, []).append(named)
    return [
        Part(f"Same workload: {command_line(command, _SHORT)}", _side_by_side(group))
        for command, group in groups.items()
        if len(group) > 1
    ]


def _side_by_side(group: Sequence[Named]) -> tuple[Block, ...]:
    shown = group[:_MOST_COLUMNS]
    heads = (Column("what"), *(Column(name, number=True) for name, _run in shown))
    blocks: tuple[Block, ...] = (_figures(shown, heads), _faults_by_call(shown, heads))
    if len(group) > len(shown):
        blocks += (Notes((f"{len(group) - len(shown):,} more runs of it have no column here; see their sections.",)),)
    return blocks


def _figures(group: Sequence[Named], heads: tuple[Column, ...]) -> Table:
    runs = [run for _name, run in group]
    lines: list[tuple[str, Callable[[RunFile], str | int | Cell | None]]] = [
        ("verdict", lambda run: Cell(short_verdict(run)[0], short_verdict(run)[1].tone)),
        ("policy", _policy),
        ("view", lambda run: run.view or "not in the record"),
        ("plan", lambda run: shorten(run.plan, _SHORT) or None),
        ("kernel", lambda run: shorten(run.kernel.release, _SHORT)),
        ("ended with", lambda run: exit_text(run.exit_code)),
        ("calls", lambda run: run.totals.calls),
        ("isolated", lambda run: run.totals.isolated),
        ("ran un-isolated", lambda run: run.totals.reaching_unisolated),
        ("refused by the plan", lambda run: run.totals.refused if run.plan else None),
        ("code faults", lambda run: run.totals.code_faults),
        ("data faults", lambda run: run.totals.data_faults),
        ("faults of the median isolated call", lambda run: spread.median if (spread := fault_spread(run)) else None),
        ("faults of the widest call", lambda run: spread.most if (spread := fault_spread(run)) else None),
        ("gadgets left, median call", lambda run: _gadgets(run, "median")),
        ("gadgets left, widest call", lambda run: _gadgets(run, "most")),
        ("kernel functions entered", lambda run: run.coverage.hap if run.coverage else None),
        ("virtual time", lambda run: virtual(run.totals.virtual_ns) if run.totals.virtual_ns is not None else None),
    ]
    rows = [cells(title, *values) for title, take in lines if any(values := [take(run) for run in runs])]
    return Table("Figures side by side", heads, tuple(rows), VIRTUAL_NOTE)


def _policy(run: RunFile) -> str:
    return shorten(run.policy, _SHORT) + ("" if run.totals.isolated else " (not asked)")


def _gadgets(run: RunFile, which: str) -> str | None:
    if run.surface is None or run.surface.all is None:
        return None
    left, whole = int(getattr(run.surface.all.gadgets, which)), run.surface.unisolated.gadgets.total
    return f"{number(left)} ({share(left, whole)})"


def _faults_by_call(group: Sequence[Named], heads: tuple[Column, ...]) -> Table:
    names: dict[str, int] = {}
    columns_of = []
    for _name, run in group:
        found = {}
        for name, calls in calls_by_name(run.calls):
            faults = [call.faults for call in calls if call.isolated]
            killed = any(call.verdict == "killed" for call in calls)
            median = number(statistics.median_low(faults)) if faults else "un-isolated"
            found[name] = Cell(f"{len(calls):,} x {median}" + (", killed" if killed else ""), "bad" if killed else "")
            names[name] = max(names.get(name, 0), sum(faults))
        columns_of.append(found)
    ordered = sorted(names, key=lambda name: (-names[name], name))
    rows = [
        cells(Cell(shorten(name, _SHORT), code=True), *(found.get(name, Cell("not called")) for found in columns_of))
        for name in ordered[:NAMES_SHOWN]
    ]
    return Table("Calls: times x median faults, most faults first", (Column("call"), *heads[1:]), tuple(rows))
