"""What a matrix of attacks leaves behind: one row per attack, policy and view, and the JSON of the contract.

Rules of this file: "detected" is a violation, whatever the exploit had done before; "succeeded" is the exploit's goal
as the guest itself showed it, or, isolated, a guest that went down; all else is "contained", with the reason in words.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "thinbox.attack/1"
SUCCEEDED, CONTAINED, DETECTED = "succeeded", "contained", "detected"
UNISOLATED = "none"


@dataclass(frozen=True, slots=True)
class AttackRow:
    """One try. `against` is whom success harms ("kernel" for all, "tenant"); `step` the attacker's last call, with
    the part of the payload that was refused; `rule`, `vaddr`, `symbol`, `offset`, `kind` those of the violation;
    `undone`: the call was rolled back; `reason` why it was contained or detected; `prevented_by`: features of the CPU
    that keep the exploit from its goal on the unisolated kernel."""

    attack: str
    policy: str
    view: str
    outcome: str
    against: str
    step: str = ""
    rule: str | None = None
    vaddr: int | None = None
    symbol: str | None = None
    offset: int | None = None
    kind: str | None = None
    undone: bool = False
    reason: str = ""
    prevented_by: tuple[str, ...] = ()


@dataclass(slots=True)
class AttackRecord:
    """All rows, by attack, then policy, then view, in the order asked for."""

    release: str
    sha256: str
    rows: list[AttackRow] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def broken(self) -> list[AttackRow]:
        """Attacks that do not even succeed on the unisolated kernel, and not for the CPU's sake: they prove nothing."""
        return [row for row in self.unsuccessful if not row.prevented_by]

    @property
    def unsuccessful(self) -> list[AttackRow]:
        """Attacks that do not succeed on the unisolated kernel."""
        return [row for row in self.rows if row.policy == UNISOLATED and row.outcome != SUCCEEDED]

    def get_through(self, policy: str, view: str) -> list[AttackRow]:
        """Return the rows of attacks that succeed under a policy and a view."""
        return [row for row in self.rows if (row.policy, row.view) == (policy, view) and row.outcome == SUCCEEDED]

    @property
    def best(self) -> tuple[str, str] | None:
        """The (policy, view) under which the fewest attacks succeed, the first of several; None without rows."""
        pairs = dict.fromkeys((row.policy, row.view) for row in self.rows)
        return min(pairs, key=lambda pair: len(self.get_through(*pair)), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the object of the contract (DESIGN section 6)."""
        best = self.best
        return {
            "schema": SCHEMA,
            "kernel": {"release": self.release, "sha256": self.sha256},
            "rows": [asdict(row) for row in self.rows],
            "totals": {
                "attacks": len({row.attack for row in self.rows}),
                "rows": len(self.rows),
                **{name: sum(row.outcome == name for row in self.rows) for name in (SUCCEEDED, CONTAINED, DETECTED)},
                "broken": len(self.broken),
                "best": None if best is None else {"policy": best[0], "view": best[1]},
                "succeeded_under_best": 0 if best is None else len(self.get_through(*best)),
                "wall_s": round(self.wall_s, 3),
            },
        }
