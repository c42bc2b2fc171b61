"""The life of an SCI table, without a guest: made of the baseline, counted, freed, none leaked."""

import pytest
from tests.support.fake_target import KERNEL_ROOT, STACK_BYTES, FakeGuest

from thinbox import paging
from thinbox.address import to_signed
from thinbox.enforcement.tables import Tables
from thinbox.enforcement.undo import RESERVED_BYTES
from thinbox.isolation import pagetable
from thinbox.machine import slots
from thinbox.machine.memory import HIDDEN_BYTES

FLAGS = paging.PRESENT | paging.WRITABLE | paging.ACCESSED | paging.DIRTY | paging.NO_EXECUTE
TASK = 0xFFFF_8000_000
"""Its stack lies at the number shifted by 20 bits."""
STACK = TASK << 20
PAGES = STACK_BYTES // 4096


class Making(FakeGuest):
    def __init__(self, *, undo=False):
        super().__init__()
        self.tables = Tables(self.target, self.tasks, undo=undo)
        self.pool = self.cpu.kept[self.slot[slots.POOL] - 1]
        self.record = self.tenant().record
        for number in range(PAGES - 1):
            self.map(to_signed(STACK + 4096 * number), 0x100000 + 4096 * number | FLAGS)

    def made(self, number=TASK):
        state = self.task(self.tasks.tenants["a"], number)
        assert self.tables.make(state, KERNEL_ROOT)
        return state

    def leaves(self, root):
        end, quads = self.memory.total_bytes, self.memory.words
        found = {n: paging.walk_leaf(quads, end, root, to_signed(STACK + 4096 * n)) for n in range(PAGES)}
        return {number: leaf for number, leaf in found.items() if leaf}


@pytest.mark.parametrize("undo", [False, True])
def test_the_pool_is_all_hidden_memory_but_what_undo_keeps(undo):
    guest = Making(undo=undo)
    count = (HIDDEN_BYTES - undo * RESERVED_BYTES) // 4096
    frames = guest.pool[1 : 1 + count].tolist()
    assert guest.pool[0] == count
    first = guest.memory.guest_bytes
    assert sorted(frames) == list(range(first, first + 4096 * count, 4096))
    # There is room to give back every frame of it, one more than the last is none.
    assert len(guest.pool) == 1 + HIDDEN_BYTES // 4096


@pytest.mark.parametrize("undo", [False, True])
def test_a_table_holds_the_baseline_and_with_undo_read_only(undo):
    guest = Making(undo=undo)
    state = guest.made()
    leaves = guest.leaves(state.root)
    assert state.stack == STACK
    # The last page is not mapped in the kernel's own table.
    assert leaves.keys() == set(range(PAGES - 1))
    for number, leaf in leaves.items():
        assert leaf & paging.FRAME_MASK == 0x100000 + 4096 * number
        assert bool(leaf & paging.WRITABLE) is not undo
        assert leaf & paging.NO_EXECUTE
    assert guest.record.tables_made == 1
    assert guest.record.table_pages_made == state.pages_made == 4


def test_the_kernels_own_table_keeps_its_entries():
    guest = Making(undo=True)
    before = bytes(guest.memory.map[: guest.next])
    guest.made()
    assert bytes(guest.memory.map[: guest.next]) == before


@pytest.mark.parametrize("left", [0, 1, 3])
def test_an_empty_pool_is_said(left):
    guest = Making()
    guest.pool[0] = left
    state = guest.task(guest.tasks.tenants["a"], TASK)
    assert guest.tables.make(state, KERNEL_ROOT) is False
    assert (state.root == 0) == (left == 0)
    assert guest.record.tables_made == (left > 0)
    assert guest.pool[0] == 0
    assert guest.record.table_pages_made == left
    guest.tables.free(state)
    assert guest.record.table_pages_freed == left == guest.pool[0]


@pytest.mark.parametrize("undo", [False, True])
def test_what_was_made_is_freed_to_the_last_page(undo):
    guest = Making(undo=undo)
    whole = guest.pool[0]
    states = [guest.made(number) for number in (TASK, TASK + 1)]
    for state in states:
        guest.tables.free(state)
    assert guest.pool[0] == whole
    assert len(set(guest.pool[1 : 1 + whole].tolist())) == whole
    assert (guest.record.tables_made, guest.record.tables_freed) == (2, 2)
    assert guest.record.table_pages_made == guest.record.table_pages_freed == 4 + 1


def test_with_undo_the_user_half_is_freed_too_and_without_it_is_the_kernels():
    for undo, freed in ((True, 4 + 3), (False, 4)):
        guest = Making(undo=undo)
        state = guest.made()
        own = [pagetable.take_frame(guest.memory.words, guest.pool) for _level in range(3)]
        for at, lower in zip([state.root, *own[:2]], own, strict=True):
            guest.memory.words[at >> 3] = lower | paging.TABLE_FLAGS
        guest.tables.free(state)
        assert guest.record.table_pages_freed == freed


def test_a_task_without_a_table_frees_nothing():
    guest = Making()
    whole = guest.pool[0]
    guest.tables.free(guest.task(guest.tasks.tenants["a"], TASK))
    assert (guest.record.tables_freed, guest.pool[0]) == (0, whole)


def test_pages_made_later_are_counted_for_the_task_that_runs():
    guest = Making()
    one, other = guest.made(), guest.made(TASK + 1)
    # Of the other's stack nothing is mapped: it has a top-level table only.
    assert (one.pages_made, other.pages_made, guest.record.table_pages_made) == (4, 1, 5)
    guest.pool[0] -= 2
    guest.tables.note_pages(one)
    assert (one.pages_made, other.pages_made, guest.record.table_pages_made) == (6, 1, 7)
    # Seen once, counted once.
    guest.tables.note_pages(one)
    guest.tables.note_pages(other)
    assert (one.pages_made, other.pages_made, guest.record.table_pages_made) == (6, 1, 7)


def test_pages_are_counted_for_no_task_without_a_table_and_never_taken_off():
    guest = Making()
    one, bare = guest.made(), guest.task(guest.tasks.tenants["a"], 7)
    guest.pool[0] -= 2
    guest.tables.note_pages(bare)
    assert (bare.pages_made, guest.record.table_pages_made) == (0, 4)
    guest.pool[0] += 4
    guest.tables.note_pages(one)
    assert (one.pages_made, guest.record.table_pages_made) == (4, 4)


def test_after_a_reset_all_frames_are_free_again_in_the_same_order():
    guest = Making()
    before = guest.pool.tolist()
    guest.made()
    assert guest.pool.tolist() != before
    guest.tables.reset()
    assert guest.pool.tolist() == before
