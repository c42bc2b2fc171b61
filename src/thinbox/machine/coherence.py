"""Translated code and stores to it: each page of RAM is one or the other.

Why it exists: Unicorn goes wrong here in both directions.
- Too slow: a store to an executable page never takes the fast path, for the page may hold translated code
  (QEMU asks whether it does). A kernel maps all of its data executable until its boot is nearly over: a
  quarter of a boot went there.
- Unsound: of several stores through a mapping without execute right, only the first drops translations. Code
  of an ended program could run where its page had been filled with another's.
Here Unicorn's TLB fill is wrapped, the only way into the TLB.

Rules of this file:
- A page is FETCHED before an entry by which it can be executed exists, so that no translation of a page
  without this mark exists. When it gets the mark, entries by which it was STORED to are flushed first.
- A store to a FETCHED page under an address that may be executed is left to Unicorn, which then looks at each
  store. Under any other address the page's translations and all TLB entries go first, and its mark.
- Permissions only shrink: what the wrapped fill refuses stays refused; its faults are its own.
"""

from numba import cfunc, types

from thinbox import paging
from thinbox.machine import slots
from thinbox.machine.delivery import walk_leaf
from thinbox.machine.intrinsics import call3, call7, load32, load64, words_at
from thinbox.machine.state_bits import HF_LONG_MODE

STORE, FETCH = 1, 2
"""MMUAccessType (include/hw/core/cpu.h); 0 is a load."""
FETCHED, STORED = 1, 2
"""Marks of a page; one without was only loaded from, or never touched."""
_READ, _WRITE = 1, 2
_PAGE_BYTES = 4096
_PAGING = 1 << 31
_SMEP = 1 << 20
_USER_MODE = 1
"""MMU_USER_IDX (target/i386/cpu.h)."""
_NATIVE = types.int64


@cfunc(
    types.boolean(_NATIVE, _NATIVE, types.CPointer(types.int64), types.int32, types.int32, types.int32, _NATIVE),
)
def on_tlb_fill(cpu, vaddr, core, access, mode, probe, back):
    """Take the place of `x86_cpu_tlb_fill` (target/i386/excp_helper.c); its unused `size` carries `core`."""
    env = core[slots.ENV]
    control = env + core[slots.OFF_CR]
    marks = words_at(core[slots.PAGE_MARKS])
    end = core[slots.FRAME_END]
    paged = load64(control) & _PAGING and load32(env + core[slots.OFF_HFLAGS]) & HF_LONG_MODE
    entry = walk_leaf(words_at(core[slots.WORDS]), end, load64(control + 24), vaddr) if paged else 0
    page = (entry & paging.FRAME_MASK) >> 12 if paged else (vaddr & 0xFFFFFFFF) >> 12
    in_ram = page < end >> 12 and (entry != 0 or not paged)
    if in_ram and (access == FETCH or not paged):
        if marks[page] == STORED:
            call3(core[slots.TLB_FLUSH], cpu, 0, 0)
        marks[page] = FETCHED
    if not call7((core[slots.TLB_FILL], cpu, vaddr, 1, access, mode, probe, back)) & 1:
        return False
    if not in_ram or access == FETCH:
        return True
    if marks[page] == FETCHED:
        smep = mode != _USER_MODE and load64(control + 32) & _SMEP and entry & paging.USER
        if not entry & paging.NO_EXECUTE and not smep:
            return True
        if access == STORE:
            call3(core[slots.DROP_CODE], core[slots.UC], page << 12, (page + 1) << 12)
            call3(core[slots.TLB_FLUSH], cpu, 0, 0)
            marks[page] = 0
    rights = _READ
    if access == STORE or (marks[page] != FETCHED and entry & paging.WRITABLE and entry & paging.DIRTY):
        rights |= _WRITE
        marks[page] = STORED
    call7((core[slots.TLB_SET_PAGE], cpu, vaddr & ~0xFFF, page << 12, 0, rights, mode, _PAGE_BYTES))
    return True


@cfunc(types.boolean(_NATIVE, types.int32, _NATIVE, types.int32, _NATIVE, _NATIVE))
def on_fetch_refused(_uc, _kind, _vaddr, _size, _value, _data):
    """UC_HOOK_MEM_FETCH_PROT: never called, for all of RAM may be executed; see `tlb_fill`."""
    return False
