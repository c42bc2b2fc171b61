"""The flag with which a socket allocates is read off the kernel's code, in every way a compiler writes that."""

import pytest
from thinbox.guest.charged_sockets import stored_constant

OFFSET, VALUE = 0x210, 0x400CC0
OPERANDS = OFFSET.to_bytes(4, "little") + VALUE.to_bytes(4, "little")
NOISE = bytes.fromhex("4889e5 c7450000000000 41c7442410c00c0000".replace(" ", ""))
"""mov %rsp,%rbp; movl $0,0(%rbp); movl $0xcc0,0x10(%r12): the last two with a place of one byte."""
STORES = {
    "rax": "c780", "rcx": "c781", "rdx": "c782", "rbx": "c783", "rbp": "c785", "rsi": "c786", "rdi": "c787",
    "r8": "41c780", "r12": "41c78424", "r13": "41c785", "r15": "41c787",
}  # fmt: skip


@pytest.mark.parametrize("register", STORES)
def test_the_constant_is_found_whatever_register_the_socket_is_in(register):
    store = bytes.fromhex(STORES[register]) + OPERANDS
    assert stored_constant(NOISE + store + NOISE, OFFSET) == VALUE
    assert stored_constant(store, OFFSET) == VALUE
    assert stored_constant(store[:-1], OFFSET) is None
    assert stored_constant(NOISE + store + NOISE, OFFSET + 8) is None


def test_of_two_stores_none_is_taken():
    store = bytes.fromhex(STORES["rbx"]) + OPERANDS
    assert stored_constant(store + NOISE + store, OFFSET) is None
    other = bytes.fromhex(STORES["r12"]) + OPERANDS
    assert stored_constant(store + other, OFFSET) is None


def test_an_indexed_place_is_not_taken_for_the_sockets_own():
    """movl $imm32, disp32(%r12,%rax,4): C7 84 84."""
    assert stored_constant(bytes.fromhex("41c78484") + OPERANDS, OFFSET) is None
