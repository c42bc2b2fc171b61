"""A few bytes of machine code in front of the compiled hooks.

Why it exists: Numba wraps every C callback in a second function, with a status and a stack frame, and cannot
pass on a pointer that the caller does not. Once for every block of guest code the first is a tenth of a boot;
a callback without user data needs the second.

Rules of this file: no decisions here. Whatever is not the plain case goes to the compiled hook, which is
complete without the thunk.
"""

import mmap
import struct

import numpy as np

from thinbox.machine import slots

_WORD_BYTES = 8


def block_thunk(on_block: int) -> bytes:
    """Return code for `on_block(uc, vaddr, size, core)` that counts a block, or goes to host address `on_block`.

    System V AMD64 calling convention: rdi, rsi, edx, rcx.
    """
    count = (
        _at(b"\x48\x89\x71", slots.BLOCK_START)  # mov %rsi, BLOCK_START(%rcx)
        + b"\x89\xd2"  # mov %edx, %edx: the size has 32 bits
        + b"\x48\x01\xd6"  # add %rdx, %rsi
        + _at(b"\x48\x89\x71", slots.BLOCK_END)  # mov %rsi, BLOCK_END(%rcx)
        + b"\x48\x01\xd0"  # add %rdx, %rax
        + _at(b"\x48\x89\x41", slots.CLOCK)  # mov %rax, CLOCK(%rcx)
        + b"\xc3"  # ret
    )
    look = (
        _at(b"\x48\x8b\x41", slots.CLOCK)  # mov CLOCK(%rcx), %rax
        + _at(b"\x48\x3b\x41", slots.ATTENTION)  # cmp ATTENTION(%rcx), %rax
        + b"\x7d"  # jge behind `count`
        + bytes([len(count)])
    )
    return look + count + _jump(on_block)


def fill_thunk(on_tlb_fill: int, core: int) -> bytes:
    """Return code for Unicorn's `tlb_fill(cpu, vaddr, size, …)` that goes on with `core` in place of `size`."""
    return b"\x48\xba" + struct.pack("<Q", core) + _jump(on_tlb_fill)  # mov $core, %rdx


def _at(instruction: bytes, slot: int) -> bytes:
    """Give an instruction its 32-bit displacement: the slot's place in `core` (ModRM mod 01 becomes 10)."""
    return instruction[:-1] + bytes([instruction[-1] + 0x40]) + struct.pack("<i", _WORD_BYTES * slot)


def _jump(target: int) -> bytes:
    return b"\x48\xb8" + struct.pack("<Q", target) + b"\xff\xe0"  # mov $target, %rax; jmp *%rax


def executable(code: bytes) -> np.ndarray:
    """Return `code` in memory of its own that may be executed, as long as the array lives."""
    place = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    place.write(code)
    return np.frombuffer(place, dtype=np.uint8)
