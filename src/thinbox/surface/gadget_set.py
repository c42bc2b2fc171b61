"""The gadgets of one kernel, and how many of them lie in given pages.

Why it exists: this question is asked for every call of a run, so the answer is a sum over the pages of
the call: gadgets are counted by page once, those that reach into the next page apart from the rest.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from thinbox.address import PAGE_SHIFT
from thinbox.surface.scan import Found, GadgetKind


@dataclass(frozen=True, slots=True)
class GadgetCounts:
    """Gadgets by how they end (see `GadgetKind`)."""

    returns: int = 0
    jumps: int = 0
    calls: int = 0
    system: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.returns + self.jumps + self.calls + self.system


@dataclass(slots=True)
class GadgetSet:
    """`found`, and `spans`: the (start, exclusive end) of each run of executable pages, ascending.

    `text_hash` says which live text it is, `from_cache` where it came from.
    """

    found: Found
    spans: tuple[tuple[int, int], ...]
    text_hash: str
    from_cache: bool = False
    _within: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict, repr=False)
    _across: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Count by page."""
        first = self.found.starts >> np.uint64(PAGE_SHIFT)
        last = (self.ends - np.uint64(1)) >> np.uint64(PAGE_SHIFT)
        self._within = _by_page(first[first == last], self.found.kinds[first == last])
        self._across = _by_page(first[first != last], self.found.kinds[first != last])

    @property
    def ends(self) -> npt.NDArray[np.uint64]:
        """The address behind each gadget's last byte."""
        return self.found.starts + self.found.lengths.astype(np.uint64)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.found.starts)

    @property
    def pages(self) -> int:
        """How many executable 4 KiB pages the kernel has."""
        return sum(end - start for start, end in self.spans) >> PAGE_SHIFT

    @property
    def counts(self) -> GadgetCounts:
        """All of them by kind."""
        return _counts(np.bincount(self.found.kinds, minlength=len(GadgetKind)))

    def in_pages(self, pages: Iterable[int]) -> GadgetCounts:
        """Count the gadgets of which every byte lies in `pages` (addresses of any byte of each page)."""
        # Python's integers hash alike whatever array they came from; a uint64 beside an int64 would become a float.
        numbers = {int(page) >> PAGE_SHIFT for page in pages}
        sums = np.zeros(len(GadgetKind), np.int64)
        for number in numbers:
            within, across = self._within.get(number), self._across.get(number)
            if within is not None:
                sums += within
            if across is not None and number + 1 in numbers:
                sums += across
        return _counts(sums)


def _by_page(numbers: npt.NDArray[np.uint64], kinds: npt.NDArray[np.uint8]) -> dict[int, npt.NDArray[np.int64]]:
    """Return page number -> count of each kind; a length is a uint8, so a gadget lies in two pages at most."""
    pages, place = np.unique(numbers, return_inverse=True)
    width = len(GadgetKind)
    table = np.bincount(place * width + kinds, minlength=width * len(pages)).reshape(-1, width)
    return dict(zip(pages.tolist(), table.astype(np.int64), strict=True))


def _counts(sums: npt.NDArray[np.int64]) -> GadgetCounts:
    return GadgetCounts(*sums.tolist())
