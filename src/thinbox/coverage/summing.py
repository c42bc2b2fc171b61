"""Adds up calls: what one call did, what all calls of a name did, what the workload did.

Why it exists: most calls of a program do exactly what an earlier one did. What a call executed is kept as
the bytes of its log, equal ones once, and looked up in the symbols once, when the run is over.

Rules of this file: no machine; the live text is read through a function that is passed in.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thinbox.address import U64
from thinbox.coverage.attribution import Blocks, Executed, TextMap, traceable
from thinbox.coverage.results import CallCounts, NameCoverage, RunCoverage, Use

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.session.records import CallRecord

_BYTES_BITS = 16
Pages = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CallData:
    """Pages of kernel data one isolated call read or wrote (`used`), and wrote; signed, distinct, ascending."""

    used: Pages
    written: Pages

    @classmethod
    def nothing(cls) -> "CallData":
        """Return what a call has that touched no data."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(empty, empty)

    def joined(self, used: Pages, written: Pages) -> "CallData":
        """Return this and more pages."""
        return CallData(np.union1d(self.used, used), np.union1d(self.written, written))


def decode_blocks(log: bytes) -> Blocks:
    """Return the blocks of a log of `machine.coverage_hooks` as pairs (first byte, end exclusive)."""
    entries = np.frombuffer(log, dtype=np.int64)
    first = entries >> _BYTES_BITS
    return np.stack([first, first + (entries & ((1 << _BYTES_BITS) - 1))], axis=1)


class _Tally:
    """Counts in how many calls each value occurs."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.integer]] = []
        self._times: list[int] = []

    def add(self, values: npt.NDArray[np.integer], times: int = 1) -> None:
        """Count each of `values` (distinct) `times` times."""
        self._parts.append(values)
        self._times.append(times)

    def counts(self) -> list[tuple[int, int]]:
        """Return (value, calls), by value."""
        if not self._parts:
            return []
        values, place = np.unique(np.concatenate(self._parts), return_inverse=True)
        weights = np.repeat(self._times, [len(part) for part in self._parts])
        calls = np.bincount(place, weights=weights, minlength=len(values)).astype(np.int64)
        return list(zip(values.tolist(), calls.tolist(), strict=True))


class _NameSum:
    """The calls of one name, being added up."""

    def __init__(self) -> None:
        self.logs: Counter[int] = Counter()
        self.isolated = 0
        self.used, self.written = _Tally(), _Tally()


class Ledger:
    """What each call did, in the order the calls closed."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._calls: list[tuple[int, int, CallData | None]] = []

    def add(self, seq: int, log: bytes, data: CallData | None) -> None:
        """Keep call `seq`; `data` is None if it was not isolated."""
        self._calls.append((seq, self._numbers.setdefault(log, len(self._numbers)), data))

    def summed(
        self,
        calls: "Sequence[CallRecord]",
        view: "KernelView",
        read_text: Callable[[int, int], bytes],
        irq_log: bytes,
        lost: int,
    ) -> RunCoverage:
        """Attribute and add up; fills `coverage` of `calls`, which are indexed by `seq`."""
        symbols = view.symbols
        names = [symbols.text_symbol_at(start).name for start in symbols.text_starts]  # type: ignore[union-attr]
        text_map = TextMap(symbols.text_start, symbols.text_starts, names)
        done = [text_map.attribute(decode_blocks(log)) for log in self._numbers]
        everything = np.unique(np.concatenate([e.entered for e in done])) if done else np.zeros(0, np.int64)
        visible = traceable(everything.tolist(), text_map, read_text)
        is_visible = np.zeros(len(names), dtype=bool)
        is_visible[list(visible)] = True
        sums: defaultdict[str, _NameSum] = defaultdict(_NameSum)
        for seq, number, data in self._calls:
            record, executed = calls[seq], done[number]
            part = sums[record.name]
            part.logs[number] += 1
            if data is not None:
                part.isolated += 1
                part.used.add(data.used)
                part.written.add(data.written)
            record.coverage = CallCounts(
                functions=len(executed.entered),
                traceable=int(is_visible[executed.entered].sum()),
                executed_pages=len(executed.pages),
                data_pages=None if data is None else len(data.used),
                written_pages=None if data is None else len(data.written),
            )
        table = _Table(text_map, done, is_visible)
        whole = _NameSum()
        for part in sums.values():
            whole.logs.update(part.logs)
        total = table.name_coverage("", whole)
        interrupts = text_map.attribute(decode_blocks(irq_log)).entered
        return RunCoverage(
            calls=tuple(table.name_coverage(name, part) for name, part in sorted(sums.items())),
            entered=total.entered,
            executed_functions=len(total.executed),
            executed_pages=len(total.executed_pages),
            traceable=total.traceable,
            interrupts=tuple(names[index] for index in interrupts.tolist()),
            lost_blocks=lost,
        )


class _Table:
    """Attributed logs by number, and what turns indexes into names."""

    def __init__(self, text_map: TextMap, done: list[Executed], is_visible: npt.NDArray[np.bool_]) -> None:
        self._map, self._done, self._is_visible = text_map, done, is_visible

    def name_coverage(self, name: str, part: _NameSum) -> NameCoverage:
        """Return all calls of `part` as one."""
        entered, executed, pages = _Tally(), _Tally(), _Tally()
        for number, times in part.logs.items():
            log = self._done[number]
            entered.add(log.entered, times)
            executed.add(log.touched, times)
            pages.add(log.pages, times)
        functions = entered.counts()
        return NameCoverage(
            name=name,
            calls=part.logs.total(),
            isolated=part.isolated,
            entered=self._functions(functions),
            executed=self._functions(executed.counts()),
            traceable=sum(bool(self._is_visible[index]) for index, _calls in functions),
            executed_pages=tuple(Use(vaddr, "", calls) for vaddr, calls in pages.counts()),
            data_pages=_data(part.used),
            written_pages=_data(part.written),
        )

    def _functions(self, counts: list[tuple[int, int]]) -> tuple[Use, ...]:
        return tuple(Use(self._map.vaddr_of(index), self._map.names[index], calls) for index, calls in counts)


def _data(tally: _Tally) -> tuple[Use, ...]:
    return tuple(Use(vaddr & U64, "", calls) for vaddr, calls in tally.counts())
