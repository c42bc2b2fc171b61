"""Unicorn's TLB fill, found and wrapped.

Why it exists: `coherence` says what happens at a fill; Unicorn offers a hook for fills only together with an
MMU of one's own, and its own is right. So the pointer by which it calls its own is found and replaced.

Rules of this file: what is not found exactly once ends the program with `MachineError`; nothing is guessed.
"""

import ctypes
import mmap
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import unicorn.unicorn_py3.unicorn as binding
from unicorn import UC_HOOK_MEM_FETCH_PROT, unicorn_const

from thinbox.address import PAGE_BYTES
from thinbox.errors import MachineError
from thinbox.machine import slots
from thinbox.machine.native import hook_address
from thinbox.machine.thunks import executable, fill_thunk

if TYPE_CHECKING:
    from thinbox.machine.memory import Memory


class FilledCpu(Protocol):
    """What is needed of a CPU whose TLB fill is wrapped."""

    uc: Any
    core: np.ndarray
    slot: memoryview
    memory: "Memory"

    def keep_array(self, array: np.ndarray) -> int:
        """Keep an array alive as long as the CPU; return its host address."""
        ...

    def add_hook(self, kind: int, function: int, data: int, *, begin: int = 1, end: int = 0) -> Any:
        """Add a hook given by host address."""
        ...


_FUNCTIONS = {
    slots.TLB_FILL: "x86_cpu_tlb_fill_x86_64",
    slots.RAISE: "raise_exception_err_ra_x86_64",
    slots.TLB_SET_PAGE: "tlb_set_page_with_attrs_x86_64",
    slots.TLB_FLUSH: "tlb_flush_x86_64",
    slots.DROP_CODE: "tb_invalidate_phys_range_x86_64",
}
"""Functions of Unicorn (qemu/target/i386/excp_helper.c, qemu/accel/tcg) that `coherence` calls."""
_SCAN_BYTES = 16 << 10
_ABOVE_RAM = 1 << 32
_LAST = (1 << 64) - 1


def install_tlb_fill(cpu: FilledCpu) -> None:
    """Wrap the TLB fill of `cpu`, once, before it first runs."""
    core = cpu.slot
    for slot, name in _FUNCTIONS.items():
        core[slot] = _address(name)
    core[slots.PAGE_MARKS] = cpu.keep_array(np.zeros(cpu.memory.guest_bytes // PAGE_BYTES, dtype=np.int64))
    code = executable(fill_thunk(hook_address("on_tlb_fill"), cpu.core.ctypes.data))
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


def _find_fill_pointer(uc: Any, env: int, fill: int) -> int:
    """Return the host address of the pointer by which Unicorn calls its TLB fill.

    It lies behind the CPU state, next to a copy of itself; the one that a change of TLB mode changes is it.
    """
    # Read by way of the kernel, which ends where nothing is mapped (what lies behind the CPU's allocation may go at any
    # moment), into pages of our own, whose copies of the words are not counted.
    copy = mmap.mmap(-1, _SCAN_BYTES)
    at_copy = ctypes.addressof(ctypes.c_char.from_buffer(copy))
    words = memoryview(copy).cast("Q")

    def found() -> set[int]:
        size = _read_pages(env, copy)
        places = (env + 8 * at for at in range(size // 8) if words[at] == fill)
        return {place for place in places if not at_copy <= place < at_copy + _SCAN_BYTES}

    before = found()
    uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_VIRTUAL)
    changed = before - found()
    uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_CPU)
    if len(changed) != 1 or found() != before:
        raise MachineError("the TLB fill of this Unicorn is not where it is looked for; install unicorn 2.1.4")
    return changed.pop()


def _read_pages(address: int, into: mmap.mmap) -> int:
    """Fill `into` from host address `address` as far as it is mapped; return the bytes read."""
    done = 0
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        while done < len(into):
            step = min(PAGE_BYTES - (address + done) % PAGE_BYTES, len(into) - done)
            try:
                memory.seek(address + done)
                data = memoryview(into)[done : done + step]
                count = memory.readinto(data)
                data.release()
            except OSError:
                break
            if not count:
                break
            done += count
    return done
