"""Runs a trace of pages through the TLB model, as one mode of isolation would have run it.

Why it exists: which CR3 writes there are, which of them flush, and what misses after them depends on the mode;
the pages touched do not. So one trace gives the events of every mode.

Rules of this file:
- The subset of Python that Numba compiles.
- Misses count for the call last opened, those of the user code behind it too, for its switch caused them.
- The kernel's own INVLPG and full flushes are alike in every mode and left out.
"""

from thinbox.cost.tlb import GLOBAL, HIT_L1, HIT_L2, WALK, access, flush_tag
from thinbox.paging import Words

SWITCH_FLUSH, SWITCH_KEEP, L2_HITS, WALKS, WALK_LOADS, FAULTS, ENTRIES_COUNT, INNER = range(8)
COLUMNS = 8
"""Of a call: CR3 writes that flush and that do not, hits in the second level, walks, loads of these walks, faults
on the SCI table, entries into the kernel from user code, leaves of the SCI table for interrupts and sleeps."""

M_PCID, M_GLOBAL, M_PTI, M_SCI, M_KEEP, M_ASI, M_FLUSH_OWN = range(7)
MODE_WORDS = 7
"""Switches of a mode: PCIDs in use; kernel pages global; user table of its own; SCI tables; grants survive the
call; ASI (one CR3 write away from the restricted table in each call, one back); every write of an SCI root flushes."""

ASID_SLOTS = 6
"""TLB_NR_DYN_ASIDS (arch/x86/include/asm/tlbflush.h): address spaces whose translations Linux keeps."""
KERNEL_TAG, USER_TAG, SCI_TAG = 0, 1, 2

CODE, DATA, MARK = 0, 1, 2
STATE, GRANT, OPEN = 0, 1, 2
"""As in `machine.tracing_slots`."""

PAGE_MASK = (1 << 36) - 1
DATA_SPACE = 1 << 35
ENTRY_PAGE = 1 << 34
"""Page numbers of 48-bit addresses; frames stand in for the pages that map them, in a space of their own."""
STRIP_SLOTS = 128
HANDLER_DATA = 3
"""Data pages a fault handler touches besides its stack: the IDT, the task, the page table it fills (assumed)."""


def count_access(s: Words, out: Words, row: int, page: int, shift: int, tag: int, context: int, code: bool) -> None:
    """Translate one reference and count what it cost for the call at `row`."""
    result = access(s, page, shift, tag, context, code)
    if result == HIT_L1:
        return
    if result == HIT_L2:
        out[row + L2_HITS] += 1
        return
    out[row + WALKS] += 1
    out[row + WALK_LOADS] += result >> 2


def tag_of(pcid: int, slot: int, which: int) -> int:
    """Return the tag of one of the three tables of an address space; without PCIDs there is one tag."""
    return 1 + 3 * slot + which if pcid else 0


def switch(s: Words, out: Words, row: int, pcid: int, tag: int, flush: bool) -> None:
    """Write CR3: without PCIDs every write flushes, with them only one that wants to."""
    if flush or not pcid:
        flush_tag(s, tag)
        out[row + SWITCH_FLUSH] += 1
    else:
        out[row + SWITCH_KEEP] += 1


def find_slot(roots: Words, root: int) -> int:
    """Return the slot of an address space, or -1 if it has none (any more)."""
    for slot in range(ASID_SLOTS):
        if roots[slot] == root:
            return slot
    return -1


def handle_fault(s: Words, out: Words, row: int, pcid: int, slot: int, flush_own: bool) -> None:
    """A grant: out of the SCI table, through the handler's pages on the kernel's table, and back."""
    kernel, own = tag_of(pcid, slot, KERNEL_TAG), tag_of(pcid, slot, SCI_TAG)
    switch(s, out, row, pcid, kernel, False)
    count_access(s, out, row, ENTRY_PAGE, 21, kernel, kernel, True)
    for i in range(HANDLER_DATA):
        count_access(s, out, row, ENTRY_PAGE + 512 * (1 + i), 12, kernel, kernel, False)
    switch(s, out, row, pcid, own, flush_own)
    out[row + FAULTS] += 1


