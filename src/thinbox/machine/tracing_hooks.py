"""Compiled hooks that write down which pages the guest touches: what a TLB model is fed with.

Why it exists: the cost of a table switch is mostly the misses after it, and these depend on the pages the
kernel and the program touch before and after. Unicorn calls a block hook with a virtual address and a
memory hook with a guest-physical one, so code is noted by virtual page and data by frame.

Rules of this file:
- Compiled with Numba; `t` is the array of `tracing_slots`, `core` the array of `slots`.
- A page is noted once between two marks unless another page of the same filter slot came between: such a
  repeated touch hits in any TLB with at least `FILTER_SLOTS` sets (Puzak's trace stripping), and is counted only.
- A full buffer stops the noting, never the guest; what was lost is counted.
"""

from numba import cfunc, types

from thinbox import paging
from thinbox.machine import slots
from thinbox.machine.delivery import native
from thinbox.machine.intrinsics import load64, store64, words_at
from thinbox.machine.tracing_slots import (
    CODE,
    CODE_FILTER,
    DATA,
    DATA_FILTER,
    EMPTY,
    FILTER_SLOTS,
    GRANT,
    MARK,
    STATE,
    TRACE_BUFFER,
    TRACE_CAPACITY,
    TRACE_CODE_REFS,
    TRACE_CORE,
    TRACE_COUNT,
    TRACE_DATA_REFS,
    TRACE_GRANTS,
    TRACE_LAST_CODE,
    TRACE_LOST,
    TRACE_ON,
    TRACE_ROOT_MASK,
    TRACE_STATE,
    TRACE_USER,
    TRACE_WORDS,
)


@native
def append(t, word):
    """Write one word, or count it as lost."""
    count = t[TRACE_COUNT]
    if count >= t[TRACE_CAPACITY]:
        t[TRACE_LOST] += 1
        return
    store64(t[TRACE_BUFFER] + 8 * count, word)
    t[TRACE_COUNT] = count + 1


@native
def clear_filter(t):
    """Forget what was touched: from here on every page counts as new."""
    for i in range(CODE_FILTER, TRACE_WORDS):
        t[i] = EMPTY
    t[TRACE_LAST_CODE] = EMPTY


@native
def on_sci(core):
    """Return 1 on an SCI table; the undo table stands for the kernel's own."""
    return 1 if core[slots.ACTIVE] == slots.ON_SCI else 0


@native
def note_marks(t, core):
    """Write marks for grants, and for a change of table or of privilege."""
    granted = core[slots.COUNT_GRANTS]
    if granted != t[TRACE_GRANTS]:
        for _ in range(granted - t[TRACE_GRANTS]):
            append(t, GRANT << 2 | MARK)
        t[TRACE_GRANTS] = granted
        clear_filter(t)
    root = load64(core[slots.ENV] + core[slots.OFF_CR] + 24)
    if core[slots.ACTIVE]:
        root = core[slots.KERNEL_ROOT]
    active = on_sci(core)
    state = ((root & paging.FRAME_MASK & t[TRACE_ROOT_MASK]) >> 12) << 2 | active << 1 | t[TRACE_USER]
    if state != t[TRACE_STATE]:
        t[TRACE_STATE] = state
        append(t, state << 4 | STATE << 2 | MARK)
        clear_filter(t)


@native
def note_code(t, page):
    """Note one code page."""
    if page == t[TRACE_LAST_CODE]:
        return
    t[TRACE_LAST_CODE] = page
    slot = CODE_FILTER + (page & (FILTER_SLOTS - 1))
    if t[slot] != page:
        t[slot] = page
        append(t, page << 2 | CODE)


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)))
def on_trace_block(_uc, vaddr, size, t):
    """UC_HOOK_BLOCK: the one or two code pages of a block."""
    if not t[TRACE_ON]:
        return
    t[TRACE_CODE_REFS] += 1
    t[TRACE_USER] = 1 if vaddr >= 0 else 0
    note_marks(t, words_at(t[TRACE_CORE]))
    note_code(t, vaddr >> 12)
    if (vaddr + size - 1) >> 12 != vaddr >> 12:
        note_code(t, (vaddr + size - 1) >> 12)


@cfunc(types.void(types.int64, types.int32, types.int64, types.int32, types.int64, types.CPointer(types.int64)))
def on_trace_memory(_uc, _kind, paddr, _size, _value, t):
    """UC_HOOK_MEM_READ and _WRITE: the frame of one data access."""
    if not t[TRACE_ON]:
        return
    t[TRACE_DATA_REFS] += 1
    core = words_at(t[TRACE_CORE])
    if core[slots.COUNT_GRANTS] != t[TRACE_GRANTS] or on_sci(core) != (t[TRACE_STATE] >> 1) & 1:
        note_marks(t, core)
    frame = paddr >> 12
    slot = DATA_FILTER + (frame & (FILTER_SLOTS - 1))
    if t[slot] != frame:
        t[slot] = frame
        append(t, frame << 2 | DATA)


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)))
def on_count(_uc, _vaddr, _size, counter):
    """Code hook that counts: `counter` is the address of one word."""
    counter[0] += 1
