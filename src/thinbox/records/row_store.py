"""Rows of integers by number, written chunk by chunk and read back when they are asked for.

Why it exists: calls, faults and events of a run are rows of some twenty integers and a few words, of which there may be
millions (`records.chunk_file` says where they go).

Rules of this file:
- Column 0 is a row's number. The newest row of a number counts.
- A chunk holds its own words, so no table of words grows with what a tenant makes up.
- Integers go byte plane by byte plane, high bytes together: they are mostly zeros. A call of a getpid loop takes 2.6
  bytes, one with six random arguments and a random result 55.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from thinbox.records.chunk_file import ChunkFile

CHUNK_ROWS = 4096
"""Rows of a chunk: below a megabyte as plain integers, so reading one back is quick and small."""
_CACHED = 4
"""Chunks held open while rows are looked up one by one."""
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that is kept: rows, and bytes after compression."""

    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """`rows` ascend by column 0; some columns may be indexes into `words`, as the writer knows."""

    rows: Rows
    words: tuple[str, ...]


class RowStore:
    """Rows of `columns` integers (64 bits, signed); what finds no room is counted."""

    def __init__(self, columns: int, bounds: Bounds) -> None:
        self.refused = 0
        """Rows put that were not kept."""
        self._columns, self._bounds = columns, bounds
        self._file = ChunkFile(bounds.bytes)
        self._full = ""
        self._kept = self._end = 0
        self._firsts, self._chunks = array("q"), array("q")
        self._late_numbers, self._late_places = array("q"), array("q")
        self._late_sorted: tuple[Rows, Rows] | None = None
        self._cache: dict[int, Chunk] = {}

    @property
    def full(self) -> str:
        """Why no more is kept; empty while there is room."""
        return self._full or self._file.full

    def put(self, rows: Rows, words: Sequence[str] = ()) -> bool:
        """Keep rows whose numbers ascend: either all beyond every number so far, or none; tell whether there was room.

        Preconditions: at most `CHUNK_ROWS` rows, and at least one.
        """
        if self._kept + len(rows) > self._bounds.rows and not self._full:
            self._full = f"its bound of {self._bounds.rows:,} is reached"
        number = len(self._file)
        if self._full or not self._file.append(_encode(rows, words)):
            self.refused += len(rows)
            return False
        self._kept += len(rows)
        if rows[0, 0] >= self._end:
            self._end = int(rows[-1, 0]) + 1
            self._firsts.append(int(rows[0, 0]))
            self._chunks.append(number)
        else:
            self._late_sorted = None
            self._late_numbers.extend(rows[:, 0].tolist())
            self._late_places.extend(range(number * CHUNK_ROWS, number * CHUNK_ROWS + len(rows)))
        return True

    def chunks(self) -> int:
        """How many chunks there are."""
        return len(self._file)

    def chunk(self, number: int) -> Chunk:
        """Return a chunk, in the order they were put."""
        found = self._cache.pop(number, None)
        if found is None:
            found = _decode(self._file.read(number), self._columns)
        self._cache[number] = found
        while len(self._cache) > _CACHED:
            del self._cache[next(iter(self._cache))]
        return found

    def find(self, number: int) -> tuple[list[int], tuple[str, ...]] | None:
        """Return the row of a number and the words of its chunk; None if it was never put, or not kept."""
        numbers, places = self._late()
        at = int(np.searchsorted(numbers, number))
        if at < len(numbers) and numbers[at] == number:
            return self._at(int(places[at]))
        which = bisect_right(self._firsts, number) - 1
        if which < 0:
            return None
        chunk = self.chunk(self._chunks[which])
        at = int(np.searchsorted(chunk.rows[:, 0], number))
        if at == len(chunk.rows) or chunk.rows[at, 0] != number:
            return None
        return chunk.rows[at].tolist(), chunk.words

    def __iter__(self) -> Iterator[tuple[list[int], tuple[str, ...]]]:
        """Every row kept, by number, with the words of its chunk."""
        numbers, places = self._late()
        done = 0
        for which in range(len(self._chunks)):
            chunk = self.chunk(self._chunks[which])
            for row in chunk.rows.tolist():
                while done < len(numbers) and numbers[done] < row[0]:
                    yield self._at(int(places[done]))
                    done += 1
                if done == len(numbers) or numbers[done] != row[0]:
                    yield row, chunk.words
        for place in places[done:].tolist():
            yield self._at(place)

    def _at(self, place: int) -> tuple[list[int], tuple[str, ...]]:
        chunk = self.chunk(place // CHUNK_ROWS)
        return chunk.rows[place % CHUNK_ROWS].tolist(), chunk.words

    def _late(self) -> tuple[Rows, Rows]:
        """Numbers that were put late, ascending, each once, and where their newest rows are."""
        if self._late_sorted is not None:
            return self._late_sorted
        numbers, places = (np.array(each, dtype=np.int64) for each in (self._late_numbers, self._late_places))
        if len(numbers):
            order = np.lexsort((places, numbers))
            numbers, places = numbers[order], places[order]
            newest = np.append(numbers[1:] != numbers[:-1], True)
            numbers, places = numbers[newest], places[newest]
        self._late_sorted = numbers, places
        return self._late_sorted


def holds_the_same(ours: Sequence[Any], theirs: object) -> bool:
    """Tell whether a log and another one, or a list, are of the same length, and what they keep is equal."""
    if not isinstance(theirs, Sequence) or len(ours) != len(theirs):
        return False
    nothing = object()
    return all(one == other for one, other in zip_longest(ours, theirs, fillvalue=nothing))


def _encode(rows: Rows, words: Sequence[str]) -> bytes:
    text = json.dumps(list(words)).encode()
    planes = np.ascontiguousarray(rows.T).view(np.uint8).reshape(rows.shape[1], len(rows), 8).transpose(0, 2, 1)
    return len(text).to_bytes(4, "little") + text + planes.tobytes()


def _decode(data: bytes, columns: int) -> Chunk:
    begin = 4 + int.from_bytes(data[:4], "little")
    planes = np.frombuffer(data, np.uint8, offset=begin).reshape(columns, 8, -1)
    rows = np.ascontiguousarray(planes.transpose(2, 0, 1)).view(np.int64)[:, :, 0]
    return Chunk(rows, tuple(json.loads(data[4:begin])))
