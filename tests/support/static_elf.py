"""Static executables of a few hand-made instructions, 32-bit or 64-bit: one segment, code first, then data.

Source: the System V ABI's ELF header and program header (gabi 4.1, chapters 4 and 5); i386 and AMD64 supplements.
"""

import struct

VADDR = 0x400000
_HEADER = b"\x7fELF%c\x01\x01" + bytes(9)
_I386, _AMD64 = 3, 62


def build_elf32(code: bytes) -> bytes:
    """Return an i386 executable; `code` is at `code_vaddr(32)`."""
    start, size = 52 + 32, 52 + 32 + len(code)
    header = struct.pack("<16sHHIIIIIHHHHHH", _HEADER % 1, 2, _I386, 1, VADDR + start, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return header + struct.pack("<8I", 1, 0, VADDR, VADDR, size, size, 7, 0x1000) + code


def build_elf64(code: bytes) -> bytes:
    """Return an AMD64 executable; `code` is at `code_vaddr(64)`."""
    start, size = 64 + 56, 64 + 56 + len(code)
    header = struct.pack("<16sHHIQQQIHHHHHH", _HEADER % 2, 2, _AMD64, 1, VADDR + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 7, 0, VADDR, VADDR, size, size, 0x1000) + code


def code_vaddr(bits: int) -> int:
    return VADDR + (52 + 32 if bits == 32 else 64 + 56)
