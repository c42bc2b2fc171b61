"""The undo log: what a page held before an isolated call first wrote it.

Why it exists: a call that is killed in its middle leaves locks held and lists half linked. With the log, guest
memory is put back to the entry of the call before its task is killed. The SCI page table itself keeps it: data
is granted read-only at first, the first write faults, and the page is saved.

Rules of this file:
- The subset of Python that Numba compiles.
- A page is saved once per call, before the first write by whatever way: `saved[page]` says it was.
- When there is no room the log is lost as a whole, never in part.
"""

from thinbox.paging import ACCESSED, DIRTY, ENTRIES_PER_TABLE, FRAME_MASK, LARGE, PRESENT, Words

LOG_COLUMNS = 2
LOG_PAGE, LOG_COPY = range(LOG_COLUMNS)
"""A row of the log: guest-physical address of the page, and of its copy in a hidden frame."""

FULL = -1


def save_page(words: Words, pool: Words, log: Words, capacity: int, saved: Words, count: int, paddr: int) -> int:
    """Save the page at `paddr` if it is not saved yet; return the new length of the log, or `FULL`.

    `saved` has one bit a page, 32 to the word.
    """
    page = paddr >> 12
    bit = 1 << (page & 31)
    if saved[page >> 5] & bit:
        return count
    free = pool[0]
    if count >= capacity or free == 0:
        return FULL
    copy = pool[free]
    pool[0] = free - 1
    for i in range(ENTRIES_PER_TABLE):
        words[(copy >> 3) + i] = words[(paddr >> 3) + i]
    saved[page >> 5] |= bit
    log[LOG_COLUMNS * count + LOG_PAGE] = paddr & FRAME_MASK
    log[LOG_COLUMNS * count + LOG_COPY] = copy
    return count + 1


def next_unmarked(words: Words, frame_end: int, root: int, vaddr: int, write: int) -> int:
    """Find the first level of `vaddr` whose ACCESSED (at the last level of a write, DIRTY too) the CPU would set.

    Returns twice the entry's word index, plus 1 at the last level; -1 if nothing is missing or nothing is
    mapped. Source: SDM vol. 3A, 4.8.
    """
    table = root & FRAME_MASK
    shift = 39
    while True:
        if table + 4096 > frame_end:
            return -1
        index = (table >> 3) + ((vaddr >> shift) & 511)
        entry = words[index]
        if not entry & PRESENT:
            return -1
        last = 1 if shift == 12 or (entry & LARGE and shift < 39) else 0
        wanted = ACCESSED | DIRTY if last and write else ACCESSED
        if entry & wanted != wanted:
            return 2 * index + last
        if last:
            return -1
        table = entry & FRAME_MASK
        shift -= 9
