"""The TLB fill reaches and refuses what the CPU does: Unicorn's own fill, in a second machine, is the judge."""

import random
import struct
from dataclasses import dataclass

import pytest
from tests.support.bare_machine import (
    CODE,
    HANDLERS,
    HLT,
    PML4,
    TABLE,
    USER,
    USER_STACK,
    BareMachine,
    MachineError,
    mov,
)
from thinbox.machine import cpu as cpu_module
from unicorn import x86_const

TABLES, TABLE_COUNT = 0x180000, 24
"""Random tables lie in these frames; their entries lead to one another, to RAM, or have bits that must not be set."""
DATA, DATA_BYTES = 0x1000000, 0x10000
RAX, RDI = 0, 7
ACCESSES = {"load": b"\x48\x8b\x07", "store": b"\x48\x89\x07", "add": b"\x48\x01\x07", "fetch": b"\xff\xe7"}
CONTROLS = {"plain": (0x80050033, 0x20), "no WP": (0x80040033, 0x20), "SMEP": (0x80050033, 1 << 20 | 0x20)}
PROBES = 120
LIMIT_NS = 100_000
"""A jump may land in the tables, whose words are code then."""


@dataclass(frozen=True)
class Outcome:
    vector: int
    error: int
    cr2: int
    rax: int
    tables: bytes
    data: bytes


def random_word(chooser: random.Random, shift: int) -> int:
    frame = TABLES + 4096 * chooser.randrange(TABLE_COUNT)
    if chooser.random() < 0.4:
        frame = DATA + chooser.randrange(DATA_BYTES) & ~0xFFF
    word = frame | chooser.getrandbits(12) & ~0x80 | (chooser.random() < 0.9) | 6 * (chooser.random() < 0.7)
    if chooser.random() < 0.2:
        word |= 0x80
        if chooser.random() < 0.7:
            word = word & ~((1 << shift) - 1) | word & 0xFFF | chooser.getrandbits(1) << 12
    return word | chooser.choice((0,) * 12 + (1 << 63, 1 << 63, 1 << chooser.randrange(52, 63), 1 << 45))


class Fixture:
    """A bare machine whose page tables from PML4[1] on are random."""

    def __init__(self, seed: int) -> None:
        self.bare = BareMachine(b"")
        chooser = random.Random(seed)
        words = {}
        for number in range(TABLE_COUNT):
            # Some tables serve on several levels; this is what is usual on the level it mostly has.
            shift = (30, 21, 12)[number % 3]
            for index in (0, 1, 511):
                words[TABLES + 4096 * number + 8 * index] = random_word(chooser, shift)
        for index in (1, 255, 256, 511):
            words[PML4 + 8 * index] = random_word(chooser, 39)
        for page in set(range(512)) - {USER >> 12, USER_STACK - 1 >> 12}:
            # With SMEP, ring 0 may not execute what ring 3 may.
            words[TABLE + 8 * page] = page << 12 | 3
        for place, word in words.items():
            self.bare.memory.write(place, struct.pack("<Q", word))
        self.bare.memory.write(DATA, b"\xf4" * DATA_BYTES)

    def run(self, access: str, vaddr: int, ring: int, control: str) -> Outcome | None:
        bare, uc = self.bare, self.bare.cpu.uc
        code = mov(RDI, vaddr) + mov(RAX, 0x1111) + ACCESSES[access] + HLT
        uc.ctl_flush_tb()
        bare.memory.write(USER if ring else CODE, code)
        bare._write_descriptors()  # the task register makes its descriptor busy
        bare._enter()
        cr0, cr4 = CONTROLS[control]
        uc.reg_write(x86_const.UC_X86_REG_CR0, cr0)
        uc.reg_write(x86_const.UC_X86_REG_CR4, cr4)
        if ring:
            bare.memory.write(CODE, bare_ring3())
        try:
            bare.run(LIMIT_NS)
        except MachineError as error:
            # What Unicorn itself makes of a fetch from a device.
            assert access == "fetch" and "FETCH" in str(error), error
            return None
        handled = HANDLERS <= bare.cpu.rip < HANDLERS + 4096
        vector = bare.vector if handled else -1
        error = bare.frame(error=True)["error"] if vector in (13, 14) else 0
        read = bare.memory.read
        tables = read(PML4, 4096) + read(TABLES, 4096 * TABLE_COUNT)
        return Outcome(vector, error, bare.cpu.cr2, bare.cpu.regs[RAX], tables, read(DATA, DATA_BYTES))


def bare_ring3() -> bytes:
    from tests.support.bare_machine import CODE3, DATA3, IRETQ, push

    return push(DATA3) + push(USER_STACK) + push(2) + push(CODE3) + push(USER) + IRETQ


def own_fill(cpu: cpu_module.Cpu) -> None:
    """Leave Unicorn's own fill in its place; what is no RAM is a device to it."""
    ram = cpu.memory.guest_bytes
    cpu.uc.mmio_map(
        ram, (1 << 32) - ram, lambda _uc, _at, size, _data: (1 << 8 * size) - 1, None, lambda *_: None, None
    )


@pytest.mark.parametrize("seed", range(4))
def test_an_access_ends_as_with_unicorns_own_fill(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Fixture(seed)
    monkeypatch.setattr(cpu_module, "install_tlb_fill", own_fill)
    judge = Fixture(seed)
    chooser = random.Random(seed + 1000)
    seen: set[int] = set()
    for _ in range(PROBES):
        parts = [chooser.choice((1, 255, 256, 511)), *(chooser.choice((0, 0, 1, 511, 7)) for _ in range(3))]
        vaddr = parts[0] << 39 | parts[1] << 30 | parts[2] << 21 | parts[3] << 12 | chooser.randrange(512) * 8
        if vaddr >> 47 & 1 and chooser.random() < 0.95:
            vaddr |= 0xFFFF << 48
        how = chooser.choice(list(ACCESSES)), vaddr, chooser.choice((0, 3)), chooser.choice(list(CONTROLS))
        expected, found = judge.run(*how), ours.run(*how)
        if expected is None:
            assert found is not None and found.vector == 6, how
            continue
        assert found == expected, how
        seen.add(expected.error << 8 | expected.vector & 0xFF)
    assert len(seen) > 5, sorted(map(hex, seen))
