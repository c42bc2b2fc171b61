"""Events of a mode without a trace of pages: CR3 writes and faults exactly, misses between two bounds.

Why it exists: a record made without `--events` still says how many pages each call touched, for each was
granted. Misses then have bounds: every fault and every flush lets some pages be walked again, how many is
between nothing and what a traced run showed at most.

Rules of this file: bounds, never a guess in the middle. Loads of a walk: one at least, four at most.
"""

import numpy as np

from thinbox.cost import replay
from thinbox.cost.modes import Mode
from thinbox.cost.workload import Workload

BASELINE_PAGES = 8
"""Pages of an SCI baseline a call touches: stack, entry text, cpu_entry_area, the call's entry."""
USER_PAGES = 32
"""Pages of user code and data between two calls, at most; script.sh: 9 at the median, measured with a trace."""
COLD_PAGES = 16
"""Pages touched between two faults, at most; script.sh: 10 at the mean."""
LOADS = 4


def counts(workload: Workload, words: tuple[int, ...], mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """Return lower and upper counts for each call (`replay.COLUMNS`); the first row, before any call, is empty."""
    pcid, pti = words[replay.M_PCID], words[replay.M_PTI]
    size = 1 + len(workload.names)
    low, high = np.zeros((size, replay.COLUMNS)), np.zeros((size, replay.COLUMNS))
    pages = workload.faults.astype(float)
    entries = 1.0 + workload.exceptions
    inner = 1.0 + workload.sleeps + workload.interrupts + workload.exceptions
    faults_low = pages if mode.sci and not mode.prefault else np.zeros_like(pages)
    faults_high = pages if mode.sci else np.zeros_like(pages)
    isolated = workload.isolated.astype(float)
    switches_low = 2 * entries * pti + (2 * inner * isolated + 2 * faults_low) * mode.sci + 0 * pages
    switches_high = 2 * entries * pti + (2 * inner * isolated + 2 * faults_high) * mode.sci + 2.0 * mode.asi
    low[1:, replay.SWITCH_KEEP if pcid else replay.SWITCH_FLUSH] = switches_low
    cold = not pcid or mode.flush_own
    high[1:, replay.SWITCH_FLUSH if cold else replay.SWITCH_KEEP] = switches_high
    low[1:, replay.FAULTS], high[1:, replay.FAULTS] = faults_low, faults_high
    low[1:, replay.ENTRIES_COUNT] = high[1:, replay.ENTRIES_COUNT] = entries
    low[1:, replay.INNER] = high[1:, replay.INNER] = inner * isolated * mode.sci
    if mode.name != "none":
        if not cold:
            walks = (pages + BASELINE_PAGES + USER_PAGES) * (1 if mode.sci or pti else 0)
        else:
            walks = switches_high * (COLD_PAGES if mode.sci else BASELINE_PAGES + USER_PAGES) / 2 + pages * mode.sci
        high[1:, replay.WALKS] = walks
        high[1:, replay.WALK_LOADS] = LOADS * walks
        low[1:, replay.WALKS] = low[1:, replay.WALK_LOADS] = faults_low
        high[1:, replay.L2_HITS] = walks
    return low, high
