"""Granting a page, compiled: what a hook does once nobody has to be asked.

Why it exists: it runs some sixty times in every isolated call; the decision is `isolation.fault`'s.

Rules of this file:
- Compiled with Numba; `core` is the array of `slots`.
- With undo, a page is saved before the table lets the first write through.
"""

from thinbox import paging
from thinbox.isolation import fault
from thinbox.machine import slots
from thinbox.machine.compiled import compiled
from thinbox.machine.delivery import mark_touched, native, save_for_undo, walk_leaf, write_cr3
from thinbox.machine.intrinsics import words_at
from thinbox.machine.view_hooks import is_others_file, is_visible

grant = compiled(fault.grant)
entry_index = compiled(paging.entry_index)
is_row_aside = compiled(fault.is_row_aside)


@native
def active_root(core):
    """Return the SCI table, or the undo table while an exception inside a call runs on that."""
    if core[slots.ACTIVE] == slots.ON_UNDO:
        return core[slots.UNDO_ROOT]
    return core[slots.SCI_ROOT]


@native
def save_before_grant(core, vaddr, error):
    """With undo: do what the CPU does to the user's own tables, and save a page that is about to be written."""
    write = 1 if error & paging.FAULT_WRITE else 0
    kernel_root = core[slots.KERNEL_ROOT]
    mark_touched(core, kernel_root, vaddr, write)
    if write:
        leaf = walk_leaf(words_at(core[slots.WORDS]), core[slots.GUEST_END], kernel_root, vaddr)
        if leaf:
            save_for_undo(core, leaf & paging.FRAME_MASK)


@native
def grant_now(uc, core, vaddr, error, rip):
    """Grant the page of `vaddr` and log it; return what `fault.grant` returns."""
    row = words_at(core[slots.LOG] + 8 * fault.LOG_COLUMNS * core[slots.LOG_COUNT])
    words, root, undo_mode = words_at(core[slots.WORDS]), active_root(core), core[slots.UNDO_MODE]
    pool = words_at(core[slots.UNDO_POOL if core[slots.ACTIVE] == slots.ON_UNDO else slots.POOL])
    if undo_mode:
        save_before_grant(core, vaddr, error)
    guest_end, kernel_root = core[slots.GUEST_END], core[slots.KERNEL_ROOT]
    read_first = undo_mode
    if core[slots.VIEW] and not undo_mode and not error & (paging.FAULT_WRITE | paging.FAULT_FETCH):
        read_first = 1 if is_others_file(core, kernel_root, walk_leaf(words, guest_end, kernel_root, vaddr)) else 0
    result = grant(words, guest_end, core[slots.FRAME_END], pool, root, kernel_root, vaddr, error, rip, row, read_first)
    if result == fault.GRANTED:
        if core[slots.ACTIVE] == slots.ON_UNDO or vaddr >= 0:
            row[fault.LOG_ERROR] |= fault.LOG_ASIDE
        if not is_row_aside(row):
            core[slots.COUNT_GRANTS] += 1
        core[slots.LOG_COUNT] += 1
        if core[slots.TRACK_USE]:
            words[row[fault.LOG_INDEX]] &= ~(paging.ACCESSED | paging.DIRTY)
        if row[fault.LOG_REPLACED] & paging.PRESENT:
            # The old translation may be cached; a table that only grew needs no flush.
            write_cr3(uc, core, root)
    return result


@native
def prefault_page(uc, core, vaddr, error):
    """Map one page the call is known to need, if the kernel maps it so and the table does not yet."""
    words, guest_end = words_at(core[slots.WORDS]), core[slots.GUEST_END]
    leaf = walk_leaf(words, guest_end, core[slots.KERNEL_ROOT], vaddr)
    if leaf == 0 or leaf & paging.USER or (error & paging.FAULT_FETCH and leaf & paging.NO_EXECUTE):
        return
    index = entry_index(words, core[slots.FRAME_END], core[slots.SCI_ROOT], vaddr, guest_end)
    present = index >= 0 and words[index] & paging.PRESENT
    if present and not (error & paging.FAULT_FETCH and words[index] & paging.NO_EXECUTE):
        return
    if core[slots.VIEW] and not error & paging.FAULT_FETCH and not is_visible(core, core[slots.KERNEL_ROOT], leaf):
        return
    if core[slots.LOG_COUNT] < core[slots.LOG_CAPACITY]:
        grant_now(uc, core, vaddr, error | fault.LOG_PREFAULT, 0)
