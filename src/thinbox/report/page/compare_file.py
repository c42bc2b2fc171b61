"""Comparisons as the page reads them: `thinbox.compare/2` (a workload under several runtimes; in
`/1` they were called worlds), `thinbox.compare-calls/1`."""

from dataclasses import dataclass, field
from typing import Literal

from thinbox.report.page.run_file import Count


@dataclass(frozen=True, slots=True)
class HostCallsRow:
    """Calls gVisor made on the host by role and name, and what could not be measured."""

    made: dict[str, dict[str, Count]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RuntimeRow:
    """One runtime, as `planning.runtime_row.Row` writes it; `thinbox.compare/1` called the first field `world`."""

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
    runtime: str = ""
    world: str = ""

    @property
    def name(self) -> str:
        """What the runtime is called."""
        return self.runtime or self.world


@dataclass(frozen=True, slots=True)
class CompareFile:
    """The same workload under several runtimes."""

    schema: Literal["thinbox.compare/1", "thinbox.compare/2"]
    command: tuple[str, ...]
    rows: tuple[RuntimeRow, ...]


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
