"""x86-64 page-table entries and walks over guest memory, as plain functions on an array of words.

Why it exists: the machine (exception delivery, copying to and from a tenant) and the isolation room
(cloning, granting, forgetting) must read page tables in exactly one way.

Rules of this file:
- Only the subset of Python that Numba compiles, so that `machine/` can run the same source in a hook;
  values are signed 64-bit integers (an entry with NX set, or a kernel address, is negative).
- `words[i]` is the 8-byte word at guest-physical address `8 * i`; a table outside `frame_end` is absent,
  for its address may come from a hostile guest. For the guest's own tables that is the end of its RAM: what
  lies above (tables of SCI, copies of undo) is not the guest's, and no walk of its tables may get there.
- Four levels (LA57 is switched off on the kernel command line, `no5lvl`).

Source: Intel SDM vol. 3A, 4.5 "4-level paging", tables 4-14 to 4-20.
"""

from typing import Protocol

PRESENT = 0x001
WRITABLE = 0x002
USER = 0x004
ACCESSED = 0x020
DIRTY = 0x040
LARGE = 0x080
PAT_4K = 0x080
GLOBAL = 0x100
PAT_LARGE = 0x1000
NO_EXECUTE = -(1 << 63)
RESERVED_FRAME_BITS = 0x000F_FF00_0000_0000
"""Beyond the 40 bits of a physical address that this CPU has (CPUID 8000_0008h); set, they are a fault."""
FRAME_MASK = 0x000F_FFFF_FFFF_F000
TABLE_FLAGS = PRESENT | WRITABLE | USER | ACCESSED | DIRTY

ENTRIES_PER_TABLE = 512
KERNEL_HALF_FIRST = 256

FAULT_PRESENT = 0x01
FAULT_WRITE = 0x02
FAULT_USER = 0x04
FAULT_RESERVED = 0x08
FAULT_FETCH = 0x10
"""Bits of the page-fault error code (SDM vol. 3A, figure 4-12)."""


