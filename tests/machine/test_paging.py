"""`paging` reads tables as the CPU does: Unicorn's own soft-MMU, in a second CPU on the same RAM, is the judge."""

import random
import struct

import pytest
import unicorn
from unicorn import x86_const

from thinbox import paging
from thinbox.address import to_signed
from thinbox.machine.memory import Memory

MIB = 1 << 20
RAM_MIB = 96
ROOT = 0x1000
CODE_VADDR = 0xFFFF_FFFF_FFFF_F000
CODE_TABLES = (0x2000, 0x3000, 0x4000)
CODE_PADDR = 0x5000
FIRST_FREE = 0x10000
TABLES_END = 0x200000

PRESENT, WRITABLE, USER, LARGE, NX = paging.PRESENT, paging.WRITABLE, paging.USER, paging.LARGE, 1 << 63


class Judge:
    """A CPU of its own that executes one load, store or call, and tells what address it reached."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.uc = uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_QEMU64)
        uc.ctl_exits_enabled(True)
        uc.mem_map_ptr(0, memory.guest_bytes, unicorn.UC_PROT_ALL, memory.pointer())
        uc.mmio_map(memory.guest_bytes, (1 << 40) - memory.guest_bytes, lambda *_: 0, None, lambda *_: None, None)
        uc.hook_add(unicorn.UC_HOOK_INTR, self._fault)
        uc.msr_write(0xC0000080, 0xD01)  # SCE, LME, LMA, NXE
        uc.reg_write(x86_const.UC_X86_REG_CR4, 0x20)
        uc.reg_write(x86_const.UC_X86_REG_CR3, ROOT)
        uc.reg_write(x86_const.UC_X86_REG_CR0, 0x80050033)
        self.context = uc.context_save()
        self.faulted = False

    def _fault(self, uc: unicorn.Uc, vector: int, _data: object) -> None:
        self.faulted = True
        uc.emu_stop()

    def run(self, code: bytes, vaddr: int) -> int | None:
        """Run `code` (then hlt) with RDI = vaddr; return RAX, None after a fault."""
        self.memory.write(CODE_PADDR, code + b"\xf4")
        self.uc.context_restore(self.context)
        self.uc.ctl_flush_tb()
        self.uc.reg_write(x86_const.UC_X86_REG_CR3, ROOT)
        self.uc.reg_write(x86_const.UC_X86_REG_RDI, vaddr)
        self.faulted = False
        try:
            self.uc.emu_start(CODE_VADDR, 0)
        except unicorn.UcError:
            self.faulted = True
        return None if self.faulted else int(self.uc.reg_read(x86_const.UC_X86_REG_RAX))

    def load(self, vaddr: int) -> int | None:
        return self.run(b"\x48\x8b\x07", vaddr)  # mov rax, [rdi]

    def may_store(self, vaddr: int) -> bool:
        return self.run(b"\x48\x8b\x07\x48\x89\x07", vaddr) is not None  # mov rax, [rdi] / mov [rdi], rax

    def may_fetch(self, vaddr: int) -> bool:
        # mov byte [rdi], 0xf4 is no option on a read-only page: the caller put a `hlt` there.
        return self.run(b"\xff\xe7", vaddr) is not None  # jmp rdi


class Tables:
    """Random tables below TABLES_END; every 4 KiB page of RAM above holds its own physical address in each word."""

    def __init__(self, memory: Memory, seed: int) -> None:
        self.memory, self.random = memory, random.Random(seed)
        self.next_free = FIRST_FREE
        self.places: list[int] = []
        memory.clear()
        self._code()
        self._fill(ROOT, 39, 0, range(0, 511))

    def _code(self) -> None:
        above = ROOT
        for table in (*CODE_TABLES, CODE_PADDR):
            self.memory.write(above + 8 * 511, struct.pack("<Q", table | 3))
            above = table

    def _flags(self) -> int:
        # PCD, PWT, A, D, G and the ignored bits 9 to 11 must change nothing.
        chance = self.random.random
        flags = PRESENT if chance() < 0.9 else 0
        flags |= (WRITABLE if chance() < 0.7 else 0) | (USER if chance() < 0.5 else 0)
        flags |= NX if chance() < 0.3 else 0
        return flags | self.random.getrandbits(3) << 9 | self.random.getrandbits(2) << 3

    def _fill(self, table: int, shift: int, base: int, indexes: range) -> None:
        for index in self.random.sample(indexes, 6 if shift == 39 else 5):
            vaddr = base | index << shift
            flags = self._flags()
            large = shift in (30, 21) and self.random.random() < 0.3
            if shift == 12 or large:
                pat = self.random.getrandbits(1) << 12 if large else 0
                size = 1 << shift
                first = 0 if shift == 30 else self.random.randrange(TABLES_END >> shift or 1, RAM_MIB * MIB >> shift)
                entry = first * size | flags | pat | (LARGE if large else 0)
                for _ in range(4):
                    self.places.append(vaddr | self.random.randrange(size) & ~7)
            else:
                below, self.next_free = self.next_free, self.next_free + 4096
                assert self.next_free <= TABLES_END
                if shift > 12:
                    self._fill(below, shift - 9, vaddr, range(512))
                entry = below | flags
                self.places.append(vaddr | self.random.randrange(1 << shift) & ~7)
            self.memory.write(table + 8 * index, struct.pack("<Q", entry))


def canonical(vaddr: int) -> int:
    return vaddr | 0xFFFF << 48 if vaddr >> 47 & 1 else vaddr


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory(RAM_MIB * MIB)


@pytest.mark.parametrize("seed", range(4))
def test_walks_agree_with_the_cpu(memory: Memory, seed: int) -> None:
    tables = Tables(memory, seed)
    judge = Judge(memory)
    end = memory.guest_bytes
    seen = {"absent": 0, "read": 0, "stored": 0, "read-only": 0, "fetched": 0, "not fetched": 0, "outside": 0}
    for place in tables.random.sample(tables.places, min(len(tables.places), 500)):
        vaddr = canonical(place)
        leaf = paging.walk_leaf(memory.words, end, ROOT, to_signed(vaddr))
        paddr = paging.translate(memory.words, end, ROOT, to_signed(vaddr))
        if leaf == 0:
            assert paddr == -1
            assert judge.load(vaddr) is None, hex(vaddr)
            seen["absent"] += 1
            continue
        if (leaf & paging.FRAME_MASK) + 4096 > end:
            assert paddr == -1
            assert judge.load(vaddr) == 0, "an address without RAM is a device's, not a fault"
            seen["outside"] += 1
            continue
        assert paddr == leaf & paging.FRAME_MASK | vaddr & 0xFFF
        if paddr < TABLES_END:
            continue
        mark = tables.random.getrandbits(63) << 8 | 0xF4
        memory.write(paddr, struct.pack("<Q", mark & (1 << 64) - 1))
        assert judge.load(vaddr) == mark & (1 << 64) - 1, hex(vaddr)
        seen["read"] += 1
        may_store = bool(leaf & WRITABLE)
        assert judge.may_store(vaddr) == may_store, hex(vaddr)
        seen["stored" if may_store else "read-only"] += 1
        may_fetch = leaf >= 0
        assert judge.may_fetch(vaddr) == may_fetch, hex(vaddr)
        seen["fetched" if may_fetch else "not fetched"] += 1
    assert all(seen[kind] for kind in seen if kind != "outside"), seen


def chain(memory: Memory, flags: tuple[int, int, int, int], *, leaf_shift: int = 12) -> int:
    """Map vaddr 0x8080604000 through four tables with these flags; return it."""
    vaddr = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12
    memory.clear()
    table = ROOT
    for level, shift in enumerate((39, 30, 21, 12)):
        last = shift == leaf_shift
        target = (0x4000_0000 if shift == 30 else 0x40_0000 if shift == 21 else 0x7000) if last else table + 0x1000
        entry = target | flags[level] | (LARGE if last and shift > 12 else 0)
        memory.write(table + 8 * (vaddr >> shift & 511), struct.pack("<Q", entry))
        if last:
            break
        table += 0x1000
    return vaddr


@pytest.mark.parametrize("level", range(4))
def test_a_right_that_one_level_lacks_is_lacking(memory: Memory, level: int) -> None:
    for bit in (WRITABLE, USER):
        flags = [7] * 4
        flags[level] = 7 & ~bit
        vaddr = chain(memory, tuple(flags))
        assert paging.walk_leaf(memory.words, memory.guest_bytes, ROOT, vaddr) & 7 == 7 & ~bit


@pytest.mark.parametrize("level", range(4))
def test_no_execute_on_one_level_is_no_execute(memory: Memory, level: int) -> None:
    flags = [7] * 4
    assert paging.walk_leaf(memory.words, memory.guest_bytes, ROOT, chain(memory, tuple(flags))) > 0
    flags[level] |= NX
    assert paging.walk_leaf(memory.words, memory.guest_bytes, ROOT, chain(memory, tuple(flags))) < 0


@pytest.mark.parametrize("level", range(4))
def test_an_entry_that_is_not_present_ends_the_walk(memory: Memory, level: int) -> None:
    flags = [7] * 4
    flags[level] = 6
    vaddr = chain(memory, tuple(flags))
    assert paging.walk_leaf(memory.words, memory.guest_bytes, ROOT, vaddr) == 0
    assert paging.translate(memory.words, memory.guest_bytes, ROOT, vaddr) == -1


@pytest.mark.parametrize(("shift", "frame"), [(30, 0x4000_0000), (21, 0x40_0000)])
def test_a_page_in_a_large_mapping_gives_the_small_entry_that_maps_it_alike(
    memory: Memory, shift: int, frame: int
) -> None:
    flags = (7, 7, 7 | paging.PAT_LARGE if shift == 21 else 7, 0)
    if shift == 30:
        flags = (7, 7 | paging.PAT_LARGE, 0, 0)
    vaddr = chain(memory, flags, leaf_shift=shift)
    inside = 0x5_3000 if shift == 21 else 0x1235_3000
    base = vaddr >> shift << shift
    leaf = paging.walk_leaf(memory.words, memory.guest_bytes, ROOT, base + inside)
    assert leaf & paging.FRAME_MASK == frame + inside
    assert leaf & paging.PAT_4K, "the PAT bit moves from bit 12 to bit 7"
    assert leaf & 7 == 7


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("beyond", [0, 4096, 1 << 39, None])
def test_a_table_outside_ram_is_absent(memory: Memory, level: int, beyond: int | None) -> None:
    vaddr = chain(memory, (7, 7, 7, 7))
    target = paging.FRAME_MASK if beyond is None else memory.guest_bytes + beyond
    shift = 39 - 9 * level
    memory.write(ROOT + 0x1000 * level + 8 * (vaddr >> shift & 511), struct.pack("<Q", target | 7))
    before = memory.read(0, 0x10000)
    for function in (paging.walk_leaf, paging.entry_index):
        assert function(memory.words, memory.guest_bytes, ROOT, vaddr) in (0, -1)
    assert paging.translate(memory.words, memory.guest_bytes, ROOT, vaddr) == -1
    paging.mark_written(memory.words, memory.guest_bytes, ROOT, vaddr)
    after = memory.read(0, 0x10000)
    changed = [i for i in range(0, 0x10000, 8) if before[i : i + 8] != after[i : i + 8]]
    assert all(ROOT <= i < ROOT + 0x1000 * (level + 1) for i in changed)


def test_a_root_outside_ram_is_absent(memory: Memory) -> None:
    for root in (memory.guest_bytes, memory.guest_bytes - 4095 + 4096, paging.FRAME_MASK, -4096):
        assert paging.translate(memory.words, memory.guest_bytes, root, 0) == -1
        assert paging.entry_index(memory.words, memory.guest_bytes, root, 0) == -1


def test_the_low_bits_of_cr3_are_no_part_of_the_root(memory: Memory) -> None:
    vaddr = chain(memory, (7, 7, 7, 7))
    assert paging.translate(memory.words, memory.guest_bytes, ROOT | 0xFFF, vaddr) == 0x7000
    assert paging.translate(memory.words, memory.guest_bytes, to_signed(ROOT | 1 << 63), vaddr) == 0x7000


def test_marking_sets_accessed_everywhere_and_dirty_on_the_leaf_only(memory: Memory) -> None:
    vaddr = chain(memory, (7, 7, 7, 7))
    paging.mark_written(memory.words, memory.guest_bytes, ROOT, vaddr)
    entries = [
        struct.unpack("<Q", memory.read(ROOT + 0x1000 * level + 8 * (vaddr >> 39 - 9 * level & 511), 8))[0]
        for level in range(4)
    ]
    assert [entry & 0x60 for entry in entries] == [0x20, 0x20, 0x20, 0x60]


def test_entry_index_finds_the_slot_even_when_it_is_empty(memory: Memory) -> None:
    vaddr = chain(memory, (7, 7, 7, 0))
    assert paging.entry_index(memory.words, memory.guest_bytes, ROOT, vaddr) == ROOT + 0x3000 + 8 * 4 >> 3
    assert paging.entry_index(memory.words, memory.guest_bytes, ROOT, vaddr + (1 << 21)) == -1


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_table_that_lies_in_a_sealed_page_is_none_and_is_not_marked(is_sealed):
    """Of four tables, one a page, the third lies where nothing may be written (rule W1)."""
    words, end = [0] * (5 * 512), 5 * 4096
    for level in range(4):
        words[512 * level] = 4096 * (level + 1) | paging.PRESENT | paging.WRITABLE | paging.USER
    seals, place = [0, 0, int(is_sealed), 0, 0], [0]
    found = paging.walk_access(words, 0, end, 0, end, 0, 0, place, seals, True)
    assert (found == paging.IS_RESERVED) == is_sealed
    assert bool(words[2 * 512] & paging.ACCESSED) != is_sealed
    assert words[512] & paging.ACCESSED
