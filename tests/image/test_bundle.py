"""A library that holds a kernel is read, not run, whichever way its compiler wrote the function that gives it."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinbox.errors import KernelImageError
from thinbox.image.bundle import is_bundle, unpack_bundle
from thinbox.image.elf import parse_elf
from thinbox.image.kernel import parse_kernel_image

FLAT = bytes(range(256)) * 64
LOAD, ENTRY = 0x1000000, 0x1000123
_TEXT, _DATA = 0x1000, 0x2000

# gcc -O0: arguments go to the stack and come back in rax.
PLAIN = bytes.fromhex(
    "f30f1efa554889e5 48897df8 488975f0 488955e8 488b45f8 48c70000000001 488b45f0 48c70023010001 488b45e8"
)
PLAIN += bytes.fromhex("48c70000400000 488d0500000000 5dc3")
# gcc -O2: they stay in their registers, in whatever order.
OPTIMISED = bytes.fromhex("48c70623010001 48c70700000001 48c70200400000 488d0500000000 c3")
# Before ABI 5 there is no entry: it is the load address.
OLD = bytes.fromhex("48c70700000001 48c70600400000 488d0500000000 c3")
UNKNOWN = bytes.fromhex("488b0500000000 488907 c3")


def library(code: bytes, flat: bytes = FLAT) -> bytes:
    """A shared library of two segments with a table of exported symbols, and no more."""
    names = b"\0KERNEL_BUNDLE\0krunfw_get_kernel\0"
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x11, 0, 1, _DATA, len(flat))
    symbols += struct.pack("<IBBHQQ", 15, 0x12, 0, 1, _TEXT, len(code))
    section_names = b"\0.dynsym\0.dynstr\0"
    body = names.ljust(64, b"\0") + symbols.ljust(128, b"\0") + section_names.ljust(64, b"\0")
    headers = bytes(64)
    at = 64 + 2 * 56
    headers += struct.pack("<IIQQQQIIQQ", 1, 11, 2, 0, at + 64, len(symbols), 2, 1, 8, 24)
    headers += struct.pack("<IIQQQQIIQQ", 9, 3, 2, 0, at, len(names), 0, 0, 1, 0)
    headers += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at + 192, len(section_names), 0, 0, 1, 0)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    top = struct.pack("<16sHHIQQQIHHHHHH", ident, 3, 62, 1, 0, 64, at + 256, 0, 64, 56, 2, 64, 4, 3)
    top += struct.pack("<IIQQQQQQ", 1, 5, _TEXT, _TEXT, _TEXT, len(code), len(code), 4096)
    top += struct.pack("<IIQQQQQQ", 1, 6, _DATA, _DATA, _DATA, len(flat), len(flat), 4096)
    return ((top + body + headers).ljust(_TEXT, b"\0") + code).ljust(_DATA, b"\0") + flat


@pytest.mark.parametrize(("code", "entry"), [(PLAIN, ENTRY), (OPTIMISED, ENTRY), (OLD, LOAD)])
def test_the_kernel_of_a_library_is_found(code: bytes, entry: int) -> None:
    data = library(code)
    assert is_bundle(data)
    image = parse_kernel_image(data)
    assert (image.compression, image.bzimage, image.entry_paddr) == ("libkrunfw", None, entry)
    (segment,) = image.segments
    assert (segment.paddr, segment.vaddr) == (LOAD, 0xFFFF_FFFF_8000_0000 + LOAD)
    assert image.read_vaddr(segment.vaddr, len(FLAT)) == FLAT
    assert segment.memory_bytes > segment.file_bytes, "room for what is zero at first"


def test_what_says_it_in_another_way_is_refused() -> None:
    with pytest.raises(KernelImageError, match="does not say in a known way"):
        unpack_bundle(library(UNKNOWN))
    renamed = library(PLAIN).replace(b"krunfw_get_kernel", b"krunfw_get_qboot_")
    with pytest.raises(KernelImageError, match="exports no kernel"):
        unpack_bundle(renamed)


def test_other_libraries_and_kernels_are_none() -> None:
    assert not is_bundle(library(PLAIN).replace(b"KERNEL_BUNDLE", b"KERNEL_BUNGLE"))
    assert not is_bundle(b"")
    assert parse_elf(library(PLAIN)).segments


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, _TEXT + len(PLAIN)), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_library_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(library(PLAIN))
    for at, byte in changes:
        damaged[at] = byte
    try:
        parse_kernel_image(bytes(damaged))
    except KernelImageError as error:
        assert "\n" not in str(error)
