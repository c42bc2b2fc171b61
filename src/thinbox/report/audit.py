"""The table after an audit: one line a case, or for a whole corpus what stands out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinbox.records.audit import AuditEntry, AuditRecord

_SHORT = 80
"""Entries up to which each is listed."""
_WIDTH = 110


def render_audit(record: "AuditRecord") -> str:
    """Return the text of an audit."""
    from rich.console import Console
    from rich.table import Table

    stands_out = [entry for entry in record.entries if not entry.same]
    shown = record.entries if len(record.entries) <= _SHORT else stands_out
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("call", "case", "result", "isolated", "code", "data", "verdict"):
        table.add_column(heading, justify="right" if heading in ("code", "data") else "left", overflow="fold")
    for entry in shown:
        faults = (str(entry.code_faults), str(entry.data_faults)) if entry.exercised else ("", "")
        table.add_row(
            entry.call, entry.case, result_text(entry.ret), result_text(entry.isolated_ret), *faults, _verdict(entry)
        )
    console = Console(width=_WIDTH, force_terminal=False, file=None)
    with console.capture() as captured:
        if shown:
            console.print(table)
    lines = [captured.get().rstrip()] if shown else []
    if record.not_exercised:
        lines.append("no success path:")
        lines += [f"  {name}: {reason}" for name, reason in record.not_exercised.items()]
    return "\n".join([*lines, _sums(record)])


def result_text(value: int | None) -> str:
    """Return a result as people read it: an errno name, a small number, an address."""
    import errno

    if value is None:
        return "-"
    if -4096 < value < 0:
        return errno.errorcode.get(-value, f"-{-value}")
    return str(value) if value < 1 << 20 else hex(value)


def _verdict(entry: "AuditEntry") -> str:
    if not entry.exercised:
        return f"not exercised: {entry.reason}"
    if entry.killed:
        return entry.killed.partition(" was ")[2] or entry.killed
    return "same" if entry.same else f"different: {entry.reason}"


def _sums(record: "AuditRecord") -> str:
    totals = record.totals
    whole = f"; {totals['exercised']} of the kernel's {totals['implemented']} calls have a working success path"
    return (
        f"{totals['cases']:,} cases under policy {record.policy}: {totals['different']} different, "
        f"{totals['killed']} of them killed, {totals['broken']} not exercised"
        f"{whole if record.not_exercised or totals['exercised'] > _SHORT else ''}; "
        f"{totals['code_faults'] + totals['data_faults']:,} pages granted; {totals['wall_s']:.1f} s of host time"
    )
