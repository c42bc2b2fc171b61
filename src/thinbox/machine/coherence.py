"""The only way into Unicorn's TLB: what an access reaches, and whether a page is translated code or stored to.

Why it exists: whatever must hold for physical pages, whoever made the page table, is enforced here, once a fill.
Unicorn's own fill is not used, for three reasons.
- It walks wherever table words lead. Ours ends at the guest's RAM (see docs/decisions/0016-hidden-ram.md): hidden RAM
  is not even mapped in Unicorn, and what is no RAM of the guest's is an empty bus.
- It is too slow: a store to an executable page never takes the fast path, for the page may hold translated code
  (QEMU asks whether it does). A kernel maps all of its data executable until its boot is nearly over: a quarter of a
  boot went there.
- It is unsound: of several stores through a mapping without execute right, only the first drops translations. Code
  of an ended program could run where its page had been filled with another's.

Rules of this file:
- A page is FETCHED before an entry by which it can be executed exists, so that no translation of a page
  without this mark exists. When it gets the mark, entries by which it was STORED to are flushed first.
- A store to a FETCHED page under an address that may be executed is left to Unicorn, which then looks at each
  store. Under any other address the page's translations and all TLB entries go first, and its mark.
- What is refused is raised as the CPU does (SDM vol. 3A, 4.6 and 4.7).

Source: target/i386/excp_helper.c, `handle_mmu_fault`, which `tests/machine/test_fill.py` compares it with.
"""

from numba import cfunc, types

from thinbox import paging
from thinbox.machine import slots
from thinbox.machine.compiled import compiled
from thinbox.machine.delivery import GENERAL_PROTECTION, PAGE_FAULT, native
from thinbox.machine.granting import active_root
from thinbox.machine.intrinsics import address_of, call3, call7, load32, load64, store64, words_at
from thinbox.machine.state_bits import HF_LONG_MODE
from thinbox.machine.wall_hooks import FETCH, STORE, met_rule, must_come_back

walk_access = compiled(paging.walk_access)

FETCHED, STORED = 1, 2
"""Marks of a page; one without was only loaded from, or never touched."""
BUS_READ = 1 << 40
BUS_WRITE = BUS_READ + 4096
"""Two pages beyond every physical address the guest can name: one of ones, never written, and one never read."""
_READ, _WRITE, _EXECUTE = 1, 2, 4
_PAGE_BYTES = 4096
NOWHERE = -1
"""What was refused where nobody can be killed for it: the empty bus is reached instead."""
_WP, _PAGING = 1 << 16, 1 << 31
_PAE, _LA57, _SMEP = 1 << 5, 1 << 12, 1 << 20
_SMAP_MODE, _USER_MODE = 0, 1
"""MMU_KSMAP_IDX and MMU_USER_IDX (target/i386/cpu.h)."""
_EVERYTHING = paging.PRESENT | paging.WRITABLE | paging.USER | paging.ACCESSED | paging.DIRTY
_NATIVE = types.int64


@native
def find_entry(core, control, vaddr):
    """Return what maps `vaddr` now, as `paging.walk_access` does.

    Without paging an address is its own frame. Paging in any form but four-level 64-bit is none this machine has (only
    a guest kernel that is not itself any more could switch it on): it leads to the empty bus.
    """
    if not load64(control) & _PAGING:
        return (vaddr & 0xFFFFF000) | _EVERYTHING
    features = load64(control + 32)
    long_mode = load32(core[slots.ENV] + core[slots.OFF_HFLAGS]) & HF_LONG_MODE
    if not long_mode or not features & _PAE or features & _LA57:
        return BUS_READ | _EVERYTHING
    root, guest_end, frame_end = load64(control + 24), core[slots.GUEST_END], core[slots.FRAME_END]
    top_first, top_end, first, end = 0, guest_end, 0, guest_end
    if core[slots.ACTIVE] and (root ^ active_root(core)) & paging.FRAME_MASK == 0:
        top_first, top_end = guest_end, frame_end
        if vaddr < 0 or core[slots.UNDO_MODE]:
            first, end = guest_end, frame_end
    place = words_at(address_of(core) + 8 * slots.ENTRY_PLACE)
    seals = core[slots.WALL_SEALS]
    words = words_at(core[slots.WORDS])
    return walk_access(words, top_first, top_end, first, end, root, vaddr, place, words_at(seals), seals != 0)


@native
def find_rights(control, entry, mode):
    """Return what an access in `mode` may do by `entry`."""
    features, is_user = load64(control + 32), mode == _USER_MODE
    is_users = entry & paging.USER
    if is_user and not is_users:
        return 0
    rights = 0
    if mode != _SMAP_MODE or not is_users:
        rights = _READ
        if entry & paging.WRITABLE or (not is_user and not load64(control) & _WP):
            rights |= _WRITE
    if not entry & paging.NO_EXECUTE and (is_user or not (features & _SMEP and is_users)):
        rights |= _EXECUTE
    return rights


@native
def refuse(core, control, vaddr, entry, access, mode, back):
    """Raise the page fault of an access; does not return."""
    error = entry & paging.PRESENT
    if entry == paging.IS_RESERVED:
        error = paging.FAULT_PRESENT | paging.FAULT_RESERVED
    if access == STORE:
        error |= paging.FAULT_WRITE
    elif access == FETCH:
        error |= paging.FAULT_FETCH
    if mode == _USER_MODE:
        error |= paging.FAULT_USER
    store64(control + 16, vaddr)
    call7((core[slots.RAISE], core[slots.ENV], PAGE_FAULT, error, back, 0, 0, 0))


