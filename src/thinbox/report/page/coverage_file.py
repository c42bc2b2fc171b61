"""Coverage as the page reads it: what `thinbox.coverage/1` promises, checked."""

from dataclasses import dataclass
from typing import Literal

from thinbox.report.page.run_file import Count, CoverageTotals


@dataclass(frozen=True, slots=True)
class CallCoverage:
    """All calls of one name; data pages are None where none was isolated."""

    name: str
    calls: Count
    isolated: Count
    functions_entered: Count
    functions_traceable: Count
    functions_executed: Count
    executed_pages: tuple[int, ...]
    data_pages: tuple[int, ...] | None
    written_pages: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class CoverageFile:
    """The functions and pages a run used, by name of the call."""

    schema: Literal["thinbox.coverage/1"]
    totals: CoverageTotals
    calls: tuple[CallCoverage, ...]
