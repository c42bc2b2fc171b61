"""The running kernel as its own page table shows it: executable memory, and how many pages there are.

Why it exists: the text on disk is not what runs. The kernel patches alternatives, static calls, jump labels,
retpolines and return thunks at boot, so gadgets are found in memory; and what the kernel may execute or
write is said by its page table, not by section names. Module text and BPF images are executable mappings like
any other.

Rules of this file: only the kernel half; user pages are not executable there (the kernel's own top level
has them NX under PTI, and SMEP refuses them).
"""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinbox import paging
from thinbox.address import PAGE_BYTES, PAGE_SHIFT, to_unsigned

if TYPE_CHECKING:
    import numpy as np

    from thinbox.machine.memory import Memory

_TOP_SHIFT = 39
_CANONICAL = 0xFFFF << 48


@dataclass(frozen=True, slots=True)
class TextRegion:
    """A run of adjoining executable pages: `start` (page-aligned, unsigned) and what it holds."""

    start: int
    data: bytes = field(repr=False)

    @property
    def end(self) -> int:
        """Address behind the last byte."""
        return self.start + len(self.data)


@dataclass(frozen=True, slots=True)
class LiveKernel:
    """`regions` ascend and do not adjoin; `mapped_pages` and `writable_pages` count 4 KiB pages of virtual memory.

    A frame that the kernel maps twice (direct map and vmalloc area) counts twice, for each is a way to it.
    """

    regions: tuple[TextRegion, ...]
    mapped_pages: int
    writable_pages: int

    @property
    def text_hash(self) -> str:
        """SHA-256 over places and contents of all executable memory, as hex."""
        found = hashlib.sha256()
        for region in self.regions:
            found.update(f"{region.start:#x}+{len(region.data):#x}\n".encode())
            found.update(region.data)
        return found.hexdigest()


def read_live_kernel(memory: "Memory", root: int) -> LiveKernel:
    """Walk the kernel half under `root` (the kernel's own table) and copy what it can execute."""
    spans: list[tuple[int, int]] = []
    for start, end in _executable_spans(memory, root & paging.FRAME_MASK, _TOP_SHIFT, 0):
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    regions = tuple(TextRegion(start, memory.read_virtual(root, start, end - start)) for start, end in spans)
    mapped, writable = _count_pages(memory, root & paging.FRAME_MASK, _TOP_SHIFT, True, {})
    return LiveKernel(regions, mapped, writable)


def _entries(memory: "Memory", table: int, shift: int) -> "list[tuple[int, int]]":
    """Return (slot, entry) of each present entry of one table page; of the top level, the kernel half."""
    if table + PAGE_BYTES > memory.guest_bytes:
        return []
    words: np.ndarray = memory.words[table >> 3 : (table >> 3) + paging.ENTRIES_PER_TABLE]
    first = paging.KERNEL_HALF_FIRST if shift == _TOP_SHIFT else 0
    return [(slot, word) for slot, word in enumerate(words.tolist()) if slot >= first and word & paging.PRESENT]


def _is_leaf(entry: int, shift: int) -> bool:
    return shift == PAGE_SHIFT or (shift < _TOP_SHIFT and bool(entry & paging.LARGE))


def _executable_spans(memory: "Memory", table: int, shift: int, base: int) -> list[tuple[int, int]]:
    """Return (start, end) of each mapping without NX on any level, ascending."""
    found: list[tuple[int, int]] = []
    for slot, entry in _entries(memory, table, shift):
        if entry & paging.NO_EXECUTE:
            continue
        vaddr = base | slot << shift | (_CANONICAL if shift == _TOP_SHIFT else 0)
        if _is_leaf(entry, shift):
            found.append((to_unsigned(vaddr), to_unsigned(vaddr) + (1 << shift)))
        else:
            found += _executable_spans(memory, entry & paging.FRAME_MASK, shift - 9, vaddr)
    return found


def _count_pages(
    memory: "Memory", table: int, shift: int, writable: bool, seen: dict[tuple[int, int, bool], tuple[int, int]]
) -> tuple[int, int]:
    """Return how many 4 KiB pages are mapped, and writable on every level.

    `seen` remembers subtrees: espfix maps one page table thousands of times (arch/x86/kernel/espfix_64.c).
    """
    key = (table, shift, writable)
    if key not in seen:
        pages = writable_pages = 0
        for _slot, entry in _entries(memory, table, shift):
            allowed = writable and bool(entry & paging.WRITABLE)
            if _is_leaf(entry, shift):
                below = (1 << shift - PAGE_SHIFT, (1 << shift - PAGE_SHIFT) * allowed)
            else:
                below = _count_pages(memory, entry & paging.FRAME_MASK, shift - 9, allowed, seen)
            pages += below[0]
            writable_pages += below[1]
        seen[key] = (pages, writable_pages)
    return seen[key]
