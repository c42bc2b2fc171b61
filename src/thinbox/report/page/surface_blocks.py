"""What calls leave to an exploit, as tables: in sum, and by call.

Source of the measures: docs/surface.md.
"""

from thinbox.report.page.blocks import Block, Cell, Notes, Table, cells, columns, count, share
from thinbox.report.page.run_file import CallSurface, Spread, SurfaceFile
from thinbox.report.page.visible import shorten

_SHOWN = 40
_LONGEST_NAME = 40
_WORDS = {
    "code_pages": "code pages it could execute",
    "gadgets": "gadgets in these pages",
    "functions_in_pages": "functions that start in them",
    "functions_startable": "functions within one jump",
    "data_pages": "data pages it could read",
    "writable_pages": "of these, pages it could write",
}
_NOTE = (
    "Against the whole unisolated kernel. A grant frees everything in its page; figures count means, not exploits. "
    "Under a policy that judges the way to a function, functions within one jump are an upper bound."
)


def surface_blocks(surface: SurfaceFile) -> tuple[Block, ...]:
    """Return the sums over all calls, and a row for each name."""
    whole = surface.unisolated
    totals = {name: whole.gadgets.total if name == "gadgets" else int(getattr(whole, name)) for name in _WORDS}
    every = surface.all
    if every is None:
        return (Notes(("No call was made, so nothing was left to measure.",)),)
    rows = []
    for name, words in _WORDS.items():
        spread: Spread = getattr(every, name)
        total = totals[name]
        rows.append(
            cells(words, spread.median, share(spread.median, total), spread.most, share(spread.most, total), total)
        )
    summary = Table(
        f"Left in one call under policy {shorten(surface.policy, _LONGEST_NAME)}",
        columns("what", "#median call", "#of all", "#widest call", "#of all", "#unisolated kernel"),
        tuple(rows),
        _NOTE,
    )
    calls = sorted(surface.calls, key=lambda call: (-call.gadgets.most, call.name))
    shown = calls[:_SHOWN]
    left_out = f"{count(len(calls) - _SHOWN, 'name')} with fewer gadgets left out. " if len(calls) > _SHOWN else ""
    table = Table(
        "Left by call, most gadgets first (the widest call of each name)",
        columns(
            "call", "#times", "#isolated", "#gadgets", "#of all", "#code pages", "#functions in them", "#data pages",
            "#writable",
        ),
        tuple(_row(call, totals["gadgets"]) for call in shown),
        f"{left_out}A call that ran un-isolated has the whole kernel.",
    )  # fmt: skip
    return (summary, table)


def _row(call: CallSurface, gadgets: int) -> tuple[Cell, ...]:
    return cells(
        Cell(shorten(call.name, _LONGEST_NAME), code=True),
        call.times,
        call.isolated,
        call.gadgets.most,
        share(call.gadgets.most, gadgets),
        call.code_pages.most,
        call.functions_in_pages.most,
        call.data_pages.most,
        call.writable_pages.most,
    )
