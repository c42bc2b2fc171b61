"""Data breakpoints: which access hits one that DR7 has switched on.

Why it exists: Unicorn keeps the debug registers and never looks at the addresses in them (its `cpu_watchpoint_insert`
does nothing), so `watch` of a debugger was accepted and never fired.

Rules of this file:
- It is in use once a data breakpoint has been on (`data_breakpoints`): every access to memory comes by here.
- Unicorn tells the physical address of an access; that of a breakpoint is looked up at each, by the table in use.

Source: SDM vol. 3B, 17.2.4, 17.2.5 and 17.3.1.1; arch/x86/kernel/hw_breakpoint.c.
"""

from numba import cfunc, types
from unicorn import UC_MEM_WRITE

from thinbox.machine import slots
from thinbox.machine.delivery import native, translate
from thinbox.machine.intrinsics import load64, words_at
from thinbox.machine.state_bits import DEBUG_WORDS, DR7

WRITE = int(UC_MEM_WRITE)
_ENABLED, _DATA, _EIGHT_BYTES = 0xFF, 1, 2
"""R/W bits of DR7: 1 are stores, 3 stores and loads; LEN 2 is eight bytes, any other one more than itself."""


@native
def is_hit(core, vaddr, length, paddr, size):
    """Tell whether an access of `size` bytes at guest-physical `paddr` touches the `length` bytes at `vaddr`."""
    first, inside = vaddr & ~(length - 1), paddr & 0xFFF
    place = first & 0xFFF
    if inside >= place + length or place >= inside + size:
        return False
    root = load64(core[slots.ENV] + core[slots.OFF_CR] + 24)
    if core[slots.ACTIVE]:
        root = core[slots.KERNEL_ROOT]
    found = translate(words_at(core[slots.WORDS]), core[slots.GUEST_END], root, first)
    return found >= 0 and (found ^ paddr) & ~0xFFF == 0


@cfunc(types.void(types.int64, types.int32, types.int64, types.int32, types.int64, types.CPointer(types.int64)))
def on_watch_memory(_uc, kind, paddr, size, _value, core):
    """UC_HOOK_MEM_READ and _WRITE: note the breakpoints that an access hits."""
    debug = core[slots.ENV] + core[slots.OFF_OLD] - 8 * DEBUG_WORDS
    control = load64(debug + 8 * DR7)
    if not control & _ENABLED:
        return
    for number in range(4):
        if not (control >> (2 * number)) & 3:
            continue
        how = (control >> (16 + 4 * number)) & 15
        if not how & _DATA or (how & 3 == _DATA and kind != WRITE):
            continue
        length = 8 if how >> 2 == _EIGHT_BYTES else (how >> 2) + 1
        if is_hit(core, load64(debug + 8 * number), length, paddr, size):
            core[slots.WATCH_HIT] |= 1 << number
