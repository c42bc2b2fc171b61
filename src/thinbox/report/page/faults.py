"""Faults of the isolated calls of a run: the median and the most."""

import statistics

from thinbox.report.page.run_file import RunFile, Spread


def fault_spread(run: RunFile) -> Spread | None:
    """Return the lower median and the most of the pages granted to one isolated call; None if none was isolated."""
    faults = [call.faults for call in run.calls if call.isolated]
    return Spread(statistics.median_low(faults), max(faults)) if faults else None
