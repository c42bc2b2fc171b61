"""Gadgets in bytes whose gadgets are known by hand."""

import numpy as np
import pytest
from thinbox.surface.scan import TAIL_BYTES, GadgetKind, Piece, scan_piece

BASE = 0xFFFF_FFFF_8123_4000
FILL = b"\xcc" * 24  # int3: no gadget goes through it


def scan(code, thunks=None, base=BASE):
    """(offset, length, kind) of every gadget of `code` between two stretches of int3."""
    found = scan_piece(Piece(base, FILL + code + FILL, b""), thunks or {})
    starts = (found.starts - np.uint64(base + len(FILL))).astype(np.int64).tolist()
    return list(zip(starts, found.lengths.tolist(), map(GadgetKind, found.kinds.tolist()), strict=True))


R, J, C, S = GadgetKind


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("c3", [(0, 1, R)]),
        ("58 c3", [(0, 2, R), (1, 1, R)]),  # pop rax; ret
        ("41 58 c3", [(0, 3, R), (1, 2, R), (2, 1, R)]),  # pop r8; ret, and pop rax; ret in it
        ("f3 c3", [(0, 2, R), (1, 1, R)]),  # repz ret
        ("c2 08 00", [(0, 3, R)]),  # ret 8
        ("cb", [(0, 1, R)]),  # retf
        ("ff e0", [(0, 2, J)]),  # jmp rax
        ("41 ff e4", [(0, 3, J), (1, 2, J)]),  # jmp r12, and jmp rsp in it
        ("ff 60 08", [(0, 3, J)]),  # jmp [rax+8]
        ("ff d0", [(0, 2, C)]),  # call rax
        ("ff 50 08", [(0, 3, C)]),  # call [rax+8]
        ("ff 10", [(0, 2, C)]),  # call [rax]
        ("0f 05", [(0, 2, S)]),  # syscall
        ("48 0f 07", [(0, 3, S), (1, 2, S)]),  # sysretq, sysret
        ("48 cf", [(0, 2, S), (1, 1, S)]),  # iretq, iretd
        ("58 ff e0 c3", [(0, 3, J), (1, 2, J), (3, 1, R)]),  # what comes behind a jump is a gadget of its own
        (
            "75 01 90 c3",
            [(0, 4, R), (2, 2, R), (3, 1, R)],
        ),  # a conditional jump ends none; `add [rax-0x3d], edx` neither
        ("e9 00 00 00 00", []),  # a direct jump
        ("eb 00", []),
        ("e8 00 00 00 00", []),
        ("90 90 90", []),
    ],
)
def test_gadgets_of_a_few_instructions(code, expected):
    assert scan(bytes.fromhex(code)) == expected


def test_a_gadget_starts_up_to_nine_bytes_before_its_last_instruction():
    assert [start for start, _n, _k in scan(b"\x90" * 12 + b"\xc3")] == list(range(3, 13))


def thunk_branch(opcode, distance, before=b""):
    return before + bytes([opcode]) + (distance - len(before) - 5).to_bytes(4, "little", signed=True)


def test_branches_to_thunks_are_the_branches_they_stand_for():
    jump, back = 0x5555_5550, -0x5555_5550  # bytes that are no gadgets themselves
    thunks = {BASE + len(FILL) + jump: GadgetKind.JUMP, BASE + len(FILL) + back: GadgetKind.RETURN}
    pop = b"\x58"
    assert scan(thunk_branch(0xE8, jump, pop), thunks) == [(0, 6, C), (1, 5, C)]
    assert scan(thunk_branch(0xE9, jump, pop), thunks) == [(0, 6, J), (1, 5, J)]
    assert scan(thunk_branch(0xE9, back, pop), thunks) == [(0, 6, R), (1, 5, R)]
    assert scan(thunk_branch(0xE9, jump + 1, pop), thunks) == []
    assert scan(thunk_branch(0xE9, jump, pop)) == []


def test_a_call_between_start_and_thunk_makes_no_gadget():
    jump = 0x5555_5550
    thunks = {BASE + len(FILL) + jump: GadgetKind.JUMP}
    code = thunk_branch(0xE8, jump, thunk_branch(0xE8, jump))
    assert [(start, n) for start, n, _k in scan(code, thunks) if start in (0, 5)] == [(0, 5), (5, 5)]


@pytest.mark.parametrize("at", range(9))
def test_a_gadget_over_the_end_of_a_piece_belongs_to_the_piece_it_starts_in(at):
    code = FILL + bytes.fromhex("585b41ffa42400cccccc") + FILL  # pop rax; pop rbx; jmp [r12 + disp32]
    whole = scan_piece(Piece(BASE, code, b""), {})
    cut = len(FILL) + at
    parts = [
        scan_piece(Piece(BASE, code[:cut], code[cut : cut + TAIL_BYTES]), {}),
        scan_piece(Piece(BASE + cut, code[cut:], b""), {}),
    ]
    assert len(whole.starts) >= 4
    assert np.concatenate([part.starts for part in parts]).tolist() == whole.starts.tolist()
    assert np.concatenate([part.lengths for part in parts]).tolist() == whole.lengths.tolist()
    assert np.concatenate([part.kinds for part in parts]).tolist() == whole.kinds.tolist()


def test_the_tail_is_as_long_as_the_longest_gadget_needs():
    code = b"\x90" * 9 + bytes.fromhex("41ffa42411223344")  # starts at 0, 17 bytes
    found = scan_piece(Piece(BASE, code[:1], code[1 : 1 + TAIL_BYTES]), {})
    assert (found.starts.tolist(), found.lengths.tolist()) == ([BASE], [17])


def test_no_bytes_no_gadgets():
    assert len(scan_piece(Piece(BASE, b"", b""), {BASE: GadgetKind.JUMP}).starts) == 0
    assert len(scan_piece(Piece(BASE, b"\x90", b""), {BASE: GadgetKind.JUMP}).starts) == 0
