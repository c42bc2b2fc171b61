"""The calls of a run as tables and charts: by name, and the costliest ones each.

Rules of this file: all orders are by faults, then by name or number, so that equal input gives equal bytes. Time is
virtual and says so.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from thinbox.report.audit import result_text
from thinbox.report.page.blocks import Block, Cell, Notes, Table, cells, columns, count, virtual
from thinbox.report.page.chart import histogram, stacked_bars
from thinbox.report.page.run_file import RunCall
from thinbox.report.page.visible import shorten
from thinbox.sandbox.arguments import show_value
from thinbox.syscalls.table import ArgKind, call_info

NAMES_SHOWN = 400
"""x86-64 has some 370 calls; a record with more names than these made some up."""
_BARS, _COSTLIEST = 12, 15
_LONGEST_NAME, _LONGEST_ARGUMENT = 40, 60
_SIGNED = frozenset({ArgKind.FD, ArgKind.DIRFD, ArgKind.PID})
_HALF, _SIGN = (1 << 32) - 1, 1 << 31
"""Kinds of which the kernel takes an `int`, -1 and AT_FDCWD (-100) among them."""
VIRTUAL_NOTE = (
    "Virtual time counts bytes of code executed and time slept, the same in every run; it is no time of any hardware."
)


def calls_by_name(calls: Sequence[RunCall]) -> list[tuple[str, list[RunCall]]]:
    """Return the calls of each name, those with most faults first."""
    groups: dict[str, list[RunCall]] = defaultdict(list)
    for call in calls:
        groups[call.name].append(call)
    return sorted(groups.items(), key=lambda item: (-sum(call.faults for call in item[1]), item[0]))


def call_blocks(calls: Sequence[RunCall]) -> tuple[Block, ...]:
    """Return charts and tables of all calls."""
    if not calls:
        return (Notes(("The record has no call.",)),)
    groups = calls_by_name(calls)
    isolated = [call.faults for call in calls if call.isolated]
    blocks: list[Block] = []
    if isolated:
        blocks.append(
            histogram("How many isolated calls took how many faults", isolated, "faults of one call (pages granted)")
        )
        shown = [
            (name, sum(call.code_faults for call in group), sum(call.data_faults for call in group))
            for name, group in groups[:_BARS]
        ]
        words = f"The {count(len(shown), 'name')} with most faults; figures are in the table below."
        blocks.append(stacked_bars("Faults by call", words, ("code", "data"), shown))
    return (*blocks, _by_name(groups), _costliest(calls))


def _by_name(groups: list[tuple[str, list[RunCall]]]) -> Table:
    rows = [_row(name, group) for name, group in groups[:NAMES_SHOWN]]
    rest = groups[NAMES_SHOWN:]
    if rest:
        rows.append(_row(f"{count(len(rest), 'other')}", [call for _name, group in rest for call in group]))
    return Table(
        "Calls by name, most faults first",
        columns(
            "call", "#times", "#isolated", "#code faults", "#data faults", "#median faults", "#most faults",
            "#code executed, bytes", "#virtual time", "#slowest, virtual",
        ),
        tuple(rows),
        f"Median and most are of the isolated calls. {VIRTUAL_NOTE}",
    )  # fmt: skip


def _row(name: str, group: list[RunCall]) -> tuple[Cell, ...]:
    faults = [call.faults for call in group if call.isolated]
    return cells(
        Cell(shorten(name, _LONGEST_NAME), code=True),
        len(group),
        len(faults),
        sum(call.code_faults for call in group),
        sum(call.data_faults for call in group),
        statistics.median_low(faults) if faults else None,
        max(faults, default=None),
        sum(call.code_bytes for call in group),
        virtual(sum(call.virtual_ns for call in group)),
        virtual(max(call.virtual_ns for call in group)),
    )


def _costliest(calls: Sequence[RunCall]) -> Table:
    ordered = sorted(calls, key=lambda call: (-call.faults, -call.code_bytes, call.seq))[:_COSTLIEST]
    return Table(
        f"The {count(len(ordered), 'costliest call', 'costliest calls')}, most faults first",
        columns(
            "#number",
            "call",
            "#process",
            "result",
            "verdict",
            "#code faults",
            "#data faults",
            "#bytes",
            "#virtual time",
        ),
        tuple(
            cells(
                call.seq,
                Cell(call_text(call), code=True),
                str(call.pid),
                Cell("killed" if call.ret is None and call.verdict == "killed" else result_text(call.ret), code=True),
                Cell(shorten(call.verdict, _LONGEST_NAME), "bad" if call.verdict == "killed" else ""),
                call.code_faults,
                call.data_faults,
                call.code_bytes,
                virtual(call.virtual_ns),
            )
            for call in ordered
        ),
        "Numbers count calls from the run's first, 0. Pointers are user addresses as the call had them.",
    )


def call_text(call: RunCall) -> str:
    """Return the call as source has it: name, arguments with the names of their values where they decide something."""
    info = call_info(call.nr)
    name = shorten(call.name, _LONGEST_NAME)
    if info is None or info.name != call.name:
        return f"{name}({', '.join(f'{value:#x}' for value in call.args[:6])})"
    shown = []
    for at, (argument, value) in enumerate(zip(info.args, call.args, strict=False)):
        if argument.kind in _SIGNED:
            value = (value & _HALF) - ((value & _SIGN) << 1)
        text = f"{value:#x}" if argument.kind.is_pointer else show_value(call.name, at, value)
        shown.append(f"{argument.name}={shorten(text, _LONGEST_ARGUMENT)}")
    return f"{name}({', '.join(shown)})"
