"""Kernel functions a workload entered, beside the horizontal attack profiles others published.

Source of figures and method: coverage/published.py. They are set side by side, never subtracted.
"""

from thinbox.coverage.published import METHOD, PUBLISHED
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
from thinbox.report.page.coverage_file import CoverageFile
from thinbox.report.page.run_file import CoverageTotals
from thinbox.report.page.visible import shorten

_SHOWN = 400
_LONGEST_NAME = 40


def totals_blocks(totals: CoverageTotals, what: str) -> tuple[Block, ...]:
    """Return the workload's row above the published ones, and what differs in method."""
    sources = list(dict.fromkeys(figure.source for figure in PUBLISHED))
    rows = [cells(Cell(f"this workload ({what})", "plain"), "none (thinbox)", totals.hap, number(totals.hap_traceable))]
    rows += [
        cells(
            f"{figure.workload} [{sources.index(figure.source) + 1}]",
            figure.sandbox,
            None,
            f"about {figure.functions:,}",
        )
        for figure in PUBLISHED
    ]
    lost = f" {count(totals.lost_blocks, 'block')} found no room: ours are lower bounds." if totals.lost_blocks else ""
    notes = " ".join(f"[{at}] {source}." for at, source in enumerate(sources, 1))
    table = Table(
        "Distinct kernel functions entered (horizontal attack profile)",
        columns("what ran", "sandbox", "#functions entered", "#of those ftrace sees"),
        tuple(rows),
        f"{notes} Executed: {count(totals.functions_executed, 'function')}, {count(totals.executed_pages, 'page')} of "
        f"text.{lost}",
    )
    return (table, Notes(tuple(_method())))


def _method() -> list[str]:
    return [" ".join(line.split()) for line in METHOD.removeprefix("- ").replace("`", "").split("\n- ")]


def coverage_section(found: CoverageFile, source: str, runs: tuple[str, ...]) -> Section:
    """Return the section of a coverage file; `runs` are the records on the page that have the same totals."""
    totals = found.totals
    calls = sorted(found.calls, key=lambda call: (-call.functions_entered, call.name))
    rows = [
        cells(
            Cell(shorten(call.name, _LONGEST_NAME), code=True),
            call.calls,
            call.isolated,
            call.functions_entered,
            call.functions_traceable,
            len(call.executed_pages),
            None if call.data_pages is None else len(call.data_pages),
            None if call.written_pages is None else len(call.written_pages),
        )
        for call in calls[:_SHOWN]
    ]
    table = Table(
        "Functions and pages by call, most functions first",
        columns(
            "call", "#times", "#isolated", "#functions entered", "#ftrace sees", "#text pages", "#data pages",
            "#of these written",
        ),
        tuple(rows),
        "Data pages are known for isolated calls only.",
    )  # fmt: skip
    tone: Tone = "warn" if totals.lost_blocks else "plain"
    entered = f"{'at least ' if totals.lost_blocks else ''}{count(totals.hap, 'kernel function')}"
    whose = f" Its totals are those of {', '.join(runs)}." if runs else ""
    text = f"The workload entered {entered}, {totals.hap_traceable:,} of them visible to ftrace.{whose}"
    parts = (Part("By call", (table,)), Part("Beside the published figures", totals_blocks(totals, source)))
    return Section("Coverage", source, "kernel functions and pages used", Headline(tone, text), (), parts)
