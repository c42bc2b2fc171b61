"""The compiled questions of a fault, interpreted: with undo, at user addresses, and which rows are no grants."""

import numpy as np
import pytest
from tests.isolation.test_pagetable import DATA_4K, KERNEL_ROOT, NX, POOL_FIRST, RAM_END, TEXT_2M, Kernel
from thinbox import paging
from thinbox.isolation import fault

USER_PLACE = 0x7000_0000
READ, WRITE, FETCH = 0, paging.FAULT_WRITE, paging.FAULT_FETCH
PRESENT, WRITABLE, USER = paging.PRESENT, paging.WRITABLE, paging.USER


@pytest.mark.parametrize(
    ("flags", "error", "answer"),
    [
        (0, READ, fault.GUEST),
        (PRESENT | USER, READ, fault.USER_PAGE),
        (PRESENT | USER, WRITE, fault.GUEST),
        (PRESENT | USER | WRITABLE, WRITE, fault.USER_PAGE),
        (PRESENT | USER | WRITABLE | NX, READ, fault.USER_PAGE),
        (PRESENT | USER | WRITABLE | NX, FETCH, fault.GUEST),
        (PRESENT | USER, FETCH, fault.ASK),
    ],
)
def test_whose_fault_at_a_user_address_it_is_where_its_half_is_mapped_on_demand(flags, error, answer):
    kernel = Kernel()
    # Its upper tables allow all that it may allow itself.
    kernel.put(USER_PLACE, 0x9000 | flags, 12)
    for index in range(len(kernel.words[: kernel.next // 8])):
        if kernel.words[index] & 0xFFF == 0x63:
            kernel.words[index] |= USER
    assert fault.classify_user(kernel.words, POOL_FIRST, KERNEL_ROOT, USER_PLACE, error) == answer


def granted(kernel, vaddr, error, undo):
    kernel.row = [0] * fault.LOG_COLUMNS
    status = fault.grant(
        kernel.words, POOL_FIRST, RAM_END, kernel.pool, kernel.root, KERNEL_ROOT, vaddr, error, 0x77, kernel.row, undo
    )
    return status, kernel.mapped().get(vaddr & ~0xFFF)


def test_a_grant_fills_the_whole_row():
    kernel = Kernel()
    _status, entry = granted(kernel, DATA_4K + 0x10, WRITE, 0)
    vaddr, rip, error, index, replaced = kernel.row
    assert (vaddr, rip, error, replaced) == (DATA_4K + 0x10, 0x77, WRITE, 0)
    assert kernel.words[index] == entry
    granted(kernel, DATA_4K, READ, 0)
    assert kernel.row[fault.LOG_REPLACED] == entry


def test_what_the_kernel_does_not_map_is_not_granted():
    kernel = Kernel()
    status, entry = granted(kernel, DATA_4K + 0x1000, READ, 0)
    assert (status, entry, kernel.row) == (fault.GUEST, None, [0] * fault.LOG_COLUMNS)
    assert kernel.mapped() == {}


@pytest.mark.parametrize("undo", [0, 1])
def test_with_undo_a_page_is_read_only_until_it_is_written_and_stays_writable_then(undo):
    kernel = Kernel()
    for error in (READ, WRITE, READ):
        status, entry = granted(kernel, DATA_4K, error, undo)
        assert status == fault.GRANTED
        assert bool(entry & WRITABLE) == (not undo or error == WRITE or kernel.row[fault.LOG_REPLACED] & WRITABLE != 0)
    assert entry & WRITABLE
    assert entry & NX


def test_with_undo_a_fetch_is_read_only_too():
    _status, entry = granted(Kernel(), TEXT_2M, FETCH, 1)
    assert not entry & WRITABLE and not entry & NX


@pytest.mark.parametrize(
    ("mapped", "other_frame", "error", "upgrade"),
    [
        (True, False, WRITE, True),
        (True, False, READ, False),
        (True, False, WRITE | paging.FAULT_PRESENT, True),
        (False, False, WRITE, False),
        (True, True, WRITE, False),
    ],
)
def test_the_first_write_to_what_was_granted_read_only_is_told_from_others(mapped, other_frame, error, upgrade):
    kernel = Kernel()
    if mapped:
        granted(kernel, DATA_4K, READ, 1)
        if other_frame:
            kernel.words[kernel.row[fault.LOG_INDEX]] += 0x1000
    found = fault.is_write_upgrade(kernel.words, POOL_FIRST, RAM_END, kernel.root, KERNEL_ROOT, DATA_4K, error)
    assert found is upgrade


def test_an_entry_that_was_taken_back_is_no_upgrade():
    kernel = Kernel()
    granted(kernel, DATA_4K, READ, 1)
    kernel.words[kernel.row[fault.LOG_INDEX]] &= ~PRESENT
    assert not fault.is_write_upgrade(kernel.words, POOL_FIRST, RAM_END, kernel.root, KERNEL_ROOT, DATA_4K, WRITE)


@pytest.mark.parametrize(
    ("cacheable", "flags", "asked"),
    [(1, 0, False), (0, 0, True), (1, USER, True)],
)
def test_data_is_asked_about_unless_the_policy_grants_it_all_and_it_is_the_kernels(cacheable, flags, asked):
    kernel = Kernel()
    kernel.put(DATA_4K, 0x5000 | 0x163 | NX | flags, 12)
    for index in range(len(kernel.words[: kernel.next // 8])):
        if kernel.words[index] & 0xFFF == 0x63:
            kernel.words[index] |= USER
    for error in (READ, WRITE):
        found = fault.needs_judgement(kernel.words, POOL_FIRST, KERNEL_ROOT, [0] * 4, 3, cacheable, DATA_4K, error)
        assert found is asked


def test_a_fetch_is_asked_about_whatever_is_granted_of_data():
    kernel = Kernel()
    assert fault.needs_judgement(kernel.words, POOL_FIRST, KERNEL_ROOT, [0] * 4, 3, 1, TEXT_2M, FETCH)


@pytest.mark.parametrize(
    ("error", "replaced", "aside"),
    [
        (READ, 0, False),
        (WRITE, 0, False),
        (FETCH, 0, False),
        (READ | fault.LOG_PREFAULT, 0, True),
        (FETCH | fault.LOG_PREFAULT, 0, True),
        (WRITE | fault.LOG_ASIDE, 0, True),
        (WRITE, 0x5000 | PRESENT, True),
        (READ, 0x5000 | PRESENT, False),
        (WRITE, 0x5000, False),
    ],
)
def test_rows_that_are_no_grants_of_the_policy_are_told_alike_one_by_one_and_together(error, replaced, aside):
    row = [DATA_4K, 0, error, 0, replaced]
    assert fault.is_row_aside(row) is aside
    assert fault.is_aside(np.array([row, row], dtype=np.int64)).tolist() == [aside, aside]


def test_a_user_address_is_never_judged_and_synced_only_where_the_kernels_table_is_newer():
    kernel = Kernel()
    kernel.words[KERNEL_ROOT // 8 + 255] = kernel.words[kernel.root // 8 + 255] = 0x7000 | 0x67
    assert kernel.classify(255 << 39) == fault.GUEST
    kernel.words[kernel.root // 8 + 255] = 0
    assert kernel.classify(255 << 39) == fault.SYNC
    # Beyond the user half lies nothing: an address that is not canonical.
    kernel.words[KERNEL_ROOT // 8 + 256] = 0x7000 | 0x67
    assert kernel.classify(256 << 39) == fault.GUEST
