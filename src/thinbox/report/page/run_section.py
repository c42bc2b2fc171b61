"""One run as a section of the page: its verdict, what was refused and why, its calls, and whatever else was measured.

Rules of this file: what is not in the record is not shown and not made up; host time stands under host time only.
"""

from collections import Counter

from thinbox.isolation.verdict import PLANNED, Violation
from thinbox.report.page.blocks import (
    Advice,
    Block,
    Cell,
    Fact,
    Facts,
    Notes,
    Part,
    Section,
    Table,
    Tile,
    Tiles,
    cells,
    columns,
    count,
    number,
    share,
    virtual,
    without_empty,
)
from thinbox.report.page.call_tables import VIRTUAL_NOTE, call_blocks
from thinbox.report.page.coverage_section import totals_blocks
from thinbox.report.page.faults import fault_spread
from thinbox.report.page.remedy import REFUSED, plain_rule, remedy_of
from thinbox.report.page.run_file import RunFile
from thinbox.report.page.run_verdict import exit_text, headline_of
from thinbox.report.page.surface_blocks import surface_blocks
from thinbox.report.page.visible import command_line, shorten

LONGEST_COMMAND = 4000
_SHORT_COMMAND = 80
_SHOWN = 200
_LONGEST_REASON = 400


def run_section(run: RunFile, source: str, cost: tuple[Block, ...] = (), tenant: str | None = None) -> Section:
    """Return the section of a run; `cost` are blocks of what it would cost, `tenant` its name if one of several."""
    parts = [Part("Violations", _violation_blocks(run.violations))] if run.violations else []
    if run.refusals:
        parts.append(Part("Refused by the plan", _refusal_blocks(run)))
    parts.append(Part("Calls", (*_left_out(run), *call_blocks(run.calls))))
    if run.plan:
        parts.append(Part("Plan and phases", _plan_blocks(run)))
    if run.surface:
        parts.append(Part("What a call leaves to an exploit", surface_blocks(run.surface)))
    if run.coverage:
        parts.append(Part("Kernel functions entered", totals_blocks(run.coverage, source)))
    if cost:
        parts.append(Part("What it would cost, modelled", cost))
    kind = f"Tenant {shorten(tenant, _SHORT_COMMAND)}" if tenant is not None else "Run"
    what = command_line(run.command, _SHORT_COMMAND)
    return Section(kind, source, what, headline_of(run), (_tiles(run), _facts(run)), tuple(parts))


def _left_out(run: RunFile) -> tuple[Block, ...]:
    if not run.calls_left_out:
        return ()
    what = count(run.calls_left_out, "call")
    return (Notes((f"The record leaves out {what}; they are in its totals, and not in what follows.",)),)


def _tiles(run: RunFile) -> Tiles:
    totals, spread = run.totals, fault_spread(run)
    granted = totals.code_faults + totals.data_faults
    unisolated = totals.reaching_unisolated
    reached = totals.calls - totals.isolated if unisolated is None else unisolated
    entries = [
        Tile("calls", number(totals.calls), f"{number(totals.isolated)} isolated"),
        Tile(
            "ran un-isolated",
            number(reached),
            f"{share(reached, totals.calls)} of the calls" if reached else "",
            "warn" if reached else "",
        ),
        Tile("pages granted", number(granted), f"{number(totals.code_faults)} code, {number(totals.data_faults)} data"),
    ]
    if spread:
        entries.append(Tile("faults a call", number(spread.median), f"median; {number(spread.most)} at most"))
    entries.append(
        Tile("calls killed", number(len(run.violations) + run.kills_left_out), "", "bad" if run.violations else "")
    )
    if run.plan or run.refusals:
        entries.append(Tile("calls refused", number(run.totals.refused), "", "warn" if run.refusals else ""))
    return Tiles(tuple(entries))


def _facts(run: RunFile) -> Facts:
    totals, kernel = run.totals, run.kernel
    slid = f", moved by {kernel.slide:#x} (KASLR)" if kernel.slide else ""
    host = f"{totals.wall_s:,.2f} s to emulate the run"
    if totals.fault_us_median is not None:
        host += f", {totals.fault_us_median:,.1f} µs for the median fault"
    freed = f"{count(totals.tables_made, 'table')} made, {number(totals.tables_freed)} freed"
    pages = f"{number(totals.table_pages_made)} and {number(totals.table_pages_freed)} pages"
    entries = [
        Fact("Command", command_line(run.command, LONGEST_COMMAND), code=True, long=True),
        Fact("Kernel", f"Linux {kernel.release}{slid}"),
        Fact("Its SHA-256", kernel.sha256, code=True),
        Fact("Policy", run.policy),
        Fact("View", "not in the record" if run.view is None else run.view),
        Fact("Ended", exit_text(run.exit_code)),
        Fact("SCI page tables", f"{freed} ({pages})"),
    ]
    if run.plan:
        entries.insert(5, Fact("Plan", run.plan))
    if totals.virtual_ns is not None:
        entries.append(Fact("Virtual time", virtual(totals.virtual_ns)))
    entries.append(Fact("Host time", f"{host}: thinbox's own speed where it ran, nothing of the guest's"))
    return Facts(tuple(entries))


