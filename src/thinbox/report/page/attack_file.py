"""A matrix of attacks as the page reads it: what `thinbox.attack/1` promises, checked."""

from dataclasses import dataclass
from typing import Literal

from thinbox.report.page.run_file import KernelName

UNISOLATED = "none"


@dataclass(frozen=True, slots=True)
class AttackTry:
    """One attack under one policy and view; the place is that of the violation."""

    attack: str
    policy: str
    view: str
    outcome: Literal["succeeded", "contained", "detected"]
    step: str
    vaddr: int | None
    symbol: str | None
    undone: bool
    rule: str | None = None
    offset: int | None = None
    kind: str | None = None
    reason: str = ""

    @property
    def gets_through(self) -> bool:
        """The attack reached its goal."""
        return self.outcome == "succeeded"

    @property
    def place(self) -> str:
        """`symbol+0xoffset`, an address, or nothing."""
        if self.symbol is not None:
            return f"{self.symbol}+{self.offset or 0:#x}"
        return f"{self.vaddr:#x}" if self.vaddr is not None else ""


@dataclass(frozen=True, slots=True)
class AttackFile:
    """A whole matrix."""

    schema: Literal["thinbox.attack/1"]
    kernel: KernelName
    rows: tuple[AttackTry, ...]
