"""The calls of a run, in flat memory: a sequence whose old part is packed and read back when it is asked for.

Why it exists: a tenant chooses how many calls it makes; one object a call filled the host at megabytes a second.

Rules of this file:
- A call is packed when it is old and nobody else holds its record: then nothing can change it any more. A call that has
  not returned is held by its task, so it stays an object however long it sleeps.
- `len` counts every call there was, so it is the next one's number; iterating gives those kept, in order.
- Sums are added up as calls are packed, so they are exact whatever is kept.
"""

import heapq
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from itertools import chain, takewhile
from typing import Any, overload

import numpy as np

from thinbox.address import U64
from thinbox.records.call import UNREACHING, CallRecord
from thinbox.records.call_counts import CountsByCall
from thinbox.records.coverage import CallCounts
from thinbox.records.row_store import CHUNK_ROWS, Bounds, Rows, RowStore, holds_the_same
from thinbox.records.tally import NameTally, Tally

CALL_BOUNDS = Bounds(rows=20_000_000, bytes=4 << 30)
"""20 million calls are some hours of a tenant that does nothing else. They take 52 MB if all are alike, 1.2 GB with
random arguments and results (60 bytes each); 4 GiB is what even calls with names made up do not reach."""
_COLUMNS = (
    "number", "seq", "tenant", "pid", "nr", "name", "arg0", "arg1", "arg2", "arg3", "arg4", "arg5", "arguments",
    "returned", "ret", "isolated", "verdict", "code_faults", "data_faults", "prefaulted", "code_bytes", "virtual_ns",
    "disposition", "plan_line", "requested", "covered", "functions", "traceable", "executed_pages", "data_pages",
    "written_pages",
)  # fmt: skip
_WORDS = tuple(_COLUMNS.index(name) for name in ("tenant", "name", "verdict", "disposition", "requested"))
_FIRST_ARG, _AFTER_ARGS, _ARGUMENTS = _COLUMNS.index("arg0"), _COLUMNS.index("arguments"), 6
_UNCOVERED = (0, 0, 0, 0, 0, 0)
_WITHOUT_DATA, _WITH_DATA = 1, 2
_Row = tuple[Any, ...]
_PLACE = CallRecord(0, "", 0, 0, "", ())


class CallLog(Sequence[CallRecord]):
    """Calls by number, from 0. What `calls[n]` returns of a packed call is a copy."""

    def __init__(self, calls: Iterable[CallRecord] = (), bounds: Bounds = CALL_BOUNDS) -> None:
        self._count = self._packed_end = 0
        self._live: dict[int, CallRecord] = {}
        """Those not packed, by number: the newest, and older ones that somebody holds."""
        self._late: dict[int, _Row] = {}
        """Closed after younger ones were packed, and not enough yet for a chunk."""
        self._store = RowStore(len(_COLUMNS), bounds)
        self._packed = Tally()
        self._counts = CountsByCall()
        for call in calls:
            self.append(call)

    def append(self, call: CallRecord) -> None:
        """Add the next call, which may go on changing as long as somebody holds it."""
        self._live[self._count] = call
        self._count += 1
        if self._count >= self._packed_end + 2 * CHUNK_ROWS:
            self._pack()

    @property
    def left_out(self) -> int:
        """Calls that are in the sums only."""
        return self._store.refused

    @property
    def why_left_out(self) -> str:
        """Why calls were left out, in words; empty if none was."""
        return self._store.full if self.left_out else ""

    @property
    def tally(self) -> Tally:
        """The sums of all calls, kept or not, as they stand now."""
        return self._packed.plus(chain(self._live.values(), map(self._unpacked, self._late.values())))

    def cover(self, number: int, counts: CallCounts) -> None:
        """Set `coverage` of a call, packed or not."""
        if number in self._live:
            self._live[number].coverage = counts
        else:
            self._counts.set(number, counts)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[CallRecord]:
        here = [(number, self._unpacked(row)) for number, row in self._late.items()]
        here = sorted([*here, *self._live.items()], key=lambda item: item[0])
        packed = ((row[0], self._unpacked(_with_words(row, words))) for row, words in self._store)
        for _number, call in heapq.merge(packed, here, key=lambda item: item[0]):
            yield call

    def __reversed__(self) -> Iterator[CallRecord]:
        return (call for number in range(self._count - 1, -1, -1) if (call := self._find(number)) is not None)

    @overload
    def __getitem__(self, index: int) -> CallRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[CallRecord]: ...
    def __getitem__(self, index: int | slice) -> CallRecord | list[CallRecord]:
        """Return a call, or those of a slice that are kept; IndexError for one that there is not, or left out."""
        if isinstance(index, slice):
            found = map(self._find, range(*index.indices(self._count)))
            return [call for call in found if call is not None]
        number = index + self._count if index < 0 else index
        call = self._find(number) if 0 <= number < self._count else None
        if call is None:
            raise IndexError(f"call {index} of {self._count} is not in the record")
        return call

    def __eq__(self, other: object) -> bool:
        return holds_the_same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<CallLog of {self._count} calls, {self.left_out} left out>"

    def _find(self, number: int) -> CallRecord | None:
        if number in self._live:
            return self._live[number]
        if number in self._late:
            return self._unpacked(self._late[number])
        found = self._store.find(number)
        return None if found is None else self._unpacked(_with_words(*found))

    # -- packing ----------------------------------------------------------------------------------------
    def _pack(self) -> None:
        """Pack all but the newest `CHUNK_ROWS` calls and what is held."""
        end = self._count - CHUNK_ROWS
        rows = []
        for number in list(takewhile(lambda number: number < end, self._live)):
            row = self._pack_one(number)
            if row is None:
                continue
            if number >= self._packed_end:
                rows.append(row)
            else:
                self._late[number] = row
        self._packed_end = end
        if rows:
            self._put(rows)
        while len(self._late) >= CHUNK_ROWS:
            # Of one age or another: they are looked up by number, and need not be neighbours.
            numbers = sorted(self._late)[:CHUNK_ROWS]
            self._put([self._late.pop(number) for number in numbers])

    def _put(self, rows: list[_Row]) -> None:
        matrix, words = _matrix(rows)
        self._store.put(matrix, words)
        self._packed.merge(_sums(matrix, words))

    def _pack_one(self, number: int) -> _Row | None:
        """Return the row of a call that only this log holds, and forget it; None for one that is held elsewhere."""
        call = self._live[number]
        row, held = _row(number, call), weakref.ref(call)
        # The log lets go. If the record lives on, somebody may still change it.
        self._live[number] = _PLACE
        del call
        alive = held()
        if alive is not None:
            self._live[number] = alive
            return None
        del self._live[number]
        return row

    def _unpacked(self, row: _Row) -> CallRecord:
        call = _call(row)
        if call.coverage is None:
            call.coverage = self._counts.get(row[0])
        return call