def _violation_blocks(kills: tuple[Violation, ...]) -> tuple[Block, ...]:
    rows = [
        cells(
            Cell(kill.call, code=True),
            "call" if kill.kind == PLANNED else kill.kind,
            Cell(_place(kill), code=True),
            Cell(kill.rule, "bad"),
            f"view {kill.view}" if kill.view else f"policy {kill.policy}",
            shorten(kill.reason, _LONGEST_REASON),
            kill.owner or "",
            "rolled back" if kill.undone else "",
        )
        for kill in kills[:_SHOWN]
    ]
    note = f"{number(len(kills) - _SHOWN)} more are in the record." if len(kills) > _SHOWN else ""
    heads = columns("call", "access", "place", "rule", "judged by", "reason", "owner of the page", "undone")
    blocks: list[Block] = [without_empty(Table("What was refused and killed, in order", heads, tuple(rows), note))]
    by_words = {remedy_of(kill): f"Rule {plain_rule(kill.rule)}" for kill in reversed(kills[:_SHOWN])}
    for remedy, title in reversed(by_words.items()):
        blocks.append(Advice(shorten(title, _LONGEST_REASON), remedy.meaning, remedy.action))
    return tuple(blocks)


def _place(kill: Violation) -> str:
    if kill.kind == PLANNED:
        return ""
    return f"{kill.symbol}+{kill.offset:#x} ({kill.vaddr:#x})" if kill.symbol else f"{kill.vaddr:#x}"


def _refusal_blocks(run: RunFile) -> tuple[Block, ...]:
    groups = Counter[tuple[str, str, str, int, int, str]]()
    for refusal in run.refusals:
        kind = (refusal.call, refusal.arguments, refusal.disposition, refusal.errno, refusal.line, refusal.reason)
        groups[kind] += refusal.times
    rows = [
        cells(
            Cell(call, code=True),
            Cell(shorten(arguments, _LONGEST_REASON), code=True),
            times,
            disposition,
            str(line),
            shorten(reason, _LONGEST_REASON),
        )
        for (call, arguments, disposition, _errno, line, reason), times in groups.most_common(_SHOWN)
    ]
    note = f"{number(len(groups) - _SHOWN)} more kinds are in the record." if len(groups) > _SHOWN else ""
    if run.refusals_truncated:
        note = f"{note} Others were counted only: the record keeps so many kinds of each call.".strip()
    heads = columns("call", "argument", "#times", "answer", "#line of the plan", "reason")
    return (
        without_empty(Table("Calls that the plan refused, most often first", heads, tuple(rows), note)),
        Advice("Refused by a plan", REFUSED.meaning, REFUSED.action),
    )


def _plan_blocks(run: RunFile) -> tuple[Block, ...]:
    marker = run.steady_seq
    groups: dict[str, list[int]] = {}
    for call in run.calls:
        row = groups.setdefault(call.disposition or "not judged", [0, 0, 0, 0])
        row[0] += 1
        row[1] += marker is not None and call.seq >= marker
        row[2] += call.faults
        row[3] += call.virtual_ns
    rows = [
        cells(name, total, total - steady if marker is not None else None, steady if marker is not None else None,
              faults, virtual(spent))
        for name, (total, steady, faults, spent) in sorted(groups.items(), key=lambda item: (-item[1][0], item[0]))
    ]  # fmt: skip
    if marker is None:
        phases = "No phase marker was reached, so start-up and steady state are not told apart."
    else:
        phases = f"The steady state began with call {marker:,}."
    caption = f"What plan {shorten(run.plan, _SHORT_COMMAND)} made of the calls"
    heads = columns("disposition", "#calls", "#in start-up", "#in steady state", "#faults", "#virtual time")
    return (without_empty(Table(caption, heads, tuple(rows), f"{phases} {VIRTUAL_NOTE}")),)
