"""The kernel's symbol table: names to addresses, and the function an address lies in.

Why it exists: "is this the start of a known function?" is the question isolation asks on every code
fault, so the table keeps every symbol (static functions share names; dropping a duplicate makes its
function look like the middle of the one before it) and answers in about a microsecond. It is a few
arrays, so that it loads from the cache in milliseconds.

Rules of this file: symbols are ordered by address, then by how well they name it; text means a symbol of
type t, T, w or W between `_stext` and `_etext`; addresses below the kernel's image (per-CPU offsets,
absolute values) never move.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from thinbox.address import VAddr
from thinbox.errors import KernelImageError, MissingFactError

KERNEL_IMAGE_BASE = 0xFFFF_FFFF_8000_0000
"""__START_KERNEL_map (arch/x86/include/asm/page_64_types.h): symbols from here on move under KASLR."""

_TEXT_KINDS = "TtWw"
_RANKS = {"T": 0, "t": 1, "W": 2, "w": 3}
# Names that say little about the code they share an address with: the marks of the linker script
# (vmlinux.lds.S), and the 32-bit alias of a call without arguments (asm/syscall_wrapper.h).
_MARK = re.compile(r"_(s|e|sinit|einit)?text$|__\w*(text|thunk)_(start|end)$|__ia32_sys_")
# What gcc appends when it clones a function; `.cold` is no copy but a part of it.
_VARIANT = re.compile(r"(\.(isra|constprop|part)\.\d+)+(\.llvm\.\d+)?$")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A text symbol: `name` covers `start` up to `end_exclusive`, the next text symbol's start."""

    name: str
    start: VAddr
    end_exclusive: VAddr


