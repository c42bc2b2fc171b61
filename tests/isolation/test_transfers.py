"""What an instruction does to the next one's address, and a function decoded from its bytes."""

import pytest
from thinbox.isolation.transfers import Flow, Instruction, LiveCode, decode_function, flow_of

START = 0xFFFF_FFFF_8100_0000
NOP, RET, INT3, UD2 = b"\x90", b"\xc3", b"\xcc", b"\x0f\x0b"


@pytest.mark.parametrize(
    ("mnemonic", "operands", "flow", "target"),
    [
        ("mov", "rax, rbx", Flow.NEXT, 0),
        ("jmp", "0x1234", Flow.JUMP, 0x1234),
        ("notrack jmp", "rax", Flow.JUMP_INDIRECT, 0),
        ("jmp", "qword ptr [rax]", Flow.JUMP_INDIRECT, 0),
        ("jne", "0x1234", Flow.BRANCH, 0x1234),
        ("jrcxz", "0x1234", Flow.BRANCH, 0x1234),
        ("loop", "0x1234", Flow.BRANCH, 0x1234),
        ("loopne", "0x1234", Flow.BRANCH, 0x1234),
        ("call", "0x1234", Flow.CALL, 0x1234),
        ("call", "rax", Flow.CALL_INDIRECT, 0),
        ("ret", "", Flow.RETURN, 0),
        ("rep ret", "", Flow.RETURN, 0),
        ("retfq", "", Flow.RETURN, 0),
        ("iretq", "", Flow.IRET, 0),
        ("sysretq", "", Flow.IRET, 0),
        ("ud2", "", Flow.STOP, 0),
        ("int3", "", Flow.STOP, 0),
        ("hlt", "", Flow.STOP, 0),
        ("lodsb", "al, byte ptr [rsi]", Flow.NEXT, 0),
    ],
)
def test_what_an_instruction_does(mnemonic, operands, flow, target):
    assert flow_of(mnemonic, operands) == (flow, target)


def jump(opcode, at, target):
    return opcode + (target - at - len(opcode) - 4).to_bytes(4, "little", signed=True)


def test_a_function_is_known_by_the_address_behind_each_instruction():
    inside, outside = START + 7, START + 0x100
    code = b"\x74\x05" + jump(b"\xe8", START + 2, outside) + NOP + RET
    found = decode_function(code, START)
    assert found.by_end == {
        START + 2: Instruction(START, Flow.BRANCH, inside),
        START + 7: Instruction(START + 2, Flow.CALL, outside),
        START + 8: Instruction(START + 7, Flow.NEXT, 0),
        START + 9: Instruction(START + 8, Flow.RETURN, 0),
    }
    assert found.starts == {START, START + 2, START + 7, START + 8}
    assert (found.start, found.end) == (START, START + 9)
    assert found.leaves == frozenset(), "a branch inside, and a call, do not leave"
    assert not found.jumps_indirectly


@pytest.mark.parametrize(
    ("code", "leaves"),
    [
        (jump(b"\xe9", START, START + 0x100), {START + 0x100}),
        (jump(b"\xe9", START, START - 1), {START - 1}),
        (jump(b"\xe9", START, START), set()),
        (jump(b"\xe9", START, START + 5), {START + 5}),
        (jump(b"\xe9", START, START + 5) + RET, set()),
        (jump(b"\x0f\x84", START, START + 0x100) + RET, {START + 0x100}),
        (jump(b"\x0f\x84", START, START), {START + 6}),
        (b"\x31\xc0", {START + 2}),
        (b"\x31\xc0" + NOP, {START + 3}),
        (RET + NOP, set()),
        (b"\x31\xc0" + INT3, set()),
        (b"\x31\xc0" + UD2, set()),
        (b"", set()),
    ],
)
def test_where_a_function_goes_without_a_call(code, leaves):
    assert decode_function(code, START).leaves == leaves


@pytest.mark.parametrize(
    ("code", "is_so"), [(b"\xff\xe0", True), (b"\xff\xe0" + RET, True), (b"\xff\xd0" + RET, False)]
)
def test_a_function_that_jumps_indirectly_is_known_for_it(code, is_so):
    assert decode_function(code, START).jumps_indirectly is is_so


def test_bytes_that_are_no_instruction_are_stepped_over():
    found = decode_function(b"\x06" + RET, START)
    assert found.by_end[START + 2].flow is Flow.RETURN


def test_a_function_is_decoded_once_until_the_kernel_patches_its_text():
    code, read = LiveCode(), []

    def bytes_at(vaddr, size):
        read.append((vaddr, size))
        return RET * size

    first = code.function(START, START + 3, 0, bytes_at)
    assert code.function(START, START + 3, 0, bytes_at) is first
    assert code.function(START + 3, START + 5, 0, bytes_at) is not first
    assert read == [(START, 3), (START + 3, 2)]
    assert code.function(START, START + 3, 1, bytes_at) is not first
    assert code.function(START, START + 3, 1, bytes_at) is code.function(START, START + 3, 1, bytes_at)
    assert read == [(START, 3), (START + 3, 2), (START, 3)]
