"""Adds up calls: what one call did, what all calls of a name did, what the workload did.

Why it exists: most calls of a program do exactly what an earlier one did. What a call executed is kept as
the bytes of its log, equal ones once, and looked up in the symbols once, when the run is over.

Rules of this file: no machine; the live text is read through a function that is passed in.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thinbox import paging
from thinbox.address import PAGE_MASK, U64
from thinbox.coverage.attribution import BlockMap, Executed, TextMap, traceable
from thinbox.records.call_log import CALL_BOUNDS
from thinbox.records.coverage import CallCounts, NameCoverage, RunCoverage, Use
from thinbox.records.row_store import CHUNK_ROWS, RowStore

if TYPE_CHECKING:
    from thinbox.image.symbols import SymbolTable
    from thinbox.records.call_log import CallLog

BYTES_BITS = 16
_CALL_WORDS = 5
"""Words kept of a call: which it is here, its `seq`, its log's number, how many pages it used and wrote (-1: not
isolated)."""
_WAITING = 1 << 16
"""Pages held before they are counted up: half a megabyte."""
_Integers = npt.NDArray[np.integer]
_Data = list[npt.NDArray[np.int64]]
"""Page addresses with the marks PRESENT, ACCESSED and DIRTY in their low bits; a page may be there twice."""


@dataclass(frozen=True, slots=True)
class SymbolSource:
    """The kernel's symbols where it runs, and `read_text(vaddr, bytes)` for its live text."""

    symbols: "SymbolTable"
    read_text: Callable[[int, int], bytes]


@dataclass(slots=True)
class _PageSum:
    """Pages, and in how many calls each was used: counted up whenever there are many."""

    counts: Counter[int] = field(default_factory=Counter)
    _waiting: list[_Integers] = field(default_factory=list)
    _length: int = 0

    def add(self, pages: _Integers) -> None:
        """Count the pages of one call, each there once."""
        self._waiting.append(pages)
        self._length += 1 + len(pages)
        if self._length >= _WAITING:
            self._count()

    def tally(self) -> list[tuple[int, int]]:
        """Return (page, calls), by page."""
        self._count()
        return sorted(self.counts.items())

    def _count(self) -> None:
        if self._waiting:
            pages, times = np.unique(np.concatenate(self._waiting), return_counts=True)
            self.counts.update(dict(zip(pages.tolist(), times.tolist(), strict=True)))
        self._waiting, self._length = [], 0


@dataclass(slots=True)
class _NameSum:
    """The calls of one name, being added up: how often each log, and the pages of isolated calls."""

    logs: Counter[int] = field(default_factory=Counter)
    isolated: int = 0
    used: _PageSum = field(default_factory=_PageSum)
    written: _PageSum = field(default_factory=_PageSum)


