"""Published measurements the model is held against; none of them stands in a profile."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from thinbox.cost.model import Interval

FILE = Path(__file__).parent.parent / "data" / "published.toml"
ZERO_PAGE_WORK = Interval(250.0, 3000.0)
"""Cycles a kernel spends on a minor fault besides the fault itself: for the zero page 19.3 % of the time where the
fault's 1050 cycles are 80.7 % (Torvalds, see the profiles); high: clearing and charging a page (assumed)."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured, by whom: an interval of `quantity`."""

    name: str
    quantity: str
    measured: Interval
    source: str

    def met_by(self, modelled: Interval) -> bool:
        """Whether the model's interval holds the whole measured one."""
        return modelled.low <= self.measured.low and self.measured.high <= modelled.high

    def touched_by(self, modelled: Interval) -> bool:
        """Whether the two intervals have a value in common."""
        return modelled.low <= self.measured.high and self.measured.low <= modelled.high


def measurements() -> dict[str, Measurement]:
    """Return all, by name."""
    rows = tomllib.loads(FILE.read_text())["measurements"]
    return {
        row["name"]: Measurement(row["name"], row["quantity"], Interval(row["low"], row["high"]), row["source"])
        for row in rows
    }
