"""The SCI table on plain lists: no kernel, no engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thinbox import paging
from thinbox.isolation import fault, pagetable

RAM_BYTES = 1 << 20
KERNEL_ROOT = 0x1000
POOL_FIRST = 0x80000
POOL_FRAMES = 64
RAM_END = RAM_BYTES
TEXT_2M = -0x7F000000 & ~0x1FFFFF
DATA_1G = -(1 << 39)
DATA_4K = -0x100000000000
NX = paging.NO_EXECUTE


class Kernel:
    """A kernel table with one 4 KiB, one 2 MiB and one 1 GiB mapping, and an empty SCI table."""

    def __init__(self):
        self.words = [0] * (RAM_BYTES // 8)
        self.pool = [POOL_FRAMES] + [POOL_FIRST + 4096 * (POOL_FRAMES - 1 - i) for i in range(POOL_FRAMES)]
        self.next = 0x2000
        self.put(DATA_4K, 0x5000 | 0x163 | NX, 12)
        self.put(TEXT_2M, 0x200000 | 0x1E1, 21)
        self.put(DATA_1G, 0x40000000 | 0x1E3 | NX, 30)
        self.root = pagetable.take_frame(self.words, self.pool)

    def put(self, vaddr, entry, leaf_shift):
        table, shift = KERNEL_ROOT, 39
        while shift > leaf_shift:
            index = table // 8 + (vaddr >> shift & 511)
            if not self.words[index]:
                self.words[index] = self.next | 0x63
                self.next += 0x1000
            table = self.words[index] & paging.FRAME_MASK
            shift -= 9
        self.words[table // 8 + (vaddr >> shift & 511)] = entry

    def mapped(self, root=None):
        """Every page of the kernel half: address -> entry."""
        found = {}
        self.walk(self.root if root is None else root, 39, 0, found)
        return found

    def walk(self, table, shift, vaddr, found):
        first = 256 if shift == 39 else 0
        for i in range(first, 512):
            entry = self.words[table // 8 + i]
            if not entry & 1:
                continue
            here = vaddr | i << shift
            if shift == 12:
                found[here - (1 << 48)] = entry
            else:
                self.walk(entry & paging.FRAME_MASK, shift - 9, here, found)

    def grant(self, vaddr, error=0):
        self.row = [0] * fault.LOG_COLUMNS
        return fault.grant(
            self.words, POOL_FIRST, RAM_END, self.pool, self.root, KERNEL_ROOT, vaddr, error, 0, self.row, 0
        )

    def classify(self, vaddr, error=0):
        return fault.classify(self.words, POOL_FIRST, self.root, KERNEL_ROOT, vaddr, error)


@pytest.mark.parametrize(
    ("vaddr", "frame"),
    [
        (DATA_4K + 0x10, 0x5000),
        (TEXT_2M + 0x3456, 0x203000),
        (DATA_1G + 0x12345678, 0x40000000 + 0x12345000),
    ],
)
def test_a_grant_adds_exactly_one_page_also_out_of_a_large_one(vaddr, frame):
    kernel = Kernel()
    assert kernel.grant(vaddr) == fault.GRANTED
    mapped = kernel.mapped()
    assert list(mapped) == [vaddr & ~0xFFF]
    assert mapped[vaddr & ~0xFFF] & paging.FRAME_MASK == frame


def test_the_clone_has_the_kernels_protection_and_never_more():
    kernel = Kernel()
    kernel.grant(DATA_4K)
    kernel.grant(TEXT_2M, paging.FAULT_FETCH)
    mapped = kernel.mapped()
    assert mapped[DATA_4K] & paging.WRITABLE
    assert mapped[DATA_4K] & NX
    assert not mapped[TEXT_2M] & paging.WRITABLE
    assert not mapped[TEXT_2M] & NX
    assert not any(entry & paging.USER for entry in mapped.values())


def test_a_data_grant_of_text_is_not_executable():
    kernel = Kernel()
    kernel.grant(TEXT_2M + 0x1000)
    assert kernel.mapped()[TEXT_2M + 0x1000] & NX
    kernel.grant(TEXT_2M + 0x1000, paging.FAULT_FETCH)
    assert not kernel.mapped()[TEXT_2M + 0x1000] & NX
    kernel.grant(TEXT_2M + 0x1000)
    assert not kernel.mapped()[TEXT_2M + 0x1000] & NX, "data access must not take a judged fetch back"


def test_whose_fault_it_is():
    kernel = Kernel()
    assert kernel.classify(DATA_4K, paging.FAULT_WRITE) == fault.ASK
    assert kernel.classify(DATA_4K + 0x1000) == fault.GUEST, "absent in the kernel's table too"
    assert kernel.classify(TEXT_2M, paging.FAULT_WRITE) == fault.GUEST, "read-only in the kernel's table too"
    assert kernel.classify(DATA_4K, paging.FAULT_FETCH) == fault.GUEST, "not executable in the kernel's table too"
    assert kernel.classify(0x1000) == fault.GUEST, "a user address"
    kernel.words[KERNEL_ROOT // 8] = 0x7000 | 0x67
    assert kernel.classify(0x1000) == fault.SYNC, "a top-level entry the kernel made since"


def test_no_table_page_is_shared_and_all_are_freed():
    kernel = Kernel()
    before = kernel.pool[0]
    for vaddr in (DATA_4K, TEXT_2M, DATA_1G, DATA_1G + (5 << 21)):
        kernel.grant(vaddr)
    used = before - kernel.pool[0]
    assert used == 3 + 3 + 2 + 1, "three levels each for two regions; the third shares a PDPT; one more last level"
    assert pagetable.free_table(kernel.words, POOL_FIRST, RAM_END, kernel.pool, kernel.root) == used + 1
    assert sorted(kernel.pool[1 : POOL_FRAMES + 1]) == [POOL_FIRST + 4096 * i for i in range(POOL_FRAMES)]


def test_an_empty_pool_is_said_and_maps_nothing():
    kernel = Kernel()
    kernel.pool[0] = 2
    assert kernel.grant(DATA_4K) == fault.EXHAUSTED
    assert kernel.mapped() == {}


@given(
    st.lists(st.sampled_from([DATA_4K, TEXT_2M, TEXT_2M + 0x5000, DATA_1G, DATA_1G + 0x7000]), max_size=20), st.data()
)
def test_forgetting_leaves_nothing_mapped(vaddrs, data):
    kernel = Kernel()
    indexes = []
    for vaddr in vaddrs:
        error = (
            paging.FAULT_FETCH if vaddr < TEXT_2M + (1 << 21) and vaddr >= TEXT_2M and data.draw(st.booleans()) else 0
        )
        assert kernel.grant(vaddr, error) == fault.GRANTED
        indexes.append(kernel.row[fault.LOG_INDEX])
    assert set(kernel.mapped()) == set(vaddrs)
    for index in indexes:
        kernel.words[index] = 0
    assert kernel.mapped() == {}


@given(st.lists(st.integers(-(1 << 63), -1), min_size=1, max_size=200, unique=True))
def test_the_approved_table_finds_what_was_put_in_and_nothing_else(vaddrs):
    mask = 511
    table = [0] * (mask + 1)
    for vaddr in vaddrs[::2]:
        table[fault.approved_slot(table, mask, vaddr)] = vaddr
    for number, vaddr in enumerate(vaddrs):
        asked = fault.needs_judgement([0] * 512, 0, 0, table, mask, 1, vaddr, paging.FAULT_FETCH)
        assert asked == bool(number % 2)


@pytest.mark.parametrize("forged", [0, 0x5000, POOL_FIRST - 0x1000, RAM_END, 1 << 40, paging.FRAME_MASK])
@pytest.mark.parametrize("level", range(3))
def test_a_forged_word_is_neither_followed_nor_freed(level, forged):
    kernel = Kernel()
    kernel.grant(DATA_4K)
    table = kernel.root
    for shift in (39, 30, 21)[:level]:
        table = kernel.words[table // 8 + (DATA_4K >> shift & 511)] & paging.FRAME_MASK
    kernel.words[table // 8 + (DATA_4K >> 39 - 9 * level & 511)] = forged | 0x67
    before, free = kernel.words.copy(), kernel.pool[0]
    map_page = pagetable.map_page
    assert map_page(kernel.words, POOL_FIRST, RAM_END, kernel.pool, kernel.root, DATA_4K, 0x5067) == -1
    assert kernel.words == before
    freed = pagetable.free_table(kernel.words, POOL_FIRST, RAM_END, kernel.pool, kernel.root)
    assert freed == level + 1 == kernel.pool[0] - free
    assert all(POOL_FIRST <= frame < RAM_END for frame in kernel.pool[1 : 1 + kernel.pool[0]])


def test_a_frame_is_freed_once():
    kernel = Kernel()
    kernel.grant(DATA_4K)
    kernel.grant(TEXT_2M, paging.FAULT_FETCH)
    top = kernel.root // 8
    kernel.words[top + 300] = kernel.words[top + (DATA_4K >> 39 & 511)]  # the same tables twice
    pagetable.free_table(kernel.words, POOL_FIRST, RAM_END, kernel.pool, kernel.root)
    assert pagetable.free_table(kernel.words, POOL_FIRST, RAM_END, kernel.pool, kernel.root) == 0
    free = kernel.pool[1 : 1 + kernel.pool[0]]
    assert len(set(free)) == len(free) == POOL_FRAMES


@pytest.mark.parametrize("root", [RAM_END, POOL_FIRST, 1 << 40, paging.FRAME_MASK, -4096])
def test_a_kernel_root_outside_ram_is_the_guests_own_fault(root):
    kernel = Kernel()
    for vaddr in (0x1000, DATA_4K):
        assert fault.classify(kernel.words, POOL_FIRST, kernel.root, root, vaddr, 0) == fault.GUEST
        assert fault.classify_user(kernel.words, POOL_FIRST, root, vaddr, 0) == fault.GUEST
    kernel.words[kernel.root // 8] = 0x5067
    pagetable.sync_user_half(kernel.words, POOL_FIRST, kernel.root, root)
    assert not any(kernel.words[kernel.root // 8 : kernel.root // 8 + 256])


def test_a_copied_entry_that_the_cpu_marked_is_not_copied_again_for_ever():
    kernel = Kernel()
    kernel.words[KERNEL_ROOT // 8] = 0x5007
    pagetable.sync_user_half(kernel.words, POOL_FIRST, kernel.root, KERNEL_ROOT)
    kernel.words[kernel.root // 8] |= paging.ACCESSED
    assert kernel.classify(0x1000) == fault.GUEST


def test_executable_is_a_page_that_is_mapped_and_not_marked_otherwise():
    kernel = Kernel()
    kernel.grant(DATA_4K)
    kernel.grant(TEXT_2M, paging.FAULT_FETCH)
    place = (kernel.words, RAM_END, kernel.root)
    assert pagetable.is_executable(*place, TEXT_2M)
    assert not pagetable.is_executable(*place, DATA_4K)
    assert not pagetable.is_executable(*place, TEXT_2M + 0x1000)
    assert not pagetable.is_executable(*place, DATA_1G)
