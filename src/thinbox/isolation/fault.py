"""Rule 5 of SCI: what a page fault on an SCI table is, and the grant of one page.

Why it exists: this runs some sixty times in every isolated call, so it is compiled; the decisions that
need thought (`ASK`) are handed to the policy. A fault is answered here without asking only where the
policy has said, for good, that it would be granted: `cacheable data` and the table of approved fetch addresses.

Rules of this file:
- The subset of Python that Numba compiles.
- Whatever cannot be shown to be allowed is `ASK` or `GUEST`, never `GRANTED`.
- A grant adds exactly one page. A page granted for data never becomes executable by it: where the
  kernel's own mapping can be executed, the clone is marked NX, so that a later fetch is judged too.
"""

import numpy as np

from thinbox.isolation.pagetable import is_executable, map_page
from thinbox.paging import (
    ACCESSED,
    DIRTY,
    FAULT_FETCH,
    FAULT_RESERVED,
    FAULT_WRITE,
    FRAME_MASK,
    KERNEL_HALF_FIRST,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
    Words,
    entry_index,
    walk_leaf,
)

GRANTED = 0
"""The page was mapped; run the instruction again."""
GUEST = 1
"""The fault is the guest's own: it would have happened on the kernel's table too."""
ASK = 2
"""The policy must judge it."""
SYNC = 3
"""A user address whose top-level entry is newer in the kernel's table: copy the user half, run again."""
USER_PAGE = 5
"""A user page that the kernel's table maps so; with undo the user half is mapped on demand, too."""
EXHAUSTED = 4
"""The pool of table pages is empty (a hostile tenant can cause this; it is a verdict, not an error)."""

LOG_COLUMNS = 5
LOG_VADDR, LOG_RIP, LOG_ERROR, LOG_INDEX, LOG_REPLACED = range(LOG_COLUMNS)

LOG_PREFAULT = 1 << 29
"""Set in a row's error code: mapped before the call asked for it (`--prefault`)."""
LOG_ASIDE = 1 << 30
"""Set in a row's error code: mapped for undo's sake (a user page, or on the undo table), no grant of the policy."""


def is_aside(rows: np.ndarray) -> np.ndarray:
    """Tell for rows of the log (n, LOG_COLUMNS) which are no grants of the policy: `LOG_ASIDE`, `LOG_PREFAULT`, and
    first writes to pages granted before."""
    written_later = (rows[:, LOG_ERROR] & FAULT_WRITE != 0) & (rows[:, LOG_REPLACED] & PRESENT != 0)
    aside: np.ndarray = (rows[:, LOG_ERROR] & (LOG_ASIDE | LOG_PREFAULT) != 0) | written_later
    return aside


def is_row_aside(row: Words) -> bool:
    """As `is_aside`, for one row."""
    written_later = row[LOG_ERROR] & FAULT_WRITE != 0 and row[LOG_REPLACED] & PRESENT != 0
    return bool(row[LOG_ERROR] & (LOG_ASIDE | LOG_PREFAULT) != 0 or written_later)


def approved_slot(approved: Words, mask: int, vaddr: int) -> int:
    """Return the slot of `vaddr` in the open-addressed table `approved` (a power of two, 0 is empty)."""
    slot = ((vaddr >> 4) ^ (vaddr >> 17)) & mask
    while approved[slot] != 0 and approved[slot] != vaddr:
        slot = (slot + 1) & mask
    return slot


CONDITION_WORDS = 3
"""A fetch address, and two addresses that have to be executable for it to be granted."""


def condition_slot(conditions: Words, mask: int, vaddr: int) -> int:
    """Return the slot of `vaddr` in the open-addressed table `conditions` (a power of two, 0 is empty)."""
    slot = ((vaddr >> 4) ^ (vaddr >> 17)) & mask
    while conditions[CONDITION_WORDS * slot] != 0 and conditions[CONDITION_WORDS * slot] != vaddr:
        slot = (slot + 1) & mask
    return slot


def is_approved_while_mapped(words: Words, frame_end: int, root: int, conditions: Words, mask: int, vaddr: int) -> bool:
    """Tell whether a fetch from `vaddr` was approved on a condition that the SCI table `root` fulfils now."""
    at = CONDITION_WORDS * condition_slot(conditions, mask, vaddr)
    if conditions[at] != vaddr:
        return False
    return is_executable(words, frame_end, root, conditions[at + 1]) and is_executable(
        words, frame_end, root, conditions[at + 2]
    )


