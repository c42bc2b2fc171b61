"""Addresses and page arithmetic, so that no integer is ambiguous about the space it lives in.

Why it exists: the program handles guest-virtual, guest-physical and host addresses side by side, and
mixing two of them is the kind of mistake that would end in a wrong verdict.
"""

from typing import NewType

VAddr = NewType("VAddr", int)
"""Guest-virtual address, canonical, unsigned (kernel addresses are >= 0xffff_8000_0000_0000)."""

PAddr = NewType("PAddr", int)
"""Guest-physical address in bytes."""

PAGE_BYTES = 4096
PAGE_SHIFT = 12
PAGE_MASK = ~(PAGE_BYTES - 1)
WORD_BYTES = 8

USER_END = VAddr(1 << 47)
"""End (exclusive) of the user half with four-level paging (Documentation/arch/x86/x86_64/mm.rst)."""

U64 = (1 << 64) - 1


def page_start(vaddr: int) -> int:
    """Return the first byte of the 4 KiB page that holds `vaddr`."""
    return vaddr & PAGE_MASK


def page_align_up(value: int) -> int:
    """Round `value` (bytes) up to a whole number of 4 KiB pages."""
    return (value + PAGE_BYTES - 1) & PAGE_MASK


def to_signed(value: int) -> int:
    """Return the 64-bit pattern `value` as a signed integer, as the word arrays store it."""
    return value - (1 << 64) if value >> 63 & 1 else value


def to_unsigned(value: int) -> int:
    """Return the signed 64-bit `value` as the unsigned pattern."""
    return value & U64
