"""Code that is written to, under every name it has, runs as written."""

import struct

import pytest
from tests.support.bare_machine import CODE, DATA, HLT, TABLE, BareMachine, mov

NO_EXECUTE = 1 << 63
PRESENT_WRITABLE_USER_DIRTY = 0x67
ALIAS = 0x90000
FIRST, SECOND = DATA, DATA + 0x800
"""Two functions in one page."""
RBX, RCX, RDI = 3, 1, 7
_CALL_BOTH = mov(RDI, FIRST) + b"\xff\xd7" + mov(RDI, SECOND) + b"\xff\xd7"  # call *%rdi


def _add(amount: int) -> bytes:
    return b"\x48\x83\xc3" + bytes([amount]) + b"\xc3"  # add $amount, %rbx; ret


def _store(vaddr: int, code: bytes) -> bytes:
    """Store `code` (at most eight bytes) at `vaddr`, one instruction."""
    return mov(RDI, vaddr) + mov(RCX, int.from_bytes(code, "little")) + b"\x48\x89\x0f"  # mov %rcx, (%rdi)


def _machine(code: bytes, alias_bits: int) -> BareMachine:
    bare = BareMachine(mov(RBX, 0) + code + HLT)
    # EFER.NXE is set by BareMachine only with LME; with it NO_EXECUTE is a right, not a reserved bit.
    bare.cpu.uc.msr_write(0xC0000080, 0xD01)
    bare.memory.write(FIRST, _add(1))
    bare.memory.write(SECOND, _add(2))
    entry = (DATA & ~0xFFF) | PRESENT_WRITABLE_USER_DIRTY | alias_bits
    bare.memory.write(TABLE + 8 * (ALIAS >> 12), struct.pack("<Q", entry))
    return bare


@pytest.mark.parametrize("alias_bits", [0, NO_EXECUTE], ids=["executable alias", "alias without execute"])
def test_a_store_through_an_alias_replaces_both_functions_of_a_page(alias_bits: int) -> None:
    stores = _store(ALIAS, _add(16)) + _store(ALIAS + 0x800, _add(32))
    bare = _machine(_CALL_BOTH + stores + _CALL_BOTH, alias_bits)
    bare.run()
    assert bare.register("RBX") == 1 + 2 + 16 + 32


@pytest.mark.parametrize("alias_bits", [0, NO_EXECUTE], ids=["executable alias", "alias without execute"])
def test_code_that_ran_after_a_first_store_is_replaced_by_the_next(alias_bits: int) -> None:
    first = _store(ALIAS, _add(16)) + _store(ALIAS + 0x800, _add(32))
    second = _store(ALIAS, _add(64)) + _store(ALIAS + 0x800, _add(8))
    bare = _machine(first + _CALL_BOTH + second + _CALL_BOTH + first + _CALL_BOTH, alias_bits)
    bare.run()
    assert bare.register("RBX") == 16 + 32 + 64 + 8 + 16 + 32


def test_stores_under_the_address_that_runs_replace_it() -> None:
    stores = _store(FIRST, _add(16)) + _store(SECOND, _add(32))
    bare = _machine(_CALL_BOTH + stores + _CALL_BOTH + stores, 0)
    bare.run()
    assert bare.register("RBX") == 1 + 2 + 16 + 32


def test_a_page_that_was_stored_to_can_be_executed_only_with_the_right() -> None:
    bare = _machine(_store(ALIAS, _add(16)) + mov(RDI, ALIAS) + b"\xff\xd7", NO_EXECUTE)
    bare.run()
    assert bare.vector == 14
    assert bare.frame(error=True)["error"] == 0x11
    assert bare.cpu.cr2 == ALIAS


def test_a_read_only_page_stays_read_only_after_a_load() -> None:
    bare = _machine(mov(RDI, DATA) + b"\x48\x8b\x0f" + b"\x48\x89\x0f", 0)  # mov (%rdi), %rcx; mov %rcx, (%rdi)
    bare.protect(DATA, 5)
    bare.run()
    assert (bare.vector, bare.frame(error=True)["error"], bare.cpu.cr2) == (14, 3, DATA)


def test_a_first_store_after_a_load_sets_the_dirty_bit() -> None:
    bare = _machine(mov(RDI, DATA) + b"\x48\x8b\x0f" + b"\x48\x89\x0f", 0)
    bare.protect(DATA, 7)
    bare.run()
    (entry,) = struct.unpack("<Q", bare.memory.read(TABLE + 8 * (DATA >> 12), 8))
    assert entry & 0x60 == 0x60
    assert CODE <= bare.cpu.rip
