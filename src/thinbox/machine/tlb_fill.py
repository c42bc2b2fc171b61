"""Unicorn's TLB fill, found and wrapped.

Why it exists: `coherence` says what happens at a fill; Unicorn offers a hook for fills only together with an
MMU of one's own, and its own is right. So the pointer by which it calls its own is found and replaced.

Rules of this file: what is not found exactly once ends the program with `MachineError`; nothing is guessed.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import unicorn.unicorn_py3.unicorn as binding
from unicorn import UC_HOOK_MEM_FETCH_PROT, unicorn_const

from thinbox.address import PAGE_BYTES
from thinbox.errors import MachineError
from thinbox.machine import slots
from thinbox.machine.layout_probe import read_host
from thinbox.machine.native import hook_address
from thinbox.machine.thunks import executable, fill_thunk

if TYPE_CHECKING:
    from thinbox.machine.cpu import Cpu

_FUNCTIONS = {
    slots.TLB_FILL: "x86_cpu_tlb_fill_x86_64",
    slots.TLB_SET_PAGE: "tlb_set_page_with_attrs_x86_64",
    slots.TLB_FLUSH: "tlb_flush_x86_64",
    slots.DROP_CODE: "tb_invalidate_phys_range_x86_64",
}
"""Functions of Unicorn (qemu/target/i386/excp_helper.c, qemu/accel/tcg) that `coherence` calls."""
_SCAN_BYTES = 16 << 10
_ABOVE_RAM = 1 << 32
_LAST = (1 << 64) - 1


def install_tlb_fill(cpu: "Cpu") -> None:
    """Wrap the TLB fill of `cpu`, once, before it first runs."""
    core = cpu.slot
    for slot, name in _FUNCTIONS.items():
        core[slot] = _address(name)
    core[slots.PAGE_MARKS] = cpu.keep_array(np.zeros(cpu.memory.total_bytes // PAGE_BYTES, dtype=np.int64))
    code = executable(fill_thunk(hook_address("on_tlb_fill"), cpu.core.ctypes.data))
    with _no_collection():
        place = _find_fill_pointer(cpu.uc, core[slots.ENV], core[slots.TLB_FILL])
    ctypes.c_uint64.from_address(place).value = cpu.keep_array(code)
    # At each translation Unicorn walks its whole TLB for entries by which the page was stored to, unless a hook
    # of this kind covers the address. There are none (rule 1); a bound below would be taken for a physical address.
    cpu.add_hook(UC_HOOK_MEM_FETCH_PROT, hook_address("on_fetch_refused"), 0, begin=_ABOVE_RAM, end=_LAST)


def _address(name: str) -> int:
    try:
        return ctypes.cast(getattr(binding.uclib, name), ctypes.c_void_p).value or 0
    except AttributeError:
        raise MachineError(f"this Unicorn does not export {name}; install unicorn 2.1.4") from None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Let Python collect nothing meanwhile: what is scanned ends with the CPU's allocation somewhere, and an old
    machine's memory, unmapped behind it in the midst of the scan, would be a segmentation fault."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _find_fill_pointer(uc: Any, env: int, fill: int) -> int:
    """Return the host address of the pointer by which Unicorn calls its TLB fill.

    It lies behind the CPU state, next to a copy of itself; the one that a change of TLB mode changes is it.
    """
    size = len(read_host(env, _SCAN_BYTES))
    # The words in place: a copy of them on the heap could be found in their stead.
    words = (ctypes.c_uint64 * (size // 8)).from_address(env)

    def found() -> set[int]:
        return {env + 8 * at for at, word in enumerate(words) if word == fill}

    before = found()
    uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_VIRTUAL)
    changed = before - found()
    uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_CPU)
    if len(changed) != 1 or found() != before:
        raise MachineError("the TLB fill of this Unicorn is not where it is looked for; install unicorn 2.1.4")
    return changed.pop()
