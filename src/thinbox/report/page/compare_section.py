"""Comparisons as sections of the page: a workload in several runtimes, and single calls by ns.

Rules of this file: one table for each clock, ratios within it only; host time is called host time.
"""

from collections.abc import Sequence

from thinbox.report.page.blocks import (
    Block,
    Cell,
    Fact,
    Facts,
    Headline,
    Notes,
    Part,
    Section,
    Table,
    cells,
    columns,
    count,
    without_empty,
)
from thinbox.report.page.compare_file import CallCostsFile, CompareFile, RuntimeRow
from thinbox.report.page.run_verdict import exit_text
from thinbox.report.page.visible import command_line, shorten

_LONGEST = 600
_SHOWN = 100
_MOST_CALLED = 12
_CLOCKS = {
    "host": "Host clock: wall time on the machine that compared, start of the sandbox included",
    "emulated": "Emulated: wall time of the emulation, which says nothing of any hardware",
}
NATIVE = "native"


def compare_section(found: CompareFile, source: str) -> Section:
    """Return the section of `thinbox compare --json`."""
    parts = []
    for clock, words in _CLOCKS.items():
        rows = [row for row in found.rows if row.clock == clock]
        if rows:
            parts.append(Part(f"Runtimes on the {clock} clock", (_runtimes(rows, words), *_notes(rows))))
    made = [row for row in found.rows if row.host and (row.host.made or row.host.missing)]
    if made:
        parts.append(Part("Calls asked of the host", tuple(block for row in made for block in _host_calls(row))))
    facts = Facts((Fact("Command", command_line(found.command, 4000), code=True, long=True),))
    return Section("Comparison", source, command_line(found.command, 80), _headline(found.rows), (facts,), tuple(parts))


def _headline(rows: Sequence[RuntimeRow]) -> Headline:
    entered = [row for row in rows if row.exit_code is not None]
    absent = len(rows) - len(entered)
    statuses = {row.exit_code for row in entered}
    ended = f"all ended with {exit_text(next(iter(statuses)) or 0)}" if len(statuses) == 1 else "they did not end alike"
    least = [row for row in entered if row.unisolated is not None]
    best = min(least, key=lambda row: (row.unisolated or 0, row.reaching or 0), default=None)
    fewest = ""
    if best is not None and best.unisolated is not None:
        fewest = f" Fewest calls reach the shared kernel un-isolated in {shorten(best.name, 80)}: {best.unisolated:,}."
    gone = f", {count(absent, 'runtime')} could not be entered" if absent else ""
    text = (
        f"{count(len(entered), 'runtime')} ran the workload{gone}; {ended}.{fewest}"
        if entered
        else "No runtime could be entered."
    )
    alike = len(statuses) == 1 and not absent
    return Headline("plain" if alike else "warn", text)


def _runtimes(rows: Sequence[RuntimeRow], words: str) -> Table:
    body = [
        cells(
            shorten(row.name, _LONGEST),
            Cell("not entered", "warn") if row.exit_code is None else str(row.exit_code),
            row.calls,
            row.reaching,
            row.unisolated,
            row.functions,
            row.host_calls,
            row.host_made,
            None if row.ratio is None else f"{row.ratio:,.2f}",
            None if row.wall_s is None else f"{row.wall_s:,.3f}",
        )
        for row in rows[:_SHOWN]
    ]
    table = Table(
        words,
        columns(
            "runtime", "#status", "#calls", "#reach the shared kernel", "#of these un-isolated",
            "#kernel functions entered", "#different host calls allowed", "#made",
            "#ratio to the first", "#s by this clock",
        ),
        tuple(body),
        "Ratios are to the first runtime of this clock; the two clocks are never set against each other.",
    )  # fmt: skip
    return without_empty(table)


def _notes(rows: Sequence[RuntimeRow]) -> tuple[Block, ...]:
    said = tuple(f"{shorten(row.name, 80)}: {shorten(row.note, _LONGEST)}" for row in rows[:_SHOWN] if row.note)
    return (Notes(said),) if said else ()


def _host_calls(row: RuntimeRow) -> tuple[Block, ...]:
    assert row.host is not None
    blocks: list[Block] = []
    if row.host.made:
        rows = []
        for role, calls in list(row.host.made.items())[:_SHOWN]:
            ordered = sorted(calls.items(), key=lambda item: (-item[1], item[0]))
            named = ", ".join(f"{name} {times:,}" for name, times in ordered[:_MOST_CALLED])
            rows.append(cells(shorten(role, 80), sum(calls.values()), len(calls), Cell(named, code=True)))
        caption = f"{shorten(row.name, 80)}: calls the host kernel ran for it"
        blocks.append(Table(caption, columns("process", "#calls", "#different", "most often"), tuple(rows)))
    if row.host.missing:
        blocks.append(Notes(tuple(f"{row.name}: {shorten(text, _LONGEST)}" for text in row.host.missing[:_SHOWN])))
    return tuple(blocks)


def call_costs_section(found: CallCostsFile, source: str) -> Section:
    """Return the section of `thinbox compare --calls --json`."""
    shown = [column for column in found.columns if any(column.title in call.ns for call in found.calls)]
    rows = []
    for call in found.calls[:_SHOWN]:
        native = call.ns.get(NATIVE)
        rows.append(
            cells(Cell(call.name, code=True), *(_ns(call.ns.get(each.title), native, each.title) for each in shown))
        )
    table = Table(
        "ns of one turn by the host's clock, and how many times the native one",
        columns("call", *(f"#{column.title}" for column in shown)),
        tuple(rows),
        "Measured on the host that ran the comparison, on one CPU; an empty cell was lost in the noise.",
    )
    missing = tuple(
        f"{column.title}: {shorten(column.missing, _LONGEST)}" for column in found.columns if column.missing
    )
    blocks: tuple[Block, ...] = (table, Notes(missing)) if missing else (table,)
    text = f"{count(len(found.calls), 'call')} measured in {count(len(shown), 'way')}, by host time."
    return Section(
        "Costs of single calls",
        source,
        "natively, supervised, under gVisor",
        Headline("plain", text),
        (),
        (Part("By call", blocks),),
    )


def _ns(value: float | None, native: float | None, title: str) -> str | None:
    if value is None:
        return None
    times = f" ({value / native:,.1f}x)" if native and native > 0 and title != NATIVE else ""
    return f"{value:,.0f}{times}"
