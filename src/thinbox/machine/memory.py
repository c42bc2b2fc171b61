"""Guest RAM: one lazily allocated mapping, the last part of it hidden from the guest.

Why it exists: RAM is seen three ways at once (Unicorn's memory, words for the compiled hooks, bytes for
Python) and all three must be the same host pages.

Rules of this file:
- Host pages are touched only where the guest or thinbox writes; a page nobody wrote costs nothing.
- The hidden part lies above everything the memory map tells the guest, and holds SCI tables and copies for undo. It is
  not mapped in Unicorn, and nothing here reads or writes it: `read` and all that walks the guest's tables end at
  `guest_bytes`. See docs/decisions/0016-hidden-ram.md.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from typing import Any, overload

import numpy as np

from thinbox.address import PAGE_BYTES, U64, to_signed
from thinbox.errors import MachineError
from thinbox.machine.page_tables import PageTables

MIB = 1 << 20
_FIXED, _NO_RESERVE = 0x10, 0x4000
"""MAP_FIXED and MAP_NORESERVE (Python names the second from 3.13 on)."""
_PAGES_AT_ONCE = 256
HIDDEN_BYTES = 128 * MIB
"""Room for SCI tables: a table takes about 100 to 300 pages, so some 100 to 300 tasks at once."""


class GuestWords:
    """All RAM as signed 64-bit words: `words[i]` is the one at guest-physical address `8 * i`; a slice or an array of
    indexes gives a NumPy array (a slice: a view, not a copy)."""

    __slots__ = ("_many", "each", "pages")

    def __init__(self, memory: mmap.mmap) -> None:
        # One word at a time a memoryview is several times as fast as NumPy, and gives Python's own integers.
        self.each = memoryview(memory).cast("q")
        """The same, for code that indexes by one number only: twice as fast as through this object."""
        self._many = np.frombuffer(memory, dtype=np.int64)
        self.pages = self._many.reshape(-1, PAGE_BYTES // 8)
        """The same, a row for each page: shape (pages, 512)."""

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: "slice | np.ndarray") -> np.ndarray: ...
    def __getitem__(self, index: "int | slice | np.ndarray") -> "int | np.ndarray":
        if isinstance(index, (int, np.integer)):
            return self.each[index]
        return self._many[index]

    def __setitem__(self, index: "int | slice | np.ndarray", value: Any) -> None:
        if isinstance(index, (int, np.integer)):
            self.each[index] = value
        else:
            self._many[index] = value

    def __len__(self) -> int:
        return len(self.each)


class Memory:
    """`guest_bytes` the guest knows of, then `HIDDEN_BYTES` it does not."""

    def __init__(self, guest_bytes: int) -> None:
        self.guest_bytes = guest_bytes
        self.total_bytes = guest_bytes + HIDDEN_BYTES
        self.map = mmap.mmap(-1, self.total_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        self._view = np.frombuffer(self.map, dtype=np.uint8)
        self.host_base = int(self._view.ctypes.data)
        self.words = GuestWords(self.map)
        self.tables = PageTables(self.words.each, self.guest_bytes, self.total_bytes)
        self.empty_bus = mmap.mmap(-1, 2 * PAGE_BYTES)
        """Where there is no RAM: a page of ones to read, and a page to write (`coherence`)."""
        self.empty_bus[:PAGE_BYTES] = b"\xff" * PAGE_BYTES

    def read(self, paddr: int, size: int) -> bytes:
        """Return `size` bytes at guest-physical `paddr`."""
        self._require(paddr, size)
        return self.map[paddr : paddr + size]

    def write(self, paddr: int, data: bytes) -> None:
        """Store `data` at guest-physical `paddr`."""
        self._require(paddr, len(data))
        self.map[paddr : paddr + len(data)] = data

    def _require(self, paddr: int, size: int) -> None:
        if paddr < 0 or paddr + size > self.guest_bytes:
            raise MachineError(f"guest-physical address {paddr:#x} is outside RAM")

    def spans(self, root: int, vaddr: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield (paddr, byte count) of each page piece of a guest-virtual range; LookupError where unmapped."""
        while size > 0:
            paddr = self.tables.translate(root, vaddr)
            if paddr < 0:
                raise LookupError(f"guest-virtual address {vaddr:#x} is not mapped")
            count = min(size, PAGE_BYTES - vaddr % PAGE_BYTES)
            yield paddr, count
            vaddr += count
            size -= count

    def word_at(self, root: int, vaddr: int) -> int:
        """Return the word at an aligned guest-virtual address (signed or not), unsigned; 0 where there is none: what
        leads there may be forged."""
        paddr = self.tables.translate(root, to_signed(vaddr & U64))
        return 0 if paddr < 0 or paddr & 7 or paddr + 8 > self.guest_bytes else self.words[paddr >> 3] & U64

    def read_virtual(self, root: int, vaddr: int, size: int) -> bytes:
        """Return `size` bytes at guest-virtual `vaddr` under the table `root`."""
        return b"".join(self.read(paddr, count) for paddr, count in self.spans(root, vaddr, size))

    def write_virtual(self, root: int, vaddr: int, data: bytes) -> None:
        """Store `data` at guest-virtual `vaddr` under the table `root`, whatever its protection."""
        done = 0
        for paddr, count in self.spans(root, vaddr, len(data)):
            self.write(paddr, data[done : done + count])
            done += count

    def used_pages(self) -> np.ndarray:
        """Return the numbers of the guest's pages that hold anything but zeros (hidden part left out)."""
        touched = self._touched_pages()
        rows = self.words.pages[: self.guest_bytes // PAGE_BYTES]
        out = []
        for start in range(0, len(touched), _PAGES_AT_ONCE):
            numbers = touched[start : start + _PAGES_AT_ONCE]
            # An or over the words makes no array of truth values, as `any` does.
            out.append(numbers[np.bitwise_or.reduce(rows[numbers], axis=1) != 0])
        return np.concatenate(out) if out else np.zeros(0, dtype=np.int64)

    def _touched_pages(self) -> np.ndarray:
        """Return the numbers of the guest's pages the host has a page or a swap entry for (proc_pid_pagemap(5)).

        A page that is merely looked at costs a fault; most of a guest's memory was never touched.
        """
        count = self.guest_bytes // PAGE_BYTES
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as file:
                file.seek(self.host_base // mmap.PAGESIZE * 8)
                entries = np.frombuffer(file.read(8 * count), dtype=np.uint64)
        except OSError:
            entries = np.zeros(0, dtype=np.uint64)
        if len(entries) != count or mmap.PAGESIZE != PAGE_BYTES:
            return np.arange(count)
        return np.flatnonzero(entries >> np.uint64(62))

    def clear(self) -> None:
        """Make every page zero again, or as it was at `freeze`, and give it back to the host."""
        self.map.madvise(mmap.MADV_DONTNEED)

    def freeze(self) -> int:
        """Make what the guest's RAM holds now the state `clear` goes back to; return a file of it for `attach`.

        The file is anonymous memory (memfd_create): processes that attach it share its pages until they write.
        """
        handle = os.memfd_create("thinbox-ram")
        os.truncate(handle, self.guest_bytes)
        for number in self.used_pages().tolist():
            at = number * PAGE_BYTES
            os.pwrite(handle, memoryview(self.map)[at : at + PAGE_BYTES], at)
        self.attach(handle)
        return handle

    def attach(self, handle: int) -> None:
        """Replace the guest's RAM, at the same host address, by a private copy-on-write mapping of `handle`."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _FIXED | _NO_RESERVE
        at = libc.mmap(self.host_base, self.guest_bytes, protection, flags, handle, 0)
        if at != self.host_base:
            raise MachineError(f"cannot map guest memory: {os.strerror(ctypes.get_errno())}")

    def pointer(self) -> ctypes.c_void_p:
        """Return the host address of RAM for Unicorn."""
        return ctypes.c_void_p(self.host_base)

    def bus_pointer(self) -> ctypes.c_void_p:
        """Return the host address of the two pages of the empty bus for Unicorn."""
        return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self.empty_bus)))
