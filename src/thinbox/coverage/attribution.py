"""From executed blocks to functions and pages: arithmetic on arrays, nothing else.

Why it exists: a block is an interval of addresses; a reader wants names. What counts as *entered* is the
horizontal attack profile (HAP, Bottomley 2018), so the rule for it stands in one place.

Rules of this file:
- No machine, no clock, no files.
- A function is *entered* if a block runs over its first instruction: by a call, a jump, or by falling into it.
- A function is *executed* if any byte of a block lies in it. `.cold` parts are pieces of a function that the
  compiler moved away: they are executed, and never entered.
- A block that faults half way counts whole: blocks are the grain of this measurement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thinbox.address import PAGE_BYTES

_COLD = ".cold"
_ENDBR64 = bytes.fromhex("f30f1efa")
_NOP4 = bytes.fromhex("0f1f4000")
"""What the kernel seals an `endbr64` with that nothing jumps to (arch/x86/include/asm/ibt.h, gen_endbr_poison:
`nopl (%rax)` with a byte of displacement), the same length."""
_FENTRY_NOP = bytes.fromhex("0f1f440000")
"""What ftrace leaves of `call __fentry__` (arch/x86/kernel/ftrace.c, ftrace_nop_replace; x86_nops[5])."""
PROLOGUE_BYTES = 16

Blocks = npt.NDArray[np.int64]
"""Pairs (first byte, end exclusive), as offsets from the start of the text."""


@dataclass(frozen=True, slots=True)
class Executed:
    """What a set of blocks executed: indexes of functions into `TextMap.names`, page addresses; ascending."""

    entered: npt.NDArray[np.int64]
    touched: npt.NDArray[np.int64]
    pages: npt.NDArray[np.uint64]


class TextMap:
    """The functions of a kernel's text.

    Preconditions: `starts` ascends, its addresses lie in the text that begins at `text_start`; `names` is
    parallel to it.
    """

    def __init__(self, text_start: int, starts: Sequence[int], names: Sequence[str]) -> None:
        self.text_start = text_start
        self.names = tuple(names)
        self.offsets = np.array([start - text_start for start in starts], dtype=np.int64)
        self.is_cold = np.array([name.endswith(_COLD) for name in names], dtype=bool)

    def vaddr_of(self, index: int) -> int:
        """Return where function `index` starts."""
        return self.text_start + int(self.offsets[index])


class BlockMap:
    """Blocks that were executed at some time, each looked up once; calls are sets of their numbers."""

    def __init__(self, text_map: TextMap, blocks: Blocks) -> None:
        first, end = blocks[:, 0], blocks[:, 1]
        self._map = text_map
        self._skew = text_map.text_start % PAGE_BYTES
        # Starts s with first <= s < end lie at the indexes low to high - 1.
        low, high = (np.searchsorted(text_map.offsets, edge, "left") for edge in (first, end))
        containing = np.maximum(np.searchsorted(text_map.offsets, first, "right") - 1, 0)
        self._entered = _Ranges(low, high)
        self._touched = _Ranges(containing, high)
        self._pages = _Ranges((self._skew + first) // PAGE_BYTES, (self._skew + end - 1) // PAGE_BYTES + 1)

    def executed(self, numbers: npt.NDArray[np.integer]) -> Executed:
        """Return what the blocks of these numbers executed; no block executed nothing."""
        entered = self._entered.union(numbers)
        pages = self._pages.union(numbers).astype(np.uint64) * np.uint64(PAGE_BYTES)
        return Executed(
            entered=entered[~self._map.is_cold[entered]],
            touched=self._touched.union(numbers),
            pages=pages + np.uint64(self._map.text_start - self._skew),
        )


class _Ranges:
    """One range of integers, low <= n < high, for each block; nearly all hold one integer or none."""

    def __init__(self, low: npt.NDArray[np.int64], high: npt.NDArray[np.int64]) -> None:
        self._low, self._high = low, high
        size = int(high.max(initial=0))
        self._marks = np.zeros(size + 1, dtype=bool)
        # Ranges without a member mark the extra place at the end.
        self._single = np.where(high > low, low, size)
        self._is_wide = high > low + 1

    def union(self, numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Return the distinct members of these ranges, ascending."""
        marks = self._marks
        marks[self._single[numbers]] = True
        for number in numbers[self._is_wide[numbers]].tolist():
            marks[self._low[number] : self._high[number]] = True
        found = np.flatnonzero(marks[:-1])
        marks[:] = False
        return found


def is_traceable(prologue: bytes) -> bool:
    """Tell from the first bytes of a function, in the live text, whether ftrace could trace it."""
    if prologue.startswith((_ENDBR64, _NOP4)):
        prologue = prologue[4:]
    return prologue.startswith(_FENTRY_NOP)


def traceable(indexes: Sequence[int], text_map: TextMap, read: Callable[[int, int], bytes]) -> frozenset[int]:
    """Return those functions of `indexes` that ftrace could see; `read(vaddr, bytes)` reads the live text."""
    return frozenset(i for i in indexes if is_traceable(read(text_map.vaddr_of(i), PROLOGUE_BYTES)))
