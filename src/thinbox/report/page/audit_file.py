"""An audit as the page reads it: what `thinbox.audit/1` promises, checked."""

from dataclasses import dataclass, field
from typing import Literal

from thinbox.report.page.run_file import Count, KernelName


@dataclass(frozen=True, slots=True)
class AuditCase:
    """One case; `reason` is why it was not exercised, or in what the isolated run differs."""

    call: str
    case: str
    exercised: bool
    reason: str
    ret: int | None
    isolated_ret: int | None
    same: bool
    killed: str | None
    code_faults: Count
    data_faults: Count

    @property
    def title(self) -> str:
        """`call: case`, unique in an audit."""
        return f"{self.call}: {self.case}"

    @property
    def differs(self) -> bool:
        """Exercised, and not the same under isolation; a killed one is never the same."""
        return self.exercised and not self.same


@dataclass(frozen=True, slots=True)
class AuditTotals:
    """The sums; `implemented` and `exercised` count calls, the others cases."""

    implemented: Count
    exercised: Count
    different: Count
    killed: Count


@dataclass(frozen=True, slots=True)
class AuditFile:
    """A whole audit under one policy."""

    schema: Literal["thinbox.audit/1"]
    kernel: KernelName
    policy: str
    entries: tuple[AuditCase, ...]
    totals: AuditTotals
    not_exercised: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse sums that are not those of the entries."""
        for name, ours in (
            ("different", sum(case.differs for case in self.entries)),
            ("killed", sum(case.killed is not None for case in self.entries)),
        ):
            if getattr(self.totals, name) != ours:
                raise ValueError(f"`totals.{name}` says {getattr(self.totals, name)}, its entries add up to {ours}")