def _row(number: int, call: CallRecord) -> _Row:
    args = call.args
    if len(args) != _ARGUMENTS:
        args = (*args, *(0,) * (_ARGUMENTS - len(args)))
    return (
        number, call.seq, call.tenant, call.pid, call.nr, call.name, *args, len(call.args),
        call.ret is not None, call.ret or 0, call.isolated, call.verdict, call.code_faults, call.data_faults,
        call.prefaulted, call.code_bytes, call.virtual_ns, call.disposition, call.plan_line, call.requested,
        *_covered(call.coverage),
    )  # fmt: skip


def _covered(counts: CallCounts | None) -> tuple[int, ...]:
    if counts is None:
        return _UNCOVERED
    kind = _WITHOUT_DATA if counts.data_pages is None else _WITH_DATA
    return (kind, *(value or 0 for value in astuple(counts)))


def _call(row: _Row) -> CallRecord:
    _number, seq, tenant, pid, nr, name = row[:_FIRST_ARG]
    args, rest = row[_FIRST_ARG:_AFTER_ARGS], row[_AFTER_ARGS:]
    arguments, returned, ret, isolated, verdict, code, data, prefaulted, code_bytes, ns, disposition, line = rest[:12]
    requested = rest[12]
    args = tuple(value & U64 for value in args[:arguments])
    coverage = None
    covered, *counts = rest[13:]
    if covered:
        functions, visible, pages, used, written = counts
        data_pages = (used, written) if covered == _WITH_DATA else (None, None)
        coverage = CallCounts(functions, visible, pages, *data_pages)
    return CallRecord(
        seq, tenant, pid, nr, name, args, ret if returned else None, bool(isolated), verdict, code, data, prefaulted,
        code_bytes, ns, disposition, line, coverage, requested,
    )  # fmt: skip


def _matrix(rows: list[_Row]) -> tuple[Rows, tuple[str, ...]]:
    """Return rows as integers, and the words that some of them stand for."""
    words: dict[str, int] = {}
    out = np.empty((len(rows), len(_COLUMNS)), dtype=np.int64)
    for column, values in enumerate(zip(*rows, strict=True)):
        if column in _WORDS:
            out[:, column] = [words.setdefault(word, len(words)) for word in values]
        elif _FIRST_ARG <= column < _AFTER_ARGS:
            out[:, column] = np.array(values, dtype=np.uint64).view(np.int64)
        else:
            out[:, column] = values
    return out, tuple(words)


def _sums(rows: Rows, words: tuple[str, ...]) -> Tally:
    """Add rows up as `Tally.add` does calls, a column at a time."""
    columns = {name: rows[:, at] for at, name in enumerate(_COLUMNS)}
    names, faults = columns["name"], columns["code_faults"] + columns["data_faults"]
    sums = np.zeros((len(words), 6), dtype=np.int64)
    np.add.at(sums[:, 0], names, 1)
    for at, column in enumerate(("isolated", "code_faults", "data_faults"), 1):
        np.add.at(sums[:, at], names, columns[column])
    np.maximum.at(sums[:, 4], names, faults)
    np.maximum.at(sums[:, 5], names, columns["virtual_ns"])
    parts = {words[at]: NameTally(*sums[at].tolist()) for at in np.unique(names).tolist()}
    everything = NameTally()
    for part in parts.values():
        everything.merge(part)
    answered = [at for at, word in enumerate(words) if word in UNREACHING]
    reaching = ~np.isin(columns["disposition"], answered)
    unisolated = reaching & (columns["isolated"] == 0)
    prefaulted = int(columns["prefaulted"].sum())
    return Tally(everything, parts, int(reaching.sum()), int(unisolated.sum()), prefaulted)


def _with_words(row: list[int], words: tuple[str, ...]) -> _Row:
    out: list[int | str] = list(row)
    for column in _WORDS:
        out[column] = words[row[column]]
    return tuple(out)