def classify(words: Words, guest_end: int, root: int, kernel_root: int, vaddr: int, error: int) -> int:
    """Say whose fault it is: `GUEST`, `SYNC`, or `ASK` when the kernel's own table allows the access.

    `kernel_root` is what the guest loaded into CR3: anything. A fault for reserved bits is the guest's: the entry
    that would be cloned is as wrong.
    """
    if (kernel_root & FRAME_MASK) + 4096 > guest_end or error & FAULT_RESERVED:
        return GUEST
    if vaddr >= 0:
        slot = (vaddr >> 39) & 511
        changed = words[((root & FRAME_MASK) >> 3) + slot] ^ words[((kernel_root & FRAME_MASK) >> 3) + slot]
        # The CPU marks our copy, and the mark alone is no news: synced for it, the access would fault for ever.
        if slot < KERNEL_HALF_FIRST and changed & ~(ACCESSED | DIRTY):
            return SYNC
        return GUEST
    leaf = walk_leaf(words, guest_end, kernel_root, vaddr)
    if leaf == 0:
        return GUEST
    if error & FAULT_WRITE and not leaf & WRITABLE:
        return GUEST
    if error & FAULT_FETCH and leaf & NO_EXECUTE:
        return GUEST
    return ASK


def classify_user(words: Words, guest_end: int, kernel_root: int, vaddr: int, error: int) -> int:
    """Say whose fault at a user address it is where the user half is mapped on demand: `GUEST` or `USER_PAGE`.

    Ring 0 never executes user pages on such a table: a fetch there is `ASK`, unless it is the guest's own fault.
    """
    leaf = walk_leaf(words, guest_end, kernel_root, vaddr)
    if leaf == 0 or error & FAULT_RESERVED or (error & FAULT_WRITE and not leaf & WRITABLE):
        return GUEST
    if error & FAULT_FETCH:
        return GUEST if leaf & NO_EXECUTE else ASK
    return USER_PAGE


def is_write_upgrade(
    words: Words, guest_end: int, frame_end: int, root: int, kernel_root: int, vaddr: int, error: int
) -> bool:
    """Tell whether this is the first write to a page that was granted read-only only to be saved before."""
    if not error & FAULT_WRITE:
        return False
    index = entry_index(words, frame_end, root, vaddr, guest_end)
    if index < 0 or not words[index] & PRESENT:
        return False
    leaf = walk_leaf(words, guest_end, kernel_root, vaddr)
    return bool((leaf ^ words[index]) & FRAME_MASK == 0)


def grant(
    words: Words,
    guest_end: int,
    frame_end: int,
    pool: Words,
    root: int,
    kernel_root: int,
    vaddr: int,
    error: int,
    rip: int,
    row: Words,
    undo: int,
) -> int:
    """Clone the one page of `vaddr` and fill the log row; return `GRANTED`, `GUEST` or `EXHAUSTED`.

    Preconditions: the access was judged. Protection bits are the kernel's own, except NX on data grants, and
    with `undo` (or where a view judges the first write) read-only until it is written. A frame that is no RAM of the
    guest's is a device's, cloned like any other: the TLB fill lets it reach the empty bus only.
    """
    leaf = walk_leaf(words, guest_end, kernel_root, vaddr)
    if leaf == 0:
        return GUEST
    index = entry_index(words, frame_end, root, vaddr, guest_end)
    replaced = 0
    if index >= 0:
        replaced = words[index]
    if not error & FAULT_FETCH and not (replaced & PRESENT and not replaced & NO_EXECUTE):
        leaf |= NO_EXECUTE
    if undo and not error & FAULT_WRITE and not (replaced & PRESENT and replaced & WRITABLE):
        leaf &= ~WRITABLE
    index = map_page(words, guest_end, frame_end, pool, root, vaddr, leaf)
    if index < 0:
        return EXHAUSTED
    row[LOG_VADDR] = vaddr
    row[LOG_RIP] = rip
    row[LOG_ERROR] = error
    row[LOG_INDEX] = index
    row[LOG_REPLACED] = replaced
    return GRANTED


def needs_judgement(
    words: Words,
    guest_end: int,
    kernel_root: int,
    approved: Words,
    approved_mask: int,
    cacheable_data: int,
    vaddr: int,
    error: int,
) -> bool:
    """Tell whether the policy must be asked, or has answered for good already."""
    if error & FAULT_FETCH:
        return bool(approved[approved_slot(approved, approved_mask, vaddr)] != vaddr)
    if not cacheable_data:
        return True
    # A supervisor access to a page that is mapped for users in the kernel half: not "kernel data".
    return bool(walk_leaf(words, guest_end, kernel_root, vaddr) & USER)
