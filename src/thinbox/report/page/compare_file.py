"""Comparisons as the page reads them: `thinbox.compare/1` (a workload in several worlds), `thinbox.compare-calls/1`."""

from dataclasses import dataclass, field
from typing import Literal

from thinbox.report.page.run_file import Count


@dataclass(frozen=True, slots=True)
class HostCallsRow:
    """Calls gVisor made on the host by role and name, and what could not be measured."""

    made: dict[str, dict[str, Count]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorldRow:
    """One world, as `planning.world_row.Row` writes it."""

    world: str
    clock: Literal["host", "emulated"]
    exit_code: int | None
    calls: Count | None
    reaching: Count | None
    unisolated: Count | None
    functions: Count | None
    host_calls: Count | None
    ratio: float | None
    wall_s: float | None
    note: str
    host_made: Count | None = None
    host: HostCallsRow | None = None


@dataclass(frozen=True, slots=True)
class CompareFile:
    """The same workload in several worlds."""

    schema: Literal["thinbox.compare/1"]
    command: tuple[str, ...]
    rows: tuple[WorldRow, ...]


@dataclass(frozen=True, slots=True)
class CostColumn:
    """One way to run the loops; `missing` says why it has no figures."""

    title: str
    missing: str | None


@dataclass(frozen=True, slots=True)
class LoopCosts:
    """ns of one turn by column title; None where it was lost in the noise."""

    name: str
    ns: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class CallCostsFile:
    """What single calls cost, by host time."""

    schema: Literal["thinbox.compare-calls/1"]
    columns: tuple[CostColumn, ...]
    calls: tuple[LoopCosts, ...]
