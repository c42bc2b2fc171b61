"""Break-even against user-space emulation: what gVisor was measured to add, against what a mode would add.

Why it exists: isolation is worth its cost where it is cheaper than the emulation it replaces.

Rules of this file: gVisor's figures are measured, with their noise; a mode's are the model's. A verdict is given only
where the intervals do not meet.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thinbox.cost.model import Interval, ModeCost

FILE = Path(__file__).parent.parent / "data" / "gvisor.toml"
PLATFORMS = ("ptrace", "systrap")


@dataclass(frozen=True, slots=True)
class BreakEven:
    """One call (or pair of calls): ns a mode adds, ns each platform of gVisor adds, and who is cheaper:
    "isolation", "gvisor" or "open". `faults` is the number of faults from which gVisor is cheaper, by platform."""

    call: str
    added_ns: Interval
    gvisor_ns: dict[str, Interval]
    cheaper: dict[str, str]
    faults: dict[str, Interval]


def reference_cpu() -> str:
    """Name of the profile closest to the machine gVisor was measured on."""
    return str(tomllib.loads(FILE.read_text())["cpu"])


def break_even(cost: ModeCost, names: list[str], per_fault: Interval) -> list[BreakEven]:
    """Compare `cost` with gVisor call by call; calls that the workload does not have are left out.

    `per_fault` is cycles of one granted fault on that CPU and mode.
    """
    data = tomllib.loads(FILE.read_text())
    frequency = cost.cpu.figures["frequency_ghz"]
    which = np.array(names)
    out = []
    for row in data["calls"]:
        masks = [(which == part) & cost.counted for part in row["parts"]]
        if not all(mask.any() for mask in masks):
            continue
        low, high = np.sum([np.median(cost.per_call[mask], axis=0) for mask in masks], axis=0).tolist()
        added = Interval(low / frequency.high, high / frequency.low)
        gvisor, cheaper, faults = {}, {}, {}
        for platform in PLATFORMS:
            spread = data["noise"]
            theirs = Interval(
                row[platform] * (1 - spread) - row["native"], row[platform] * (1 + spread) - row["native"]
            )
            gvisor[platform] = theirs
            cheaper[platform] = (
                "isolation" if added.high < theirs.low else "gvisor" if added.low > theirs.high else "open"
            )
            faults[platform] = Interval(
                max(0.0, theirs.low * frequency.low / per_fault.high), theirs.high * frequency.high / per_fault.low
            )
        out.append(BreakEven(row["name"], added, gvisor, cheaper, faults))
    return out