class SymbolTable:
    """Every symbol of a kernel; immutable.

    `starts` (uint64 array), `names` and `kinds` (one nm(1) letter each) are parallel and sorted by address.
    """

    __slots__ = (
        "_dotted",
        "_first",
        "_last",
        "_text_names",
        "_text_starts",
        "_text_symbols",
        "kinds",
        "names",
        "starts",
        "text_end",
        "text_start",
    )

    def __init__(self, starts: npt.NDArray[np.uint64], names: list[str], kinds: str) -> None:
        """Wrap arrays that are in the table's order already; `from_symbols` sorts.

        Raises:
            KernelImageError: the arrays differ in length, or there is no text.
        """
        if not len(starts) == len(names) == len(kinds):
            raise KernelImageError("the kernel's symbol table is inconsistent; fetch the kernel again")
        self.starts = starts
        self.names = names
        self.kinds = kinds
        self._first: dict[str, int] | None = None
        self._last: dict[str, int] = {}
        self._dotted: dict[str, list[str]] | None = None
        start = self._scan("_stext") or self._scan("_text")
        end = self._scan("_etext")
        if start is None or end is None or start >= end:
            raise KernelImageError("the kernel's symbols name no text (_stext, _etext); is it a Linux kernel?")
        self.text_start: VAddr = start
        self.text_end: VAddr = end
        self._index_text()

    @classmethod
    def from_symbols(cls, symbols: Sequence[tuple[int, str, str]]) -> Self:
        """Build the table from (address, nm letter, name) tuples, in any order, duplicates kept."""
        ordered = sorted(symbols, key=lambda symbol: (symbol[0], *_naming_rank(symbol[1], symbol[2])))
        starts = np.array([symbol[0] for symbol in ordered], np.uint64)
        return cls(starts, [symbol[2] for symbol in ordered], "".join(symbol[1] for symbol in ordered))

    def _scan(self, name: str) -> VAddr | None:
        """Return what `find` does, without building the index of names, which many runs never need."""
        return VAddr(int(self.starts[self.names.index(name)])) if name in self.names else None

    def _index_text(self) -> None:
        """Find the first (best) name of every text address."""
        first, last = np.searchsorted(self.starts, np.array([self.text_start, self.text_end], np.uint64))
        letters = np.frombuffer(self.kinds.encode("latin-1"), np.uint8)[first:last]
        is_text = np.isin(letters, np.frombuffer(_TEXT_KINDS.encode(), np.uint8))
        indexes = np.flatnonzero(is_text) + first
        _, keep = np.unique(self.starts[indexes], return_index=True)
        indexes = indexes[keep]
        self._text_starts: list[int] = self.starts[indexes].tolist()
        self._text_names = [self.names[index] for index in indexes.tolist()]
        self._text_symbols: dict[int, Symbol] = {}

    def __len__(self) -> int:
        """Return how many symbols there are, duplicates and aliases included."""
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[VAddr, str, str]]:
        """Yield (address, nm letter, name) in address order."""
        return zip(map(VAddr, self.starts.tolist()), self.kinds, self.names, strict=True)

    def __contains__(self, name: object) -> bool:
        """Tell whether a symbol has exactly this name."""
        return name in self._first_index()

    @property
    def text_starts(self) -> Sequence[int]:
        """The distinct addresses of text symbols, ascending."""
        return self._text_starts

    @property
    def text_names(self) -> Sequence[str]:
        """The best name of each of `text_starts`."""
        return self._text_names

    def _first_index(self) -> dict[str, int]:
        """Where each name stands first; `_last` is made beside it, for few names stand twice."""
        if self._first is None:
            count = len(self.names)
            self._first = dict(zip(reversed(self.names), range(count - 1, -1, -1), strict=True))
            self._last = dict(zip(self.names, range(count), strict=True))
        return self._first

    def _places(self, name: str) -> list[int]:
        """Every place of a name, ascending."""
        first = self._first_index().get(name)
        if first is None:
            return []
        last, places = self._last[name], [first]
        while places[-1] < last:
            places.append(self.names.index(name, places[-1] + 1))
        return places

    def find(self, name: str) -> VAddr | None:
        """Return the lowest address called exactly `name`, or None."""
        found = self._first_index().get(name)
        return None if found is None else VAddr(int(self.starts[found]))

    def address_of(self, name: str) -> VAddr:
        """Return the lowest address called exactly `name`.

        Raises:
            KeyError: no symbol has that name.
        """
        found = self.find(name)
        if found is None:
            raise MissingFactError(f"the kernel has no symbol {name}")
        return found

    def addresses_of(self, name: str) -> tuple[VAddr, ...]:
        """Return every address called exactly `name`, ascending (static functions share names)."""
        return tuple(VAddr(int(self.starts[index])) for index in self._places(name))

    def find_prefix(self, name: str) -> VAddr | None:
        """Return the address of `name`, or of its lowest compiler-made copy (`name.isra.0`, `.constprop`, `.part`)."""
        found = self.addresses_with_variants(name)
        return found[0] if found else None

    def addresses_with_variants(self, name: str) -> tuple[VAddr, ...]:
        """Return every address called `name`, then those of its compiler-made copies, each group ascending."""
        if self._dotted is None:
            self._dotted = {}
            for candidate in self._first_index():
                if "." in candidate:
                    self._dotted.setdefault(candidate.partition(".")[0], []).append(candidate)
        copies = sorted(
            place
            for candidate in self._dotted.get(name.partition(".")[0], ())
            if candidate.startswith(name + ".") and _VARIANT.fullmatch(candidate, len(name))
            for place in self._places(candidate)
        )
        return self.addresses_of(name) + tuple(VAddr(int(self.starts[place])) for place in copies)

    def is_text(self, vaddr: int) -> bool:
        """Tell whether `vaddr` lies in the kernel's own text, `_stext` to `_etext`."""
        return self.text_start <= vaddr < self.text_end

    def text_symbol_at(self, vaddr: int) -> Symbol | None:
        """Return the function `vaddr` lies in; None outside the text or before its first symbol.

        Of several names the best is taken: functions before linker marks and
        32-bit aliases, T before t before W, then by name.
        """
        if not self.text_start <= vaddr < self.text_end:
            return None
        index = bisect_right(self._text_starts, vaddr) - 1
        found = self._text_symbols.get(index)
        return found if found is not None else self._make_text_symbol(index)

    def _make_text_symbol(self, index: int) -> Symbol | None:
        if index < 0:
            return None
        starts = self._text_starts
        end = starts[index + 1] if index + 1 < len(starts) else self.text_end
        symbol = Symbol(self._text_names[index], VAddr(starts[index]), VAddr(end))
        self._text_symbols[index] = symbol
        return symbol

    def describe(self, vaddr: int) -> str:
        """Return `name+0x1f` for an address in the text, `name` at offset 0, and the bare number elsewhere."""
        symbol = self.text_symbol_at(vaddr)
        if symbol is None:
            return f"{vaddr:#x}"
        return f"{symbol.name}+{vaddr - symbol.start:#x}" if vaddr != symbol.start else symbol.name

    def names_at(self, vaddr: int) -> tuple[str, ...]:
        """Return every name of exactly `vaddr`, data symbols too, the best one first."""
        first = int(np.searchsorted(self.starts, np.uint64(vaddr), "left"))
        last = int(np.searchsorted(self.starts, np.uint64(vaddr), "right"))
        return tuple(self.names[first:last])

    def slid(self, delta: int) -> "SymbolTable":
        """Return the table of the same kernel moved by `delta` bytes (KASLR); per-CPU offsets stay."""
        if delta == 0:
            return self
        step = np.uint64(delta % (1 << 64))
        moved = np.where(self.starts >= np.uint64(KERNEL_IMAGE_BASE), self.starts + step, self.starts)
        return SymbolTable(moved, self.names, self.kinds)


def _naming_rank(kind: str, name: str) -> tuple[bool, int, str]:
    return _MARK.match(name) is not None, _RANKS.get(kind, 4), name
