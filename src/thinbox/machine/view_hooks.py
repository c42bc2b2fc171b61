"""Views in the fault path, compiled: what a hook does of `isolation.view_rules`.

Why it exists: it is asked at every data fault, and for every page a call holds when its task runs again.

Rules of this file: compiled with Numba; `core` is the array of `slots`.
"""

from numba import cfunc, types

from thinbox import paging
from thinbox.isolation import fault, mappings, view_rules, wall_rules
from thinbox.machine import slots
from thinbox.machine.compiled import compiled
from thinbox.machine.delivery import native
from thinbox.machine.intrinsics import words_at

is_plainly_visible = compiled(view_rules.is_plainly_visible)
is_object_own = compiled(view_rules.is_object_own)
find_touched = compiled(mappings.find_touched)
is_foreign_file = compiled(view_rules.is_foreign_file)
is_plain_mapping = compiled(view_rules.is_plain_mapping)
find_page = compiled(view_rules.find_page)
is_as_seen = compiled(wall_rules.is_as_seen)

_SEEN_BYTES = 8 * wall_rules.SEEN_WORDS


@native
def is_visible(core, kernel_root, leaf):
    """Tell whether the view of the running call's tenant lets the page of `leaf` be mapped without a judgement."""
    words, end = words_at(core[slots.WORDS]), core[slots.GUEST_END]
    return is_plainly_visible(words, end, kernel_root, words_at(core[slots.VIEW]), leaf & paging.FRAME_MASK)


@native
def is_others_file(core, kernel_root, leaf):
    """Tell whether there is a view, and the page of `leaf` is page cache that is not the tenant's own."""
    if not core[slots.VIEW]:
        return False
    words, end, rules = words_at(core[slots.WORDS]), core[slots.GUEST_END], words_at(core[slots.VIEW])
    return is_foreign_file(words, end, kernel_root, rules, leaf & paging.FRAME_MASK)


@native
def may_touch(core, kernel_root, leaf, vaddr):
    """Tell whether the view grants an access at `vaddr`, in the page of `leaf`, without a judgement."""
    if is_visible(core, kernel_root, leaf):
        return True
    words, end, rules = words_at(core[slots.WORDS]), core[slots.GUEST_END], words_at(core[slots.VIEW])
    if rules[view_rules.RULE] != view_rules.PERMISSIVE:
        return False
    return is_object_own(words, end, kernel_root, rules, leaf & paging.FRAME_MASK | vaddr & 0xFFF)


@cfunc(types.int64(types.int64, types.CPointer(types.int64), types.int64, types.int64, types.int64))
def drop_unseen(_uc, core, rows_at, count, kernel_root):
    """Take back the data grants (log rows at a host address) whose pages are no longer plainly the tenant's to see.

    Returns how many. A page that was granted after a judgement goes too: touched again, it is judged again.
    """
    words, rows = words_at(core[slots.WORDS]), words_at(rows_at)
    dropped = 0
    for i in range(count):
        index = rows[i * fault.LOG_COLUMNS + fault.LOG_INDEX]
        entry = words[index]
        is_kernels = rows[i * fault.LOG_COLUMNS + fault.LOG_VADDR] < 0
        is_data = entry & paging.PRESENT and entry & paging.NO_EXECUTE
        if is_kernels and is_data and not is_visible(core, kernel_root, entry):
            words[index] = 0
            dropped += 1
    return dropped


@cfunc(types.int64(types.int64, types.CPointer(types.int64), types.int64, types.int64, types.int64))
def touched_tables(_uc, core, sought_at, out_at, most):
    """`mappings.find_touched` for Python; at host address `sought_at`: count and host address of the frames, count and
    host address of the roots, and whether page-table isolation is on."""
    sought = words_at(sought_at)
    frames, roots = words_at(sought[1]), words_at(sought[3])
    words, end = words_at(core[slots.WORDS]), core[slots.GUEST_END]
    return find_touched(words, end, frames, sought[0], roots, sought[2], sought[4], words_at(out_at), most)


@cfunc(types.int64(types.int64, types.CPointer(types.int64), types.int64, types.int64, types.int64))
def drop_plain(_uc, core, entries_at, count, tenant):
    """Zero those of `count` page-table entries at a host address that map nothing, or plainly what the view of `tenant`
    (its number, `enforcement.seen_pages`) allows, or page cache that it was judged to allow; return how many are left.
    Memory beyond RAM is a device's."""
    words, end, entries = words_at(core[slots.WORDS]), core[slots.GUEST_END], words_at(entries_at)
    rules, root, left = words_at(core[slots.VIEW]), core[slots.WALL_ROOT], 0
    for i in range(count):
        entry = entries[i]
        frame = entry & paging.FRAME_MASK
        if not entry & paging.PRESENT or frame >= end or is_plain_mapping(words, end, root, rules, frame):
            entries[i] = 0
            continue
        seen = words_at(core[slots.WALL_SEEN] + _SEEN_BYTES * (frame >> 12))
        if seen[wall_rules.SEEN_READ] == tenant:
            at = find_page(words, end, root, rules, frame)
            if at >= 0 and is_as_seen(words, end, root, rules, seen, at):
                entries[i] = 0
                continue
        left += 1
    return left
