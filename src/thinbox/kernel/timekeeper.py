"""The kernel's clock: where it keeps its last reading, and what it adds to it.

Shapes, newest first:
- the first of `timekeeper_data`, an array of `struct tk_data` (6.17, "timekeeping: Introduce auxiliary timekeepers" and
  its series).
- `tk_core`, a `struct tk_data` (6.13, "timekeeping: Move shadow_timekeeper into tk_core").
- `tk_core`, of no type's name: a `seqcount_raw_spinlock_t` (5.10; a `seqcount_t` before), which with PREEMPT_RT has its
  lock's address, too, then the timekeeper, aligned to eight bytes.

Source: kernel/time/timekeeping.c, include/linux/timekeeper_internal.h (`struct timekeeper`, `struct tk_read_base`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "time cannot be read, so no plan may emulate it"
_ALIGNED = 8


@dataclass(frozen=True, slots=True)
class Timekeeper:
    """Addresses of CLOCK_MONOTONIC's reading, and of what makes another clock of it; offsets in a reading and in a
    clock source."""

    mono_at: int
    real_offset_at: int
    boot_offset_at: int
    tai_offset_at: int
    base_at: int
    fraction_at: int
    shift_at: int
    mult_at: int
    last_at: int
    source_at: int
    source_name_at: int


def _place(probe: Probe) -> int:
    """Return the address of the `struct timekeeper`."""
    core = probe.symbol("timekeeper_data", "tk_core")
    if probe.has_type("tk_data"):
        return core + probe.offset("tk_data.timekeeper")
    name = "seqcount_raw_spinlock_t" if probe.has_type("seqcount_raw_spinlock_t") else "seqcount_t"
    return core + -(-probe.size(name) // _ALIGNED) * _ALIGNED


def probe_timekeeper(probe: Probe) -> Timekeeper:
    """Find it; what is missing is noted in `probe`."""
    keeper, offset = _place(probe), probe.offset
    return Timekeeper(
        mono_at=keeper + offset("timekeeper.tkr_mono"),
        real_offset_at=keeper + offset("timekeeper.offs_real"),
        boot_offset_at=keeper + offset("timekeeper.offs_boot"),
        tai_offset_at=keeper + offset("timekeeper.offs_tai"),
        base_at=offset("tk_read_base.base"),
        fraction_at=offset("tk_read_base.xtime_nsec"),
        shift_at=offset("tk_read_base.shift"),
        mult_at=offset("tk_read_base.mult"),
        last_at=offset("tk_read_base.cycle_last"),
        source_at=offset("tk_read_base.clock"),
        source_name_at=offset("clocksource.name"),
    )


def find_timekeeper(facts: "KernelFacts") -> Timekeeper:
    """Return it; `MissingFactError` if this kernel keeps time in another way."""
    probe = Probe(facts, "timekeeper", DISABLES)
    found = probe_timekeeper(probe)
    probe.check()
    return found
