"""User page tables: which of a tenant's a call may have written.

Why it exists: what user code can reach through its own page tables, and what the kernel reaches for it through user
addresses, no SCI table judges. So a call that changed a page table of its tenant's is looked at before it returns.

Rules of this file: the subset of Python that Numba compiles.

Source: SDM vol. 3A, 4.5 (4-level paging); Linux 6.1 arch/x86/include/asm/pgtable.h (kernel_to_user_pgdp).
"""

from thinbox.paging import FRAME_MASK, KERNEL_HALF_FIRST, LARGE, PRESENT, Words

LAST, MIDDLE, UPPER, TOP, TOP_OF_USER = range(1, 6)
"""Levels: tables of pages, of 2 MiB, of 1 GiB; the PGD; and under page-table isolation the PGD of user space."""
_USER_PGD = 0x1000
LDT_SLOT = 272
"""The one entry of a PGD's kernel half that is its process's own (arch/x86/include/asm/pgtable_64_types.h:
LDT_PGD_ENTRY, -240); with page-table isolation it leads to the tables that map its LDT."""


def note_if_among(frames: Words, count: int, frame: int, level: int, out: Words, found: int, most: int) -> int:
    """Append (frame, level) to the `found` pairs of `out` if `frame` is one of `count` ascending frames.

    Returns how many pairs there are then, and one more than `most` where there was no room.
    """
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        if frames[middle] < frame:
            low = middle + 1
        else:
            high = middle
    if low == count or frames[low] != frame or found > most:
        return found
    if found < most:
        out[2 * found], out[2 * found + 1] = frame, level
    return found + 1


def find_touched(
    words: Words,
    frame_end: int,
    frames: Words,
    count: int,
    roots: Words,
    root_count: int,
    pti: int,
    out: Words,
    most: int,
) -> int:
    """Fill `out` with pairs (table frame, level) of the tables below `roots` that are among the ascending `frames`.

    Returns how many; `most` pairs fit, and one more than that is returned if there are more.
    """
    found = 0
    for number in range(root_count):
        root = roots[number]
        if root + 4096 > frame_end:
            continue
        found = note_if_among(frames, count, root, TOP, out, found, most)
        if pti:
            found = note_if_among(frames, count, root + _USER_PGD, TOP_OF_USER, out, found, most)
        for i in range(KERNEL_HALF_FIRST + 1):
            upper = words[(root >> 3) + (i if i < KERNEL_HALF_FIRST else LDT_SLOT)]
            if not upper & PRESENT or (upper & FRAME_MASK) >= frame_end:
                continue
            found = note_if_among(frames, count, upper & FRAME_MASK, UPPER, out, found, most)
            for j in range(512):
                middle = words[((upper & FRAME_MASK) >> 3) + j]
                if not middle & PRESENT or middle & LARGE or (middle & FRAME_MASK) >= frame_end:
                    continue
                found = note_if_among(frames, count, middle & FRAME_MASK, MIDDLE, out, found, most)
                for k in range(512):
                    last = words[((middle & FRAME_MASK) >> 3) + k]
                    if last & PRESENT and not last & LARGE:
                        found = note_if_among(frames, count, last & FRAME_MASK, LAST, out, found, most)
    return found
