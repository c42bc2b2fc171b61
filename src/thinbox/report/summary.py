"""The short table after a run: what was called, what it touched."""

import shutil
from typing import Any

from thinbox.records.run import RunRecord
from thinbox.records.tally import NameTally
from thinbox.report.sentences import outside_line, restored_line

ROWS = 12
_MOST_WIDTH = 100


def render_summary(record: RunRecord) -> str:
    """Return the table as text: the calls with most faults, and one line of sums."""
    from rich.console import Console
    from rich.table import Table

    ordered = sorted(record.calls.tally.names.items(), key=lambda item: (-item[1].faults, item[0]))
    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    for heading in ("call", "times", "isolated", "code faults", "data faults", "most faults", "slowest"):
        table.add_column(heading, justify="left" if heading == "call" else "right")
    for name, part in ordered[:ROWS]:
        table.add_row(name, *_cells(part))
    rest = NameTally()
    for _name, part in ordered[ROWS:]:
        rest.merge(part)
    if rest.times:
        table.add_row(f"{len(ordered) - ROWS} others", *_cells(rest))
    width = min(shutil.get_terminal_size((_MOST_WIDTH, 24)).columns, _MOST_WIDTH)
    console = Console(width=width, force_terminal=False, record=False, file=None)
    with console.capture() as captured:
        console.print(table)
    left_out = record.left_out_sentence()
    more = [line for line in (left_out, outside_line(record.outside), restored_line(record.restored)) if line]
    return "\n".join([captured.get().rstrip(), _sums(record), *more, *_coverage(record)])


def _cells(part: NameTally) -> list[str]:
    return [
        f"{part.times:,}",
        f"{part.isolated:,}",
        f"{part.code_faults:,}",
        f"{part.data_faults:,}",
        f"{part.most_faults:,}",
        f"{part.slowest_ns / 1e6:,.3f} ms",
    ]


def _sums(record: RunRecord) -> str:
    totals: dict[str, Any] = record.totals
    killed = f"{totals['killed']:,} killed" if totals["killed"] else "none killed"
    if record.refusals:
        killed += f"; {record.refusals.headline()}"
    return (
        f"{totals['calls']:,} calls, {totals['isolated']:,} isolated by policy {record.policy}, {killed}; "
        f"{totals['code_faults'] + totals['data_faults']:,} pages granted; "
        f"{totals['tables_made']} tables made, {totals['tables_freed']} freed "
        f"({totals['table_pages_made']:,} and {totals['table_pages_freed']:,} pages); times are virtual"
    )


def _coverage(record: RunRecord) -> list[str]:
    found = record.coverage
    if found is None:
        return []
    line = (
        f"coverage: {found.hap:,} kernel functions entered by these calls, {found.traceable:,} of them "
        f"visible to ftrace; {found.executed_pages:,} pages of text executed"
    )
    lost = f"; {found.lost_blocks:,} blocks found no room: these are lower bounds" if found.lost_blocks else ""
    return [line + lost]
