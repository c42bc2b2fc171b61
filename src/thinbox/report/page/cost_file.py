"""Modelled costs as the page reads them: what `thinbox.cost/1` promises, checked."""

from dataclasses import dataclass
from typing import Literal

from thinbox.report.page.run_file import Count


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CostRow:
    """What one mode adds on one CPU, in modelled cycles."""

    cpu: str
    mode: str
    gives_away: str
    median_call_cycles: Range
    mean_call_cycles: Range
    calls_per_second_for: dict[str, Range]


@dataclass(frozen=True, slots=True)
class BreakEvenRow:
    """One call against gVisor, ns added; `cheaper` is isolation, gvisor or open, by platform."""

    cpu: str
    mode: str
    call: str
    added_ns: Range
    gvisor_ns: dict[str, Range]
    cheaper: dict[str, str]


@dataclass(frozen=True, slots=True)
class CostFile:
    """The object of `thinbox cost --json`. `replayed`: by a trace of pages; else misses are bounded."""

    schema: Literal["thinbox.cost/1"]
    workload: str
    calls: Count
    faults_median: float
    replayed: bool
    trace_lost: Count
    rows: tuple[CostRow, ...]
    break_even: tuple[BreakEvenRow, ...] = ()