def replay(
    stream: Words,
    count: int,
    words: Words,
    shifts: Words,
    users: Words,
    faults: Words,
    mode: Words,
    s: Words,
    roots: Words,
    out: Words,
) -> int:
    """Run `count` references of `stream` (indexes into `words`); return the number of references translated.

    `faults[i]` says whether the i-th grant of the trace is a fault in this mode too. `out` has `COLUMNS` words for
    each call, and one row before them for what came before the first.
    """
    pcid, pti, sci, asi = mode[M_PCID], mode[M_PTI], mode[M_SCI], mode[M_ASI]
    row, grant, translated = 0, 0, 0
    state, slot, next_slot = -1, 0, 0
    on_table, user, entering, dirty, left, last_code = 0, 1, 0, 0, 0, ENTRY_PAGE
    context = tag_of(pcid, 0, USER_TAG)
    for i in range(count):
        index = stream[i]
        word = words[index]
        kind = word & 3
        if kind != MARK:
            code = kind == CODE
            page = (word >> 2) & PAGE_MASK
            if not code:
                page |= DATA_SPACE
            shift = 12 if on_table and sci else shifts[index]
            if entering and code:
                # The entry code runs on the user's table until its CR3 write.
                count_access(s, out, row, page, shift, context, context, True)
                count_access(s, out, row, ENTRY_PAGE + 512, 12, context, context, False)
                context = tag_of(pcid, slot, KERNEL_TAG)
                switch(s, out, row, pcid, context, False)
                entering = 0
            tag = context
            if mode[M_GLOBAL] and (word < 0 or (not code and not user and not users[index])):
                tag = GLOBAL
            count_access(s, out, row, page, shift, tag, context, code)
            translated += 1
            if code:
                last_code = index
            continue
        mark = (word >> 2) & 3
        payload = word >> 4
        if mark == OPEN:
            row = COLUMNS * (1 + payload)
            if asi and not left:
                left = 1
                context = tag_of(pcid, slot, SCI_TAG)
                switch(s, out, row, pcid, context, False)
            continue
        if mark == GRANT:
            if sci and faults[grant]:
                handle_fault(s, out, row, pcid, slot, bool(mode[M_FLUSH_OWN]))
                dirty = 1
            grant += 1
            continue
        if mark != STATE:
            continue
        root = payload >> 2
        now_user, now_table = payload & 1, (payload >> 1) & 1
        if root != state:
            found = find_slot(roots, root)
            fresh = found < 0
            if fresh:
                found = next_slot
                next_slot = (next_slot + 1) % ASID_SLOTS
                roots[found] = root
                if pcid:
                    for which in range(3):
                        flush_tag(s, tag_of(pcid, found, which))
            slot = found
            context = tag_of(pcid, slot, KERNEL_TAG if pti or now_table else USER_TAG)
            switch(s, out, row, pcid, context, fresh)
            state = root
            on_table = 0
        if sci and now_table != on_table:
            context = tag_of(pcid, slot, SCI_TAG if now_table else (KERNEL_TAG if pti else USER_TAG))
            switch(s, out, row, pcid, context, bool(now_table and (mode[M_FLUSH_OWN] or (dirty and not mode[M_KEEP]))))
            if now_table:
                dirty = 0
            else:
                out[row + INNER] += 1
        on_table = now_table
        if now_user != user:
            if now_user:
                if asi and left:
                    left = 0
                    context = tag_of(pcid, slot, USER_TAG)
                    switch(s, out, row, pcid, context, False)
                if pti:
                    context = tag_of(pcid, slot, USER_TAG)
                    switch(s, out, row, pcid, context, False)
                    page = (words[last_code] >> 2) & PAGE_MASK
                    count_access(s, out, row, page, shifts[last_code], context, context, True)
            else:
                out[row + ENTRIES_COUNT] += 1
                entering = pti
            user = now_user
    return translated


def strip(stream: Words, count: int, words: Words, grants_flush: int, kept: Words) -> int:
    """Copy `stream` without touches that repeat one of the last pages; return the length.

    Such a touch hits in the second level, which has at least as many sets, unless a flush came between: a change
    of table may be one, and a grant is one in modes where `grants_flush`. Walks stay within a hundredth, hits of
    the second level within a third (measured on script.sh, tests/cost/test_replay.py).
    """
    size = 0
    recent = STRIP_SLOTS
    # The filter stands in the end of `kept`, which is as long as `stream` and 2 * recent more.
    base = count
    for i in range(2 * recent):
        kept[base + i] = -1
    for i in range(count):
        index = stream[i]
        word = words[index]
        kind = word & 3
        if kind == MARK:
            mark = (word >> 2) & 3
            if mark == STATE or (mark == GRANT and grants_flush):
                for j in range(2 * recent):
                    kept[base + j] = -1
            kept[size] = index
            size += 1
            continue
        at = base + kind * recent + ((word >> 2) & (recent - 1))
        if kept[at] == index:
            continue
        kept[at] = index
        kept[size] = index
        size += 1
    return size


__all__ = ["COLUMNS", "WALK", "replay", "strip"]
