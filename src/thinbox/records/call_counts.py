"""Coverage counts by a call's number, set when the run is over.

Why it exists: coverage is known only at the end, when most calls are packed (`records.call_log`). Calls that did the
same have equal counts, so a number for each call is enough: 4 bytes.
"""

from array import array

from thinbox.records.coverage import CallCounts


class CountsByCall:
    """`CallCounts` by call; each different one is held once."""

    def __init__(self) -> None:
        self._which = array("i")
        """One more than the place in `_kinds`; 0 where nothing was set."""
        self._numbers: dict[CallCounts, int] = {}
        self._kinds: list[CallCounts] = []

    def set(self, number: int, counts: CallCounts) -> None:
        """Set the counts of a call."""
        if number >= len(self._which):
            self._which.frombytes(bytes(self._which.itemsize * (number + 1 - len(self._which))))
        place = self._numbers.setdefault(counts, len(self._kinds))
        if place == len(self._kinds):
            self._kinds.append(counts)
        self._which[number] = place + 1

    def get(self, number: int) -> CallCounts | None:
        """Return the counts of a call, None if they were not set."""
        if number >= len(self._which) or not self._which[number]:
            return None
        return self._kinds[self._which[number] - 1]
