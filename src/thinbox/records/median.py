"""The median of any number of positive values, in flat memory.

Why it exists: `fault_us_median` is over calls, of which there may be millions.

Rules of this file: exact up to `EXACT` values. Past that it is read off a histogram whose bins are 1 % wide, so it is
right to 1 %. The same values in the same order give the same median: nothing is drawn by chance.
"""

import math
import statistics
from array import array
from collections import Counter
from collections.abc import Iterable

EXACT = 1 << 16
"""Values held as they are: 512 KiB."""
_STEP = math.log(1.01)
_LEAST = 1e-9
"""Whatever is smaller counts as this; with the largest float there are at most 73,000 bins."""


class Median:
    """Values are added one by one; `value` may be asked for at any time."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._exact = array("d")
        self._bins: Counter[int] = Counter()
        self._count = 0
        for value in values:
            self.append(value)

    def append(self, value: float) -> None:
        """Add a value, 0 or above."""
        self._count += 1
        self._bins[round(math.log(max(value, _LEAST)) / _STEP)] += 1
        if self._count <= EXACT:
            self._exact.append(value)

    def __len__(self) -> int:
        return self._count

    @property
    def value(self) -> float | None:
        """The median; None without values."""
        if self._count <= EXACT:
            return statistics.median(self._exact) if self._exact else None
        seen = 0
        for number in sorted(self._bins):
            seen += self._bins[number]
            if 2 * seen >= self._count:
                break
        return math.exp(number * _STEP)
