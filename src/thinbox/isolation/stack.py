"""The kernel's own unwind tables (ORC) and the walk over a task's stack, compiled as well as interpreted.

Why it exists: a policy that judges transfers wants to know who called whom. The kernel carries a table that
says, for every address of its text, where the return address lies; the walk runs at every judged fetch, so
it is compiled, and approves a stack only out of frames that were judged before.

Source: arch/x86/include/asm/orc_types.h; arch/x86/kernel/unwind_orc.c, `unwind_next_frame`.

Rules of this file:
- The subset of Python that Numba compiles; addresses are signed 64-bit integers.
- Whatever cannot be followed is `BROKEN`: a caller that trusts the stack must then refuse.
- Only frames of calls are followed. Frames of exceptions and interrupts never lie under a judged fault, for
  those run on the kernel's own table.
"""

from thinbox.isolation.pagetable import is_executable
from thinbox.paging import Words, translate

MAX_FRAMES = 96
"""16 KiB of stack hold no more frames of real functions than this; a longer chain is no stack."""

REG_UNDEFINED, REG_PREV_SP, REG_BP, REG_SP, REG_BP_INDIRECT, REG_SP_INDIRECT = 0, 1, 4, 5, 8, 9

FRAME_FOUND = 1
BROKEN = 0

RETURN_ADDRESS, CALLER_SP, CALLER_BP = range(3)

ROW_WORDS = 4
"""A row of the table of approvals: (address, first, second, call number); address 0 is an empty row."""
FRAME_TAG = -2
"""In the place of the call number: this row approves a frame (return address, inner function's start)."""
ANY_CALL = -1


def row_of(rows: Words, mask: int, vaddr: int, first: int, second: int, nr: int) -> int:
    """Return the index of the row with exactly these four words, or of the empty row where it would go."""
    mixed = (vaddr ^ (vaddr >> 13)) * 0x9E3779B1 + (first ^ (first >> 11)) * 0x85EBCA6B + second * 0x27D4EB2F + nr * 97
    slot = (mixed ^ (mixed >> 16)) & mask
    while rows[ROW_WORDS * slot] != 0 and not (
        rows[ROW_WORDS * slot] == vaddr
        and rows[ROW_WORDS * slot + 1] == first
        and rows[ROW_WORDS * slot + 2] == second
        and rows[ROW_WORDS * slot + 3] == nr
    ):
        slot = (slot + 1) & mask
    return slot


def is_approved(rows: Words, mask: int, vaddr: int, start: int, end: int, nr: int, kinds: int) -> bool:
    """Tell whether a fetch of `vaddr` from the block `start`..`end` in call `nr` was approved for good.

    `kinds` has bit 1 if there are approvals by block, bit 2 by call number, bit 3 by both.
    """
    if kinds & 2 and rows[ROW_WORDS * row_of(rows, mask, vaddr, start, end, ANY_CALL)] != 0:
        return True
    if kinds & 4 and rows[ROW_WORDS * row_of(rows, mask, vaddr, 0, 0, nr)] != 0:
        return True
    return bool(kinds & 8 and rows[ROW_WORDS * row_of(rows, mask, vaddr, start, end, nr)] != 0)


def last_at_or_before(values: Words, count: int, wanted: int) -> int:
    """Return the index of the last of the ascending `values` that is not greater than `wanted`, or -1."""
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        if values[middle] <= wanted:
            low = middle + 1
        else:
            high = middle
    return low - 1


def load_word(words: Words, guest_end: int, root: int, vaddr: int) -> int:
    """Return the word at `vaddr`, 0 where it is not mapped or not aligned: 0 is no address of text."""
    if vaddr & 7:
        return 0
    paddr = translate(words, guest_end, root, vaddr)
    if paddr < 0 or paddr + 8 > guest_end:
        return 0
    return words[paddr >> 3]


def next_frame(
    words: Words,
    guest_end: int,
    kernel_root: int,
    orc_ips: Words,
    orc: Words,
    orc_count: int,
    ip: int,
    sp: int,
    bp: int,
    out: Words,
) -> int:
    """Find the caller of the frame (`ip` to look up, `sp`, `bp`); fill `out` and return `FRAME_FOUND`, or `BROKEN`.

    `orc` holds, per entry, sp_offset, bp_offset, sp_reg and bp_reg in 16 bits each from bit 0 on.
    """
    index = last_at_or_before(orc_ips, orc_count, ip)
    if index < 0:
        return BROKEN
    entry = orc[index]
    sp_offset, bp_offset = entry & 0xFFFF, (entry >> 16) & 0xFFFF
    sp_reg, bp_reg = (entry >> 32) & 0xFFFF, (entry >> 48) & 0xFFFF
    if sp_offset & 0x8000:
        sp_offset -= 0x10000
    if bp_offset & 0x8000:
        bp_offset -= 0x10000
    if sp_reg == REG_SP:
        caller = sp + sp_offset
    elif sp_reg == REG_BP:
        caller = bp + sp_offset
    elif sp_reg == REG_BP_INDIRECT:
        caller = load_word(words, guest_end, kernel_root, bp + sp_offset)
    elif sp_reg == REG_SP_INDIRECT:
        caller = load_word(words, guest_end, kernel_root, sp) + sp_offset
    else:
        return BROKEN
    out[RETURN_ADDRESS] = load_word(words, guest_end, kernel_root, caller - 8)
    out[CALLER_SP] = caller
    out[CALLER_BP] = bp
    if bp_reg == REG_PREV_SP:
        out[CALLER_BP] = load_word(words, guest_end, kernel_root, caller + bp_offset)
    elif bp_reg == REG_BP:
        out[CALLER_BP] = load_word(words, guest_end, kernel_root, bp + bp_offset)
    elif bp_reg != REG_UNDEFINED:
        return BROKEN
    if out[RETURN_ADDRESS] == 0:
        return BROKEN
    return FRAME_FOUND


def is_stack_approved(
    words: Words,
    guest_end: int,
    frame_end: int,
    root: int,
    kernel_root: int,
    orc_ips: Words,
    orc: Words,
    orc_count: int,
    starts: Words,
    starts_count: int,
    bottoms: Words,
    bottoms_count: int,
    rows: Words,
    mask: int,
    ip: int,
    sp: int,
    bp: int,
    out: Words,
) -> bool:
    """Tell whether every frame down to the call's entry was approved, and every caller's page may execute now."""
    lookup = ip
    for _ in range(MAX_FRAMES):
        if next_frame(words, guest_end, kernel_root, orc_ips, orc, orc_count, lookup, sp, bp, out) == BROKEN:
            return False
        back = out[RETURN_ADDRESS]
        index = last_at_or_before(starts, starts_count, lookup)
        if index < 0:
            return False
        row = row_of(rows, mask, back, starts[index], 0, FRAME_TAG)
        if rows[ROW_WORDS * row] == 0 or not is_executable(words, frame_end, root, back - 1):
            return False
        for i in range(bottoms_count):
            if bottoms[i] == back:
                return True
        sp, bp, lookup = out[CALLER_SP], out[CALLER_BP], back - 1
    return False
