"""The undo log on plain lists: a page is saved once, whole, or the log is lost."""

import pytest
from tests.isolation.test_pagetable import DATA_1G, DATA_4K, KERNEL_ROOT, RAM_END, TEXT_2M, Kernel
from thinbox.isolation.undo import FULL, LOG_COLUMNS, LOG_COPY, LOG_PAGE, next_unmarked, save_page
from thinbox.paging import ACCESSED, DIRTY, FRAME_MASK

POOL = [3, 0x80000, 0x81000, 0x82000]
CAPACITY = 8


class Log:
    def __init__(self):
        self.words = [number * 7 + 1 for number in range(0x90000 // 8)]
        self.pool, self.log, self.saved, self.count = list(POOL), [0] * LOG_COLUMNS * CAPACITY, [0] * 8, 0
        self.capacity = CAPACITY

    def save(self, paddr):
        found = save_page(self.words, self.pool, self.log, self.capacity, self.saved, self.count, paddr)
        if found != FULL:
            self.count = found
        return found


def test_a_page_is_copied_whole_before_its_first_write_and_once():
    log = Log()
    before = log.words[0x5000 // 8 : 0x6000 // 8]
    around = log.words[0x81FF8 // 8], log.words[0x83000 // 8]
    assert log.save(0x5000) == 1
    assert (log.log[LOG_PAGE], log.log[LOG_COPY]) == (0x5000, 0x82000)
    assert log.words[0x82000 // 8 : 0x83000 // 8] == before
    assert (log.words[0x81FF8 // 8], log.words[0x83000 // 8]) == around
    log.words[0x5000 // 8] = 0
    assert log.save(0x5000) == 1
    assert log.words[0x82000 // 8] == before[0]
    assert log.pool[0] == 2


def test_each_page_has_a_bit_of_its_own():
    log = Log()
    for count, page in enumerate((1, 2, 33), 1):
        assert log.save(page << 12) == count
    assert log.saved[:3] == [1 << 1 | 1 << 2, 1 << 1, 0]
    assert [log.log[LOG_COLUMNS * n + LOG_PAGE] for n in range(3)] == [0x1000, 0x2000, 33 << 12]
    assert [log.log[LOG_COLUMNS * n + LOG_COPY] for n in range(3)] == [0x82000, 0x81000, 0x80000]


@pytest.mark.parametrize("limit", ["frames", "rows"])
def test_without_room_the_log_is_lost_and_nothing_is_half_saved(limit):
    log = Log()
    if limit == "rows":
        log.capacity = 3
        log.pool = [4, 0x7F000, *POOL[1:]]
    for page in (1, 2, 3):
        log.save(page << 12)
    state = list(log.words), list(log.pool), list(log.saved), list(log.log)
    assert log.save(4 << 12) == FULL
    assert (log.words, log.pool, log.saved, log.log) == state
    # What is saved already needs none.
    assert log.save(3 << 12) == 3


@pytest.mark.parametrize("vaddr", [DATA_4K, TEXT_2M + 0x3000, DATA_1G + (5 << 21)])
@pytest.mark.parametrize("write", [0, 1])
def test_the_levels_the_cpu_would_mark_are_found_from_the_top_and_the_last_is_told(vaddr, write):
    kernel = Kernel()
    levels = {DATA_4K: 4, TEXT_2M + 0x3000: 3, DATA_1G + (5 << 21): 2}[vaddr]
    table, shift, entries = KERNEL_ROOT, 39, []
    for _ in range(levels):
        index = table // 8 + (vaddr >> shift & 511)
        entries.append(index)
        kernel.words[index] &= ~(ACCESSED | DIRTY)
        table, shift = kernel.words[index] & FRAME_MASK, shift - 9
    ask = lambda: next_unmarked(kernel.words, RAM_END, KERNEL_ROOT, vaddr, write)
    for level, index in enumerate(entries):
        is_last = level == levels - 1
        assert ask() == 2 * index + is_last
        kernel.words[index] |= ACCESSED
        if is_last and write:
            assert ask() == 2 * index + 1, "a write marks the last level dirty too"
            kernel.words[index] |= DIRTY
    assert ask() == -1


def test_where_nothing_is_mapped_nothing_is_marked():
    kernel = Kernel()
    assert next_unmarked(kernel.words, RAM_END, KERNEL_ROOT, DATA_4K + 0x1000, 1) == -1
    assert next_unmarked(kernel.words, RAM_END, KERNEL_ROOT, 0x1000, 0) == -1
    # A table outside of memory, as a hostile guest may name: the last that fits is looked at, the next is none.
    for frame, wanted in ((RAM_END - 0x1000, -1), (RAM_END, -1), (RAM_END - 0x800, None)):
        kernel.words[KERNEL_ROOT // 8] = frame | 0x63
        if wanted is not None:
            assert next_unmarked(kernel.words, RAM_END, KERNEL_ROOT, 0x1000, 0) == wanted
    kernel.words[KERNEL_ROOT // 8] = RAM_END - 0x1000 | 0x63
    kernel.words[(RAM_END - 0x1000) // 8] = 0x9000 | 0x43
    assert next_unmarked(kernel.words, RAM_END, KERNEL_ROOT, 0x1000, 0) == 2 * ((RAM_END - 0x1000) // 8)
