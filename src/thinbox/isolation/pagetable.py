"""The SCI page table: a reduced hierarchy of one task, cloned page by page and never shared.

Why it exists: rules 1, 2, 5, 7 and 8 of SCI are statements about this one structure. Everything that
changes such a table is here; nothing here decides whether it may change.

Rules of this file:
- The subset of Python that Numba compiles (see `thinbox.paging`), for the fault path runs compiled.
- Table pages come from `pool`, a stack of free frames hidden from the guest: `pool[0]` is how many are
  free, `pool[1 + i]` their guest-physical addresses.
- No entry of the kernel half ever points at a table page that another root reaches.
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


def give_frame(pool: Words, frame: int) -> None:
    """Put a frame back on the pool."""
    count = pool[0] + 1
    pool[count] = frame
    pool[0] = count


def map_page(words: Words, frame_end: int, pool: Words, root: int, vaddr: int, entry: int) -> int:
    """Put `entry` at `vaddr`'s last level, making missing levels; return its word index or -1.

    -1 means that the pool is empty; a level that was made before that stays and is freed with the table.
    """
    table = root & FRAME_MASK
    shift = 39
    while shift > 12:
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


def sync_user_half(words: Words, root: int, source_root: int) -> None:
    """Copy the 256 top-level entries of the user half, as PTI does (arch/x86/mm/pti.c, __pti_set_user_pgtbl).

    They are copied from the kernel's own table, where PTI marks them NX: ring 0 never executes user
    pages on an SCI table either.
    """
    to = (root & FRAME_MASK) >> 3
    source = (source_root & FRAME_MASK) >> 3
    for i in range(KERNEL_HALF_FIRST):
        words[to + i] = words[source + i]


def free_table(words: Words, frame_end: int, pool: Words, root: int, *, whole: bool = False) -> int:
    """Give every table page of the kernel half (of the `whole` table, where the user half is its own too), and
    the root, back to the pool; return how many."""
    freed = 0
    top = (root & FRAME_MASK) >> 3
    for i in range(0 if whole else KERNEL_HALF_FIRST, ENTRIES_PER_TABLE):
        e4 = words[top + i]
        if not e4 & PRESENT:
            continue
        pud = (e4 & FRAME_MASK) >> 3
        for j in range(ENTRIES_PER_TABLE):
            e3 = words[pud + j]
            if not e3 & PRESENT:
                continue
            pmd = (e3 & FRAME_MASK) >> 3
            for k in range(ENTRIES_PER_TABLE):
                e2 = words[pmd + k]
                if e2 & PRESENT:
                    give_frame(pool, e2 & FRAME_MASK)
                    freed += 1
            give_frame(pool, e3 & FRAME_MASK)
            freed += 1
        give_frame(pool, e4 & FRAME_MASK)
        freed += 1
    give_frame(pool, root & FRAME_MASK)
    return freed + 1
