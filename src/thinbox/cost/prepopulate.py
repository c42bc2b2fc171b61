"""Which grants would still fault if pages were mapped beforehand, and what that lays open.

Why it exists: most pages of a call are known before it: its own code, and the data its task used before.

Rules of this file:
- A page counts as known only if *another* call shows it: a call's own grants never spare its own faults.
- Kernel image (text and static data): known by the call's name. Everything else (slab, stacks): only to the task
  that was granted it before, for it may hold another tenant's data.
"""

from dataclasses import dataclass

import numpy as np

KERNEL_IMAGE_PAGE = -0x80000000 >> 12
"""First page of the kernel image and its modules (Documentation/arch/x86/x86_64/mm.rst), as a signed page number."""


@dataclass(frozen=True, slots=True)
class Surface:
    """What mapping beforehand adds, for the median call: `code_pages` and `data_pages` mapped that the call does
    not touch, and faults left (`faults_median`, `faults_mean`)."""

    code_pages: float
    data_pages: float
    faults_median: float
    faults_mean: float


def remaining_faults(grants: np.ndarray, names: list[str], pids: list[int], prefault: str) -> np.ndarray:
    """Return for each grant (call, page, is code) whether it still faults: 1 or 0.

    `prefault` "" spares nothing, "task" what the task was granted in any earlier call, "profile" image pages by
    name and other pages by task. The end of a task (call -1) is spared nothing.
    """
    found = np.ones(len(grants), dtype=np.int8)
    of_calls = grants[:, 0] >= 0
    if prefault and of_calls.any():
        found[of_calls] = _remaining(grants[of_calls], names, pids, prefault)
    return found


def _remaining(grants: np.ndarray, names: list[str], pids: list[int], prefault: str) -> np.ndarray:
    """As `remaining_faults`, for grants of calls."""
    _tasks, task = np.unique(np.array(pids), return_inverse=True)
    known_to_task = ~_first_of(task[grants[:, 0]], grants[:, 1])
    if prefault == "task":
        return (~known_to_task).astype(np.int8)
    image = grants[:, 1] >= KERNEL_IMAGE_PAGE
    _names, name = np.unique(np.array(names), return_inverse=True)
    by_name = _in_another_call(name[grants[:, 0]], grants)
    return (~np.where(image, by_name, known_to_task)).astype(np.int8)


def _pairs(group: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """Return a number for each (group, page)."""
    _pages, page = np.unique(pages, return_inverse=True)
    return group * (int(page.max()) + 1) + page


def _first_of(group: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """Tell which grants are the first of their page in their group."""
    _values, first = np.unique(_pairs(group, pages), return_index=True)
    out = np.zeros(len(pages), dtype=bool)
    out[first] = True
    return out


def _in_another_call(group: np.ndarray, grants: np.ndarray) -> np.ndarray:
    """Tell for which grants a second call of the group was granted the page too."""
    pair = _pairs(group, grants[:, 1])
    calls = int(grants[:, 0].max()) + 1
    once = np.unique(pair * calls + grants[:, 0]) // calls
    values, counts = np.unique(once, return_counts=True)
    return np.asarray(counts[np.searchsorted(values, pair)] > 1)


def surface_added(grants: np.ndarray, names: list[str], pids: list[int], faults: np.ndarray) -> Surface:
    """Return what mode "profile" maps beyond what calls touch; `faults` is what `remaining_faults` returned."""
    of_calls = grants[:, 0] >= 0
    grants, faults = grants[of_calls], faults[of_calls]
    calls = np.unique(grants[:, 0])
    _names, name = np.unique(np.array(names), return_inverse=True)
    code = grants[grants[:, 2] == 1]
    touched = np.bincount(code[:, 0], minlength=len(names))
    _pages, page = np.unique(code[:, 1], return_inverse=True)
    pairs = np.unique(name[code[:, 0]] * (int(page.max(initial=0)) + 1) + page) // (int(page.max(initial=0)) + 1)
    in_profile = np.bincount(pairs, minlength=int(name.max()) + 1)
    spare_code = in_profile[name[calls]] - touched[calls]
    left = np.bincount(grants[faults != 0, 0], minlength=len(names))[calls]
    return Surface(
        float(np.median(spare_code)), _spare_data(grants, pids, calls), float(np.median(left)), float(left.mean())
    )


def _spare_data(grants: np.ndarray, pids: list[int], calls: np.ndarray) -> float:
    """Median number of data pages outside the image that a task has kept and its call does not touch."""
    other = grants[(grants[:, 2] == 0) & (grants[:, 1] < KERNEL_IMAGE_PAGE)]
    _tasks, task = np.unique(np.array(pids), return_inverse=True)
    first = _first_of(task[other[:, 0]], other[:, 1])
    kept = np.zeros(len(pids), dtype=np.int64)
    np.add.at(kept, other[first, 0], 1)
    touched = np.bincount(other[:, 0], minlength=len(pids))
    total = np.zeros(int(task.max()) + 1, dtype=np.int64)
    spare = []
    wanted = set(calls.tolist())
    for call, which in enumerate(task.tolist()):
        if call in wanted:
            spare.append(max(0, int(total[which]) - int(touched[call])))
        total[which] += kept[call]
    return float(np.median(spare)) if spare else 0.0