class Ledger:
    """What each call did, in the order the calls closed."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._sums: defaultdict[str, _NameSum] = defaultdict(_NameSum)
        self._calls = array("q")
        self._stored = RowStore(_CALL_WORDS, CALL_BOUNDS)
        self._count = 0

    def add(self, seq: int, name: str, log: bytes, data: _Data | None) -> None:
        """Add call `seq`: its block numbers (32 bits each), and its data pages or None if it was not isolated."""
        number = self._numbers.setdefault(log, len(self._numbers))
        part = self._sums[name]
        part.logs[number] += 1
        pages = (-1, -1)
        if data is not None:
            used, written = _split(data)
            part.isolated += 1
            part.used.add(used)
            part.written.add(written)
            pages = len(used), len(written)
        self._calls.extend((self._count, seq, number, *pages))
        self._count += 1
        if len(self._calls) == _CALL_WORDS * CHUNK_ROWS:
            self._store()

    def _store(self) -> None:
        if self._calls:
            self._stored.put(np.array(self._calls, dtype=np.int64).reshape(-1, _CALL_WORDS))
        self._calls = array("q")

    def summed(
        self, calls: "CallLog", source: SymbolSource, blocks: _Integers, interrupts: _Integers, lost: int
    ) -> RunCoverage:
        """Attribute and add up; fills `coverage` of `calls`, which are numbered by `seq`.

        `blocks` are all blocks by number, as (offset << 16) | bytes; `interrupts` the numbers of theirs.
        """
        symbols = source.symbols
        text_map = TextMap(symbols.text_start, symbols.text_starts, symbols.text_names)
        first = blocks >> BYTES_BITS
        block_map = BlockMap(text_map, np.stack([first, first + (blocks & ((1 << BYTES_BITS) - 1))], axis=1))
        logs = [block_map.executed(np.frombuffer(log, dtype=np.int32)) for log in self._numbers]
        table = _Table(text_map, logs, source.read_text)
        self._store()
        for (_count, seq, number, used, written), _words in self._stored:
            calls.cover(seq, table.call_counts(number, used, written))
        sums = self._sums
        every: Counter[int] = Counter()
        for part in sums.values():
            every.update(part.logs)
        whole = table.name_coverage("", _NameSum(every))
        entered_by_interrupts = block_map.executed(interrupts).entered
        return RunCoverage(
            calls=tuple(table.name_coverage(name, part) for name, part in sorted(sums.items())),
            entered=whole.entered,
            executed_functions=len(whole.executed),
            executed_pages=len(whole.executed_pages),
            traceable=whole.traceable,
            interrupts=tuple(text_map.names[index] for index in entered_by_interrupts.tolist()),
            lost_blocks=lost,
        )


class _Table:
    """The attributed logs by number, and what turns indexes of functions into names."""

    def __init__(self, text_map: TextMap, logs: list[Executed], read_text: Callable[[int, int], bytes]) -> None:
        self._map, self._logs = text_map, logs
        seen = np.zeros(len(text_map.names), dtype=bool)
        for log in logs:
            seen[log.entered] = True
        self._is_visible = np.zeros(len(text_map.names), dtype=bool)
        self._is_visible[list(traceable(np.flatnonzero(seen).tolist(), text_map, read_text))] = True

    def call_counts(self, number: int, used: int, written: int) -> CallCounts:
        """Return the numbers of one call; `used` and `written` pages are -1 if it was not isolated."""
        log = self._logs[number]
        return CallCounts(
            functions=len(log.entered),
            traceable=int(np.count_nonzero(self._is_visible[log.entered])),
            executed_pages=len(log.pages),
            data_pages=None if used < 0 else used,
            written_pages=None if written < 0 else written,
        )

    def name_coverage(self, name: str, part: _NameSum) -> NameCoverage:
        """Return all calls of `part` as one."""
        logs, times = [self._logs[number] for number in part.logs], list(part.logs.values())
        entered = _tally((log.entered for log in logs), times)
        return NameCoverage(
            name=name,
            calls=part.logs.total(),
            isolated=part.isolated,
            entered=self._functions(entered),
            executed=self._functions(_tally((log.touched for log in logs), times)),
            traceable=sum(bool(self._is_visible[index]) for index, _calls in entered),
            executed_pages=_pages(_tally((log.pages for log in logs), times)),
            data_pages=_pages(part.used.tally()),
            written_pages=_pages(part.written.tally()),
        )

    def _functions(self, counts: list[tuple[int, int]]) -> tuple[Use, ...]:
        return tuple(Use(self._map.vaddr_of(index), self._map.names[index], calls) for index, calls in counts)


def _split(data: _Data) -> tuple[_Integers, _Integers]:
    """Return the distinct pages used, and those of them written."""
    if not data:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing
    marked = np.concatenate(data) if len(data) > 1 else data[0]
    used, written = marked[marked & paging.ACCESSED != 0], marked[marked & paging.DIRTY != 0]
    return _distinct(used & PAGE_MASK), _distinct(written & PAGE_MASK)


def _distinct(pages: _Integers) -> _Integers:
    """Return what `np.unique` does, several times faster on the few dozen pages of a call."""
    ordered = np.sort(pages)
    keep = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=keep[1:])
    return ordered[keep]


def _tally(sets: Iterable[_Integers], times: Sequence[int]) -> list[tuple[int, int]]:
    """Count each value of each set as often as `times` says of the set; return (value, count), by value."""
    parts = list(sets)
    if not parts:
        return []
    values, places = np.unique(np.concatenate(parts), return_inverse=True)
    weights = np.repeat(np.array(times, dtype=np.int64), [len(part) for part in parts])
    counts = np.bincount(places, weights=weights, minlength=len(values)).astype(np.int64)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def _pages(counts: list[tuple[int, int]]) -> tuple[Use, ...]:
    return tuple(Use(vaddr & U64, "", calls) for vaddr, calls in counts)