@native
def set_entry(core, cpu, vaddr, paddr, rights, mode, size):
    """Put one page into the TLB."""
    call7((core[slots.TLB_SET_PAGE], cpu, vaddr & ~0xFFF, paddr, 0, rights, mode, size))


@native
def set_bus(core, cpu, vaddr, rights, access, mode):
    """Let an access reach the empty bus: loads and fetches read ones, stores go nowhere."""
    if access == STORE:
        set_entry(core, cpu, vaddr, BUS_WRITE, _WRITE, mode, _PAGE_BYTES)
    else:
        set_entry(core, cpu, vaddr, BUS_READ, rights & ~_WRITE, mode, _PAGE_BYTES)


@native
def set_ram(core, cpu, vaddr, entry, rights, access, mode):
    """Let an access reach a page of the guest's RAM, as code or as what is stored to."""
    marks, page = words_at(core[slots.PAGE_MARKS]), (entry & paging.FRAME_MASK) >> 12
    size = _PAGE_BYTES << (9 * ((entry >> paging.PAGE_LEVEL_SHIFT) & 3))
    if access == FETCH:
        if marks[page] == STORED:
            call3(core[slots.TLB_FLUSH], cpu, 0, 0)
        marks[page] = FETCHED
    elif marks[page] != FETCHED or not rights & _EXECUTE:
        if marks[page] == FETCHED and access == STORE:
            call3(core[slots.DROP_CODE], core[slots.UC], page << 12, (page + 1) << 12)
            call3(core[slots.TLB_FLUSH], cpu, 0, 0)
            marks[page] = 0
        rights &= ~_EXECUTE
        if marks[page] == FETCHED:
            rights &= ~_WRITE
        if rights & _WRITE:
            marks[page] = STORED
    set_entry(core, cpu, vaddr, page << 12, rights, mode, size)


@native
def pass_wall(core, control, vaddr, entry, access, rights, is_user):
    """Return what the wall says of an access to the guest's RAM (the rule it meets, 0, or NOWHERE), and what of its
    rights the TLB may hold."""
    asked, root = (vaddr & ~0xFFF) | (access + 1), load64(control + 24)
    if core[slots.ACTIVE]:
        root = core[slots.KERNEL_ROOT]
    if core[slots.WALL_BUS] == asked:
        core[slots.WALL_BUS] = 0
        return NOWHERE, rights
    if core[slots.WALL_PASS] == asked and core[slots.WALL_FRAME] == entry & paging.FRAME_MASK:
        core[slots.WALL_PASS], rule = 0, 0
    else:
        rule = met_rule(core, root, vaddr, entry, access, is_user)
    if not rule and access != STORE and rights & _WRITE and must_come_back(core, root, vaddr, entry, is_user):
        rights &= ~_WRITE
    return rule, rights


@cfunc(
    types.boolean(_NATIVE, _NATIVE, types.CPointer(types.int64), types.int32, types.int32, types.int32, _NATIVE),
)
def on_tlb_fill(cpu, vaddr, core, access, mode, probe, back):
    """Take the place of `x86_cpu_tlb_fill` (target/i386/excp_helper.c); its unused `size` carries `core`."""
    control = core[slots.ENV] + core[slots.OFF_CR]
    paged = load64(control) & _PAGING
    if paged and vaddr >> 47 != 0 and vaddr >> 47 != -1:
        if not probe:
            call7((core[slots.RAISE], core[slots.ENV], GENERAL_PROTECTION, 0, back, 0, 0, 0))
        return False
    entry = find_entry(core, control, vaddr)
    rights = find_rights(control, entry, mode) if entry & paging.PRESENT else 0
    if not (rights >> access) & 1:
        if not probe:
            refuse(core, control, vaddr, entry, access, mode, back)
        return False
    if core[slots.WALL_SEALS] and (entry & paging.FRAME_MASK) + _PAGE_BYTES <= core[slots.GUEST_END]:
        rule, rights = pass_wall(core, control, vaddr, entry, access, rights, mode == _USER_MODE)
        if rule == NOWHERE:
            set_bus(core, cpu, vaddr, rights, access, mode)
            return True
        if rule:
            if not probe:
                core[slots.WALL_HIT], core[slots.WALL_FRAME] = rule, entry & paging.FRAME_MASK
                core[slots.WALL_CR2] = load64(control + 16)
                refuse(core, control, vaddr, entry, access, mode, back)
            return False
    if not entry & paging.ACCESSED or (access == STORE and not entry & paging.DIRTY):
        marks = paging.ACCESSED | (paging.DIRTY if access == STORE else 0)
        words_at(core[slots.WORDS])[core[slots.ENTRY_PLACE]] |= marks
        entry |= marks
    if not entry & paging.DIRTY:
        # The first store must come back, to set it.
        rights &= ~_WRITE
    if (entry & paging.FRAME_MASK) + _PAGE_BYTES > core[slots.GUEST_END]:
        set_bus(core, cpu, vaddr, rights, access, mode)
    else:
        set_ram(core, cpu, vaddr, entry, rights, access, mode)
    return True


@cfunc(types.boolean(_NATIVE, types.int32, _NATIVE, types.int32, _NATIVE, _NATIVE))
def on_fetch_refused(_uc, _kind, _vaddr, _size, _value, _data):
    """UC_HOOK_MEM_FETCH_PROT: never called, for all of RAM may be executed; see `tlb_fill`."""
    return False
