"""Memory that is not the guest's is an empty bus to it, by whatever address, table or CR3 it is named."""

import struct
from contextlib import suppress

import pytest
from tests.support.bare_machine import CODE, DATA, DIRECTORY, HLT, PDPT, PML4, TABLE, BareMachine, MachineError, mov
from unicorn import x86_const

MIB = 1 << 20
GUEST_BYTES = 96 * MIB
"""What BareMachine has."""
PAGE = 0x90000
"""The page whose entry the tests forge."""
RAX, RBX, RCX, RDI = 0, 3, 1, 7
ONES = (1 << 64) - 1
FRAMES = {
    "first hidden frame": GUEST_BYTES,
    "a hidden frame": GUEST_BYTES + 77 * MIB,
    "last hidden frame": GUEST_BYTES + 128 * MIB - 4096,
    "above it": GUEST_BYTES + 128 * MIB,
    "local APIC": 0xFEE00000,
    "end of 4 GiB": 0xFFFFF000,
    "above 4 GiB": 1 << 32,
    "far above": 1 << 36,
    "last frame of 40 bits": (1 << 40) - 4096,
}
PLANTED = 0x1122_3344_5566_7788


def machine(code: bytes, frame: int, *, ring3: bool = False) -> BareMachine:
    """PAGE is mapped to `frame`, whose every word, if it is hidden RAM, is PLANTED."""
    bare = BareMachine(b"" if ring3 else code, ring3=code if ring3 else None)
    bare.memory.write(TABLE + 8 * (PAGE >> 12), struct.pack("<Q", frame | 7))
    bare.memory.words[GUEST_BYTES // 8 :: 512] = PLANTED
    return bare


def assert_untouched(bare: BareMachine) -> None:
    hidden = bare.memory.words[GUEST_BYTES // 8 :].reshape(-1, 512)
    assert (hidden[:, 0] == PLANTED).all()
    assert not hidden[:, 1:].any()


@pytest.mark.parametrize("ring3", [False, True], ids=["ring 0", "ring 3"])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_loads_read_ones_and_stores_go_nowhere(frame: int, ring3: bool) -> None:
    code = (
        mov(RDI, PAGE)
        + mov(RCX, 0x4141414141414141)
        + b"\x48\x8b\x07"  # mov rax, [rdi]
        + b"\x48\x89\x0f"  # mov [rdi], rcx
        + b"\x48\x89\x8f\xfd\x0f\x00\x00"  # mov [rdi + 0xffd], rcx: into the next page, too
        + b"\x48\x8b\x1f"  # mov rbx, [rdi]
        + b"\xf0\x48\x01\x0f"  # lock add [rdi], rcx
        + b"\x48\x87\x0f"  # xchg [rdi], rcx
    )
    bare = machine(code + HLT, frame, ring3=ring3)
    bare.run()
    assert (bare.register("RAX"), bare.register("RBX"), bare.register("RCX")) == (ONES, ONES, ONES)
    assert bare.memory.read(PAGE + 0x1000, 5) == b"A" * 5
    assert_untouched(bare)
    assert bare.memory.empty_bus[:4096] == b"\xff" * 4096


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_fetch_meets_an_invalid_instruction(frame: int) -> None:
    bare = machine(mov(RDI, PAGE) + b"\xff\xe7" + HLT, frame)
    bare.memory.words[GUEST_BYTES // 8 :: 512] = PLANTED & ~0xFF | 0xF4
    bare.run()
    assert bare.vector == 6
    assert bare.frame()["rip"] == PAGE


@pytest.mark.parametrize("frame", [GUEST_BYTES + MIB, GUEST_BYTES + 200 * MIB, 1 << 32, (1 << 40) - 4096])
@pytest.mark.parametrize("level", ["directory pointers", "directory", "table"])
def test_a_table_there_is_ones_and_ones_are_reserved_bits(level: str, frame: int) -> None:
    bare = BareMachine(mov(RDI, 1 << 39 | PAGE) + b"\x48\x8b\x07" + HLT)
    # A second way to the same pages; the forged level leads to a copy of the right table in hidden RAM.
    chain = {"directory pointers": (0x90000, PDPT), "directory": (0x91000, DIRECTORY), "table": (0x92000, TABLE)}
    above = PML4 + 8
    for name, (place, original) in chain.items():
        copy = frame if name == level else place
        if copy < GUEST_BYTES:
            bare.memory.write(copy, bare.memory.read(original, 4096))
        elif copy < bare.memory.total_bytes:
            bare.memory.words[copy >> 3 : (copy >> 3) + 512] = bare.memory.words[original >> 3 : (original >> 3) + 512]
        bare.memory.write(above, struct.pack("<Q", copy | 7))
        if copy >= GUEST_BYTES:
            break
        above = copy
    before = bare.memory.words[GUEST_BYTES // 8 :].copy()
    bare.run()
    assert (bare.vector, bare.frame(error=True)["error"], bare.cpu.cr2) == (14, 0x9, 1 << 39 | PAGE)
    assert (bare.memory.words[GUEST_BYTES // 8 :] == before).all(), "not even an accessed bit"


@pytest.mark.parametrize("root", [GUEST_BYTES, GUEST_BYTES + 5 * MIB, 1 << 32, 0xF_FFFF_FFFF_F000])
def test_a_root_there_maps_nothing(root: int) -> None:
    bare = BareMachine(mov(RAX, root) + b"\x0f\x22\xd8" + HLT)  # mov cr3, rax
    if root < bare.memory.total_bytes:
        bare.memory.words[root >> 3 : (root >> 3) + 512] = bare.memory.words[PML4 >> 3 : (PML4 >> 3) + 512]
    with pytest.raises(MachineError, match="triple fault"):
        bare.run()


def test_a_large_page_across_the_end_of_ram_is_ram_below_and_an_empty_bus_above() -> None:
    vaddr = 1 << 39
    code = (
        mov(RDI, vaddr + GUEST_BYTES - 8)
        + mov(RCX, 0x4242424242424242)
        + b"\x48\x89\x0f\x48\x8b\x07"  # mov [rdi], rcx / mov rax, [rdi]
        + b"\x48\x89\x4f\x08\x48\x8b\x5f\x08"  # mov [rdi + 8], rcx / mov rbx, [rdi + 8]
        + b"\x48\x8b\x4f\x04"  # mov rcx, [rdi + 4]
    )
    bare = machine(code + HLT, 0)
    bare.memory.write(PML4 + 8, struct.pack("<Q", 0x91000 | 7))
    bare.memory.write(0x91000, struct.pack("<Q", 0x87))  # 1 GiB from 0 on
    bare.run()
    assert (bare.register("RAX"), bare.register("RBX")) == (0x4242424242424242, ONES)
    assert bare.register("RCX") == 0xFFFFFFFF42424242
    assert_untouched(bare)


@pytest.mark.parametrize("cr4", [0x20 | 1 << 12, 0], ids=["five levels", "no PAE"])
def test_paging_of_another_form_reaches_nothing(cr4: int) -> None:
    """No such kernel is worth running on; ours must not follow its tables."""
    bare = machine(mov(RAX, cr4) + b"\x0f\x22\xe0" + HLT, GUEST_BYTES)
    bare.memory.words[GUEST_BYTES // 8 + 1 :: 512] = GUEST_BYTES | 0x67
    before = bare.memory.words[GUEST_BYTES // 8 :].copy()
    with suppress(MachineError):
        assert not bare.run(1_000_000)
    assert (bare.memory.words[GUEST_BYTES // 8 :] == before).all()


def test_without_paging_addresses_above_ram_are_the_bus() -> None:
    bare = machine(HLT, 0)
    uc = bare.cpu.uc
    code = b"\x8b\x07\x89\x0f\x8b\x1f" + HLT  # mov eax, [edi] / mov [edi], ecx / mov ebx, [edi]
    bare.memory.write(CODE, code)
    uc.reg_write(x86_const.UC_X86_REG_CR0, 0x11)
    bare.cpu.regs[RDI], bare.cpu.regs[RCX] = GUEST_BYTES, 0x5555
    bare.cpu.set_rip(CODE)
    bare.run()
    assert (bare.register("EAX"), bare.register("EBX")) == (0xFFFFFFFF, 0xFFFFFFFF)
    assert_untouched(bare)


def test_the_hidden_part_is_no_memory_of_the_engine() -> None:
    bare = BareMachine()
    regions = [(first, last) for first, last, _rights in bare.cpu.uc.mem_regions()]
    assert regions == [(0, GUEST_BYTES - 1), (1 << 40, (1 << 40) + 0x1FFF)]
    with pytest.raises(MachineError):
        bare.memory.read(GUEST_BYTES, 1)
    with pytest.raises(MachineError):
        bare.memory.write(GUEST_BYTES - 4, b"12345678")


@pytest.mark.parametrize("frame", [GUEST_BYTES, GUEST_BYTES + 200 * MIB, 1 << 44])
def test_python_reads_no_such_page_through_the_guests_tables(frame: int) -> None:
    bare = machine(HLT, frame)
    memory = bare.memory
    with pytest.raises(LookupError):
        memory.read_virtual(PML4, PAGE, 8)
    with pytest.raises(LookupError):
        memory.write_virtual(PML4, PAGE, b"12345678")
    assert memory.word_at(PML4, PAGE) == 0
    assert memory.word_at(frame, PAGE) == 0
    assert memory.read_virtual(PML4, DATA, 8) == bytes(8)
