"""The granted pages of a run (`keep_faults`), in flat memory: a sequence whose old part is packed.

Why it exists: a call takes some 15 to 300 faults, so these outgrow the calls (`records.call_log`) tenfold.

Rules of this file: a fault never changes, so all but the newest are packed. `len` counts every one there was.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from thinbox.address import U64
from thinbox.records.row_store import CHUNK_ROWS, Bounds, RowStore, holds_the_same

FAULT_BOUNDS = Bounds(rows=300_000_000, bytes=4 << 30)
"""300 million are the 15 of each of 20 million calls; a page takes 4 to 14 bytes, so either bound may come first."""
_COLUMNS = ("number", "seq", "vaddr", "rip", "kind", "symbol", "writable")


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One granted page: which call, where, by which instruction. `writable` is the mapping's own bit: a page
    granted for a read may be written too if the kernel's mapping may."""

    seq: int
    vaddr: int
    rip: int
    kind: str
    symbol: str
    writable: bool = False


class FaultLog(Sequence[FaultRecord]):
    """Faults in the order they came."""

    def __init__(self, faults: Iterable[FaultRecord] = (), bounds: Bounds = FAULT_BOUNDS) -> None:
        self._newest: list[FaultRecord] = []
        self._packed = 0
        self._lowest, self._highest = array("q"), array("q")
        """Of each chunk, the calls it is of."""
        self._store = RowStore(len(_COLUMNS), bounds)
        for fault in faults:
            self.append(fault)

    def append(self, fault: FaultRecord) -> None:
        """Add a fault."""
        self._newest.append(fault)
        if len(self._newest) >= 2 * CHUNK_ROWS:
            self._pack()

    @property
    def left_out(self) -> int:
        """Faults that found no room."""
        return self._store.refused

    @property
    def why_left_out(self) -> str:
        """Why faults were left out, in words; empty if none was."""
        return self._store.full if self.left_out else ""

    def of_calls(self, first: int, end: int) -> Iterator[FaultRecord]:
        """The faults kept of the calls numbered `first` to `end` (exclusive), in the order they came."""
        for chunk in range(self._store.chunks()):
            if self._lowest[chunk] < end and self._highest[chunk] >= first:
                yield from (fault for fault in self._chunk(chunk) if first <= fault.seq < end)
        yield from (fault for fault in self._newest if first <= fault.seq < end)

    def __len__(self) -> int:
        return self._packed + len(self._newest)

    def __iter__(self) -> Iterator[FaultRecord]:
        for chunk in range(self._store.chunks()):
            yield from self._chunk(chunk)
        yield from self._newest

    @overload
    def __getitem__(self, index: int) -> FaultRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[FaultRecord]: ...
    def __getitem__(self, index: int | slice) -> FaultRecord | list[FaultRecord]:
        """Return a fault, or those of a slice that are kept; IndexError for one that there is not, or left out."""
        if isinstance(index, slice):
            found = map(self._find, range(*index.indices(len(self))))
            return [fault for fault in found if fault is not None]
        number = index + len(self) if index < 0 else index
        fault = self._find(number) if 0 <= number < len(self) else None
        if fault is None:
            raise IndexError(f"fault {index} of {len(self)} is not in the record")
        return fault

    def __eq__(self, other: object) -> bool:
        return holds_the_same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<FaultLog of {len(self)} faults, {self.left_out} left out>"

    def _find(self, number: int) -> FaultRecord | None:
        if number >= self._packed:
            return self._newest[number - self._packed]
        found = self._store.find(number)
        return None if found is None else _fault(*found)

    def _chunk(self, number: int) -> Iterator[FaultRecord]:
        chunk = self._store.chunk(number)
        return (_fault(row, chunk.words) for row in chunk.rows.tolist())

    def _pack(self) -> None:
        faults, self._newest = self._newest[:CHUNK_ROWS], self._newest[CHUNK_ROWS:]
        words: dict[str, int] = {}
        rows = np.empty((len(faults), len(_COLUMNS)), dtype=np.int64)
        rows[:, 0] = range(self._packed, self._packed + len(faults))
        rows[:, 1] = [fault.seq for fault in faults]
        rows[:, 2] = np.array([fault.vaddr for fault in faults], dtype=np.uint64).view(np.int64)
        rows[:, 3] = np.array([fault.rip for fault in faults], dtype=np.uint64).view(np.int64)
        rows[:, 4] = [words.setdefault(fault.kind, len(words)) for fault in faults]
        rows[:, 5] = [words.setdefault(fault.symbol, len(words)) for fault in faults]
        rows[:, 6] = [fault.writable for fault in faults]
        self._packed += len(faults)
        if self._store.put(rows, tuple(words)):
            self._lowest.append(int(rows[:, 1].min()))
            self._highest.append(int(rows[:, 1].max()))


def _fault(row: list[int], words: tuple[str, ...]) -> FaultRecord:
    _number, seq, vaddr, rip, kind, symbol, writable = row
    return FaultRecord(seq, vaddr & U64, rip & U64, words[kind], words[symbol], bool(writable))
