"""What an audit leaves behind: one entry per case, totals, and the JSON of the contract.

Rules of this file: `same` compares the two runs only where a case is exercised; a call that was killed is never
the same. Counts are those of the measured call alone.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "thinbox.audit/1"


@dataclass(frozen=True, slots=True)
class Grant:
    """One page granted to the measured call: its address, and what asked for it ("fetch", "read", "write")."""

    page: int
    kind: str
    symbol: str


@dataclass(slots=True)
class AuditEntry:
    """One case. `exercised`: the un-isolated run did what the case says it must; `reason` is why it is not exercised,
    or in what the isolated run differs. `ret` and `isolated_ret` are None where the call never returns."""

    call: str
    case: str
    success: bool
    exercised: bool = False
    reason: str = ""
    ret: int | None = None
    isolated_ret: int | None = None
    same: bool = False
    killed: str | None = None
    code_faults: int = 0
    data_faults: int = 0
    prefaulted: int = 0
    virtual_ns: int = 0
    isolated_virtual_ns: int = 0
    memory: str = ""
    """A hash of the user memory after the un-isolated run."""
    grants: list[Grant] = field(default_factory=list)
    lacking: bool = False
    """Not exercised, and the case says why: this kernel cannot do it."""

    @property
    def title(self) -> str:
        """`call: case`, unique."""
        return f"{self.call}: {self.case}"

    def to_json(self, *, with_grants: bool = False) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(self)
        grants = values.pop("grants")
        if with_grants:
            values["grants"] = [[f"{grant['page']:#x}", grant["kind"], grant["symbol"]] for grant in grants]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "AuditEntry":
        """Load what `to_json(with_grants=True)` returned."""
        rest = {key: value for key, value in values.items() if key != "grants"}
        grants = [Grant(int(page, 16), kind, symbol) for page, kind, symbol in values.get("grants", ())]
        return cls(**rest, grants=grants)


@dataclass(slots=True)
class AuditRecord:
    """A whole audit under one policy. `implemented` are the names of the calls the kernel has; `not_exercised` those
    without a success path, with the reason."""

    release: str
    sha256: str
    policy: str
    entries: list[AuditEntry]
    implemented: tuple[str, ...]
    not_exercised: dict[str, str]
    wall_s: float = 0.0
    initramfs_sha256: str = ""

    @property
    def exercised_calls(self) -> set[str]:
        """Calls of which a success path did what it must."""
        return {entry.call for entry in self.entries if entry.success and entry.exercised}

    @property
    def broken(self) -> list[AuditEntry]:
        """Cases whose un-isolated run failed: the corpus does not fit this kernel there."""
        return [entry for entry in self.entries if not entry.exercised]

    @property
    def different(self) -> list[AuditEntry]:
        """Exercised cases whose isolated run differs, killed ones included."""
        return [entry for entry in self.entries if entry.exercised and not entry.same]

    @property
    def totals(self) -> dict[str, Any]:
        """The sums of the contract."""
        return {
            "implemented": len(self.implemented),
            "exercised": len(self.exercised_calls & set(self.implemented)),
            "cases": len(self.entries),
            "broken": len(self.broken),
            "different": len(self.different),
            "killed": sum(entry.killed is not None for entry in self.entries),
            "code_faults": sum(entry.code_faults for entry in self.entries),
            "data_faults": sum(entry.data_faults for entry in self.entries),
            "wall_s": round(self.wall_s, 3),
        }

    def to_json(self, *, with_grants: bool = False) -> dict[str, Any]:
        """Return the object of the contract (DESIGN section 6)."""
        return {
            "schema": SCHEMA,
            "kernel": {"release": self.release, "sha256": self.sha256},
            "policy": self.policy,
            "entries": [entry.to_json(with_grants=with_grants) for entry in self.entries],
            "not_exercised": self.not_exercised,
            "totals": self.totals,
        }
