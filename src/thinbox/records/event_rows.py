"""How often what happened in each call (`records.events.COUNTERS`), in flat memory.

Why it exists: events are counted in a row for each call, and a tenant chooses how many calls it makes.

Rules of this file:
- `rows[n]` is a list to count in, used at once: an old one is packed again when more rows come.
- A row of zeros takes no room. Totals are exact whatever is kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np

from thinbox.records.row_store import CHUNK_ROWS, Bounds, RowStore, holds_the_same

EVENT_BOUNDS = Bounds(rows=20_000_000, bytes=1 << 30)
"""As many as calls (`records.call_log.CALL_BOUNDS`); 2 to 12 bytes each."""


class EventRows(Sequence[list[int]]):
    """A row of `width` counts for each call, by the call's number."""

    def __init__(self, width: int, rows: Iterable[list[int]] = (), bounds: Bounds = EVENT_BOUNDS) -> None:
        self._width, self._count, self._packed_end = width, 0, 0
        self._newest: dict[int, list[int]] = {}
        self._touched: dict[int, list[int]] = {}
        """Rows that were packed, and have been asked for since."""
        self._store = RowStore(1 + width, bounds)
        self._sums = [0] * width
        """Over the rows that are packed."""
        self.extend(rows)

    def extend(self, rows: Iterable[list[int]]) -> None:
        """Add rows for the next calls; the lists are held, and counted in."""
        for row in rows:
            self._newest[self._count] = row
            self._count += 1
            if self._count >= self._packed_end + 2 * CHUNK_ROWS:
                self._pack()

    @property
    def left_out(self) -> int:
        """Rows that found no room; they are in the totals only."""
        return self._store.refused

    def total(self, column: int) -> int:
        """The sum of a column, over all rows there ever were."""
        here = (*self._newest.values(), *self._touched.values())
        return self._sums[column] + sum(row[column] for row in here)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        """Return the row of a call, to count in; a copy of each for a slice."""
        if isinstance(index, slice):
            return [list(self[number]) for number in range(*index.indices(self._count))]
        number = index + self._count if index < 0 else index
        if not 0 <= number < self._count:
            raise IndexError(f"there is no row {index} of {self._count}")
        row = self._newest.get(number)
        return self._touch(number) if row is None else row

    def numbered(self) -> Iterator[list[int]]:
        """Each row kept that has an event, by number, its number first."""
        here = self._touched | self._newest
        waiting = iter(sorted(here))
        ahead = next(waiting, None)
        for row, _words in self._store:
            while ahead is not None and ahead < row[0]:
                yield from _unless_zero(ahead, here[ahead])
                ahead = next(waiting, None)
            if ahead != row[0]:
                yield from _unless_zero(row[0], row[1:])
        while ahead is not None:
            yield from _unless_zero(ahead, here[ahead])
            ahead = next(waiting, None)

    def __iter__(self) -> Iterator[list[int]]:
        number = 0
        for row in self.numbered():
            yield from ([0] * self._width for _ in range(number, row[0]))
            yield row[1:]
            number = row[0] + 1
        yield from ([0] * self._width for _ in range(number, self._count))

    def __eq__(self, other: object) -> bool:
        return holds_the_same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def _touch(self, number: int) -> list[int]:
        row = self._touched.get(number)
        if row is None:
            found = self._store.find(number)
            row = [0] * self._width if found is None else found[0][1:]
            self._sums = [whole - part for whole, part in zip(self._sums, row, strict=True)]
            self._touched[number] = row
        return row

    def _pack(self) -> None:
        end = self._count - CHUNK_ROWS
        old = {number: self._newest.pop(number) for number in range(self._packed_end, end)}
        self._packed_end = end
        touched, self._touched = self._touched, {}
        for rows in (old, touched):
            kept = iter(sorted(number for number, row in rows.items() if any(row) or rows is touched))
            while numbers := list(islice(kept, CHUNK_ROWS)):
                self._put([[number, *rows[number]] for number in numbers])

    def _put(self, rows: list[list[int]]) -> None:
        out = np.array(rows, dtype=np.int64)
        self._store.put(out)
        self._sums = [whole + part for whole, part in zip(self._sums, out[:, 1:].sum(axis=0).tolist(), strict=True)]


def _unless_zero(number: int, row: Sequence[int]) -> Iterator[list[int]]:
    if any(row):
        yield [number, *row]
