"""The wall in the TLB fill, compiled: what `coherence` asks of `isolation.wall_rules` at every fill.

Why it exists: each access of the CPU passes the fill, whatever table it goes by, in whatever context. See docs/wall.md.

Rules of this file: compiled with Numba; `core` is the array of `slots`.
"""

from thinbox import paging
from thinbox.isolation import wall_rules
from thinbox.machine import slots
from thinbox.machine.compiled import compiled
from thinbox.machine.delivery import native
from thinbox.machine.intrinsics import words_at

is_users_page = compiled(wall_rules.is_users_page)
is_admitted = compiled(wall_rules.is_admitted)

STORE, FETCH = 1, 2
"""MMUAccessType (include/hw/core/cpu.h); 0 is a load."""
_WORD_BYTES = 8


@native
def seal_of(core, frame):
    """Return the seal of the page of `frame`, 0 for none."""
    return words_at(core[slots.WALL_SEALS])[frame >> 12]


@native
def may_user(core, frame, is_store):
    """Tell whether the running tenant may plainly have the page of `frame` in its user half."""
    seen = words_at(core[slots.WALL_SEEN] + _WORD_BYTES * wall_rules.SEEN_WORDS * (frame >> 12))
    return is_admitted(
        words_at(core[slots.WORDS]),
        core[slots.GUEST_END],
        core[slots.WALL_ROOT],
        words_at(core[slots.WALL_VIEW]),
        seen,
        core[slots.WALL_TENANT],
        core[slots.WALL_TASK],
        seal_of(core, frame),
        frame,
        is_store,
    )


@native
def holds_code(core, vaddr, frame):
    """Tell whether kernel code may be fetched from the page of `frame` at `vaddr`."""
    if vaddr >= 0:
        return False
    if core[slots.WALL_TEXT] <= vaddr < core[slots.WALL_TEXT_END]:
        return frame == core[slots.WALL_TEXT_FRAME] + ((vaddr - core[slots.WALL_TEXT]) & ~0xFFF)
    words, end, view = words_at(core[slots.WORDS]), core[slots.GUEST_END], words_at(core[slots.WALL_VIEW])
    return not is_users_page(words, end, core[slots.WALL_ROOT], view, frame)


@native
def is_patching(core, root):
    """Tell whether the kernel patches its text, by the address space that it has for that."""
    return core[slots.WALL_PATCHING] and root == core[slots.WALL_POKING]


@native
def is_hidden_half(core, root, vaddr, is_user):
    """Tell whether an access is judged by whose the page is: of user code, or of the kernel by a user address."""
    if not core[slots.WALL_TENANT]:
        return False
    return is_user or (vaddr >= 0 and not is_patching(core, root))


@native
def met_rule(core, root, vaddr, entry, access, is_user):
    """Return the rule that an access by `entry` (of the guest's RAM) meets, 0 if it plainly may be."""
    frame, root = entry & paging.FRAME_MASK, root & paging.FRAME_MASK
    seal = seal_of(core, frame)
    if access == STORE and seal:
        # The vDSO's data is the kernel's to write, by its own address.
        is_own_data = seal == wall_rules.DATA_FOR_ALL and vaddr < 0
        if is_user or not (is_own_data or (vaddr >= 0 and is_patching(core, root))):
            return wall_rules.STORE
    place = core[slots.ENTRY_PLACE] << 3
    if place < core[slots.GUEST_END] and seal_of(core, place):
        # A forged table: the CPU would mark its "entry".
        return wall_rules.STORE
    if access == FETCH and not is_user and not holds_code(core, vaddr, frame):
        return wall_rules.CODE
    if is_hidden_half(core, root, vaddr, is_user) and not may_user(core, frame, access == STORE):
        return wall_rules.MAPPING
    return 0


@native
def must_come_back(core, root, vaddr, entry, is_user):
    """Tell whether the first store to a page that is loaded from now has to be asked about."""
    frame = entry & paging.FRAME_MASK
    if seal_of(core, frame):
        return True
    return is_hidden_half(core, root & paging.FRAME_MASK, vaddr, is_user) and not may_user(core, frame, True)
