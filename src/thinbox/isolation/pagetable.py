"""The SCI page table: a reduced hierarchy of one task, cloned page by page and never shared.

Why it exists: rules 1, 2, 5, 7 and 8 of SCI are statements about this one structure. Everything that
changes such a table is here; nothing here decides whether it may change.

Rules of this file:
- The subset of Python that Numba compiles (see `thinbox.paging`), for the fault path runs compiled.
- Table pages come from `pool`, a stack of free frames hidden from the guest: `pool[0]` is how many are
  free, `pool[1 + i]` their guest-physical addresses.
- No entry of the kernel half ever points at a table page that another root reaches.
- Our tables lie between `first` and `end`, the hidden frames. A word that leads elsewhere is not followed, and no
  frame from elsewhere is freed: were one ever forged, the harm would end here.
"""

from thinbox.paging import (
    ACCESSED,
    DIRTY,
    ENTRIES_PER_TABLE,
    FRAME_MASK,
    KERNEL_HALF_FIRST,
    NO_EXECUTE,
    PRESENT,
    TABLE_FLAGS,
    Words,
    entry_index,
)

LAST_WORD = ENTRIES_PER_TABLE - 1
FREE_MARK = 0x6672_6565_0000_0000
"""Last word of a frame that was given back; PRESENT is not in it, so no entry of ours is like it."""


def take_frame(words: Words, pool: Words) -> int:
    """Take a zeroed frame from the pool; return its guest-physical address, or 0 when none is left."""
    count = pool[0]
    if count == 0:
        return 0
    frame = pool[count]
    pool[0] = count - 1
    for i in range(ENTRIES_PER_TABLE):
        words[(frame >> 3) + i] = 0
    return frame


def is_hidden(first: int, end: int, frame: int) -> bool:
    """Tell whether `frame` may be one of our tables."""
    return first <= frame and frame + 4096 <= end


def give_frame(words: Words, first: int, end: int, pool: Words, frame: int) -> int:
    """Put a frame back on the pool; return 1, or 0 where it is none of ours, or free already."""
    if not is_hidden(first, end, frame) or words[(frame >> 3) + LAST_WORD] == FREE_MARK:
        return 0
    words[(frame >> 3) + LAST_WORD] = FREE_MARK
    count = pool[0] + 1
    pool[count] = frame
    pool[0] = count
    return 1


def map_page(words: Words, first: int, end: int, pool: Words, root: int, vaddr: int, entry: int) -> int:
    """Put `entry` at `vaddr`'s last level, making missing levels; return its word index or -1.

    -1 means that the pool is empty; a level that was made before that stays and is freed with the table.
    """
    table = root & FRAME_MASK
    shift = 39
    while shift > 12:
        if not is_hidden(first, end, table):
            return -1
        index = (table >> 3) + ((vaddr >> shift) & 511)
        upper = words[index]
        if not upper & PRESENT:
            frame = take_frame(words, pool)
            if frame == 0:
                return -1
            upper = frame | TABLE_FLAGS
            words[index] = upper
        table = upper & FRAME_MASK
        shift -= 9
    if not is_hidden(first, end, table):
        return -1
    index = (table >> 3) + ((vaddr >> 12) & 511)
    # A and D are set up front: the clone is ours alone, and no one reads when it was touched.
    words[index] = entry | ACCESSED | DIRTY
    return index


def is_executable(words: Words, frame_end: int, root: int, vaddr: int) -> bool:
    """Tell whether the page of `vaddr` is mapped, and executable, in the SCI table `root`."""
    index = entry_index(words, frame_end, root, vaddr)
    if index < 0:
        return False
    entry = words[index]
    return bool(entry & PRESENT) and not bool(entry & NO_EXECUTE)


def sync_user_half(words: Words, guest_end: int, root: int, source_root: int) -> None:
    """Copy the 256 top-level entries of the user half, as PTI does (arch/x86/mm/pti.c, __pti_set_user_pgtbl).

    They are copied from the kernel's own table, where PTI marks them NX: ring 0 never executes user
    pages on an SCI table either. What they lead to is the guest's, and bounded where it is walked. Of a kernel's table
    that is not in the guest's RAM nothing is copied: then nothing is mapped.
    """
    to = (root & FRAME_MASK) >> 3
    source = (source_root & FRAME_MASK) >> 3
    is_there = (source_root & FRAME_MASK) + 4096 <= guest_end
    for i in range(KERNEL_HALF_FIRST):
        words[to + i] = words[source + i] if is_there else 0


def free_table(words: Words, first: int, end: int, pool: Words, root: int, *, whole: bool = False) -> int:
    """Give every table page of the kernel half (of the `whole` table, where the user half is its own too), and
    the root, back to the pool; return how many."""
    freed = 0
    if not is_hidden(first, end, root & FRAME_MASK):
        return 0
    top = (root & FRAME_MASK) >> 3
    for i in range(0 if whole else KERNEL_HALF_FIRST, ENTRIES_PER_TABLE):
        e4 = words[top + i]
        if not e4 & PRESENT or not is_hidden(first, end, e4 & FRAME_MASK):
            continue
        pud = (e4 & FRAME_MASK) >> 3
        for j in range(ENTRIES_PER_TABLE):
            e3 = words[pud + j]
            if not e3 & PRESENT or not is_hidden(first, end, e3 & FRAME_MASK):
                continue
            pmd = (e3 & FRAME_MASK) >> 3
            for k in range(ENTRIES_PER_TABLE):
                e2 = words[pmd + k]
                if e2 & PRESENT:
                    freed += give_frame(words, first, end, pool, e2 & FRAME_MASK)
            freed += give_frame(words, first, end, pool, e3 & FRAME_MASK)
        freed += give_frame(words, first, end, pool, e4 & FRAME_MASK)
    return freed + give_frame(words, first, end, pool, root & FRAME_MASK)
