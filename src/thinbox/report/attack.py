"""The matrix of attacks as text: for the terminal, and as Markdown for the documents.

Rules of this file: what gets through is written out, never an empty cell.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from thinbox.records.attack import AttackRecord, AttackRow

_SUCCEEDED, _DETECTED = "succeeded", "detected"
"""Outcomes of the contract, `thinbox.attack/1`."""

BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"


class Described(Protocol):
    """An attack in words, as the documents show it."""

    @property
    def name(self) -> str: ...
    @property
    def presumes(self) -> str: ...
    @property
    def goal(self) -> str: ...
    @property
    def against(self) -> str: ...


def _cell(row: "AttackRow") -> str:
    if row.outcome == _SUCCEEDED:
        return "**succeeds**"
    return f"detected {(row.rule or '').partition(' ')[0]}" if row.outcome == _DETECTED else "contained"


def _pairs(record: "AttackRecord") -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.policy, row.view) for row in record.rows))


def _title(policy: str, view: str) -> str:
    return policy if view == "none" else f"{policy}, view {view}"


def render_attacks(record: "AttackRecord") -> str:
    """Return a table of attacks by policy and view, and a last line that says what is best, for a terminal."""
    pairs = _pairs(record)
    cells = {(row.attack, row.policy, row.view): _cell(row).strip("*") for row in record.rows}
    names = list(dict.fromkeys(row.attack for row in record.rows))
    width = max(len(name) for name in names)
    lines = []
    for policy, view in pairs:
        through = record.get_through(policy, view)
        lines.append(f"{_title(policy, view)}: {len(through)} of {len(names)} attacks succeed")
        if len(names) == 1 or len(pairs) <= 2:
            lines += [f"  {name:{width}}  {cells.get((name, policy, view), '')}" for name in names]
        elif len(through) < len(names):
            lines += [f"  {row.attack}" for row in through]
    lines += [f"{row.attack} does not succeed unisolated: {_why_not(row)}" for row in record.unsuccessful]
    best = record.best
    if best is not None and len(pairs) > 1:
        lines.append(f"fewest under {_title(*best)}: {len(record.get_through(*best))}")
    return "\n".join(lines)


def _why_not(row: "AttackRow") -> str:
    if row.prevented_by:
        return f"this CPU has {' and '.join(name.upper() for name in row.prevented_by)}"
    return row.reason


def render_markdown(
    record: "AttackRecord", exploits: Sequence[Described], false_kills: Mapping[str, tuple[int, int]]
) -> str:
    """Return the matrix as Markdown. `false_kills` are (killed, cases) of the audit by policy, where it was run."""
    views = list(dict.fromkeys(row.view for row in record.rows))
    parts = [f"Kernel {record.release}; {len(exploits)} attacks.\n"]
    for view in views:
        policies = list(dict.fromkeys(row.policy for row in record.rows if row.view == view or row.policy == "none"))
        cells = {
            (row.attack, row.policy): _cell(row) for row in record.rows if row.view == view or row.policy == "none"
        }
        parts.append(f"View {view}:\n" if len(views) > 1 else "")
        parts.append("| attack | " + " | ".join(policies) + " |")
        parts.append("|---" * (len(policies) + 1) + "|")
        parts += [
            f"| {exploit.name} | " + " | ".join(cells.get((exploit.name, name), "") for name in policies) + " |"
            for exploit in exploits
        ]
        counts = [sum(cells.get((exploit.name, name)) == "**succeeds**" for exploit in exploits) for name in policies]
        parts.append("| succeed | " + " | ".join(map(str, counts)) + " |")
        if false_kills:
            shown = ["0" if name == "none" else _rate(false_kills.get(name)) for name in policies]
            parts.append("| false kills, audit | " + " | ".join(shown) + " |")
        parts.append("")
    parts.append("What each presumes, and is after:\n")
    parts += ["| attack | presumes | goal | against |", "|---|---|---|---|"]
    parts += [f"| {e.name} | {e.presumes} | {e.goal} | {e.against} |" for e in exploits]
    return "\n".join(parts) + "\n"


def _rate(found: tuple[int, int] | None) -> str:
    return "not run" if found is None else f"{found[0]} of {found[1]}"


def replace_generated(document: str, generated: str) -> str:
    """Return `document` with what stands between the marks replaced; ValueError if it lacks them."""
    begin, end = document.index(BEGIN) + len(BEGIN), document.index(END)
    return f"{document[:begin]}\n{generated}{document[end:]}"