class Words(Protocol):
    """Guest memory as signed 64-bit words; an `int64` array in Python, a pointer in compiled code."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


def walk_leaf(words: Words, frame_end: int, root: int, vaddr: int) -> int:
    """Return the 4 KiB entry that maps `vaddr` under `root`, or 0 when nothing does.

    A page inside a 1 GiB or 2 MiB mapping gives the entry that would map that one page alike. The
    permissions are the effective ones: WRITABLE and USER only if every level has them, NO_EXECUTE if
    any level has it (SDM vol. 3A, 4.6.1).
    """
    table = root & FRAME_MASK
    allowed = WRITABLE | USER
    denied = 0
    shift = 39
    while True:
        if table + 4096 > frame_end:
            return 0
        entry = words[(table >> 3) + ((vaddr >> shift) & 511)]
        if not entry & PRESENT:
            return 0
        allowed &= entry
        denied |= entry & NO_EXECUTE
        if shift == 12:
            frame = entry & FRAME_MASK
            keep = entry & 0xFFF
            break
        if entry & LARGE and shift < 39:
            inside = (1 << shift) - 1
            frame = (entry & FRAME_MASK & ~inside) | (vaddr & inside & ~0xFFF)
            keep = entry & 0xFFF & ~LARGE
            if entry & PAT_LARGE:
                keep |= PAT_4K
            break
        table = entry & FRAME_MASK
        shift -= 9
    return frame | (keep & ~(WRITABLE | USER)) | allowed | denied


def translate(words: Words, frame_end: int, root: int, vaddr: int) -> int:
    """Return the guest-physical address of `vaddr` under `root`, or -1 when it is not mapped to memory below
    `frame_end`."""
    entry = walk_leaf(words, frame_end, root, vaddr)
    if entry == 0 or (entry & FRAME_MASK) + 4096 > frame_end:
        return -1
    return (entry & FRAME_MASK) | (vaddr & 0xFFF)


def entry_index(words: Words, frame_end: int, root: int, vaddr: int, first: int = 0) -> int:
    """Return the word index of the last-level slot for `vaddr`, or -1 when an upper level is missing.

    Meant for tables without large pages (SCI tables); a large page counts as missing, and so does a table below
    `first`.
    """
    table = root & FRAME_MASK
    shift = 39
    while shift > 12:
        if table < first or table + 4096 > frame_end:
            return -1
        entry = words[(table >> 3) + ((vaddr >> shift) & 511)]
        if not entry & PRESENT or entry & LARGE:
            return -1
        table = entry & FRAME_MASK
        shift -= 9
    if table < first or table + 4096 > frame_end:
        return -1
    return (table >> 3) + ((vaddr >> 12) & 511)


def mark_written(words: Words, frame_end: int, root: int, vaddr: int) -> None:
    """Set ACCESSED on every level and DIRTY on the last one, as a store by the CPU does (SDM 4.8)."""
    table = root & FRAME_MASK
    shift = 39
    while True:
        if table + 4096 > frame_end:
            return
        index = (table >> 3) + ((vaddr >> shift) & 511)
        entry = words[index]
        if not entry & PRESENT:
            return
        if shift == 12 or (entry & LARGE and shift < 39):
            if entry & (ACCESSED | DIRTY) != ACCESSED | DIRTY:
                words[index] = entry | ACCESSED | DIRTY
            return
        if not entry & ACCESSED:
            words[index] = entry | ACCESSED
        table = entry & FRAME_MASK
        shift -= 9


PAGE_LEVEL_SHIFT = 9
"""Where `walk_access` puts the size of the page: 0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB."""
IS_RESERVED = 2
"""What `walk_access` returns for a fault with FAULT_RESERVED; PRESENT is not in it."""


def walk_access(
    words: Words,
    top_first: int,
    top_end: int,
    first: int,
    end: int,
    root: int,
    vaddr: int,
    place: Words,
    seals: Words,
    has_seals: bool,
) -> int:
    """Walk as the CPU does for an access: return the effective last entry, 0 (absent), or `IS_RESERVED`.

    The top table must lie in `top_first`..`top_end`, all others in `first`..`end`. What lies elsewhere reads as ones,
    as a bus without memory does, and ones are an entry with reserved bits. ACCESSED is set on the levels above the
    last; `place[0]` gets the word index of the last entry. The result is as of `walk_leaf`, the frame that of the
    4 KiB page touched, and the size of the mapping in bits 9 and 10. With `has_seals`, a table above the last level
    in a page that `seals` has a word for (not 0) is none: its "entry" would be marked.
    """
    table = root & FRAME_MASK
    allowed = WRITABLE | USER
    denied = 0
    shift = 39
    low, high = top_first, top_end
    while True:
        if table < low or table + 4096 > high:
            return IS_RESERVED
        index = (table >> 3) + ((vaddr >> shift) & 511)
        entry = words[index]
        if not entry & PRESENT:
            return 0
        inside = (1 << shift) - 1
        is_last = shift == 12 or (entry & LARGE != 0 and shift < 39)
        reserved = RESERVED_FRAME_BITS
        if shift == 39:
            reserved |= LARGE
        elif is_last:
            reserved |= inside & FRAME_MASK & ~PAT_LARGE if shift > 12 else 0
        if entry & reserved:
            return IS_RESERVED
        allowed &= entry
        denied |= entry & NO_EXECUTE
        if is_last:
            break
        if not entry & ACCESSED:
            if has_seals and index << 3 < end and seals[index >> 9] != 0:
                return IS_RESERVED
            words[index] = entry | ACCESSED
        table = entry & FRAME_MASK
        low, high = first, end
        shift -= 9
    place[0] = index
    frame = (entry & FRAME_MASK & ~inside) | (vaddr & inside & ~0xFFF)
    size = ((shift - 12) // 9) << PAGE_LEVEL_SHIFT
    return frame | (entry & (PRESENT | ACCESSED | DIRTY)) | size | allowed | denied
