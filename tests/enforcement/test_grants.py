"""What a call was granted, without a guest: counted, forgotten, and taken back after one block."""

import numpy as np
import pytest
from tests.support.fake_target import KERNEL_ROOT, FakeGuest, Watch

from thinbox import paging
from thinbox.address import U64, VAddr
from thinbox.enforcement.grants import LOG_ROWS, Grants
from thinbox.enforcement.tables import Tables
from thinbox.image.symbols import Symbol
from thinbox.isolation import fault
from thinbox.machine import slots

FETCH, WRITE, READ = paging.FAULT_FETCH, paging.FAULT_WRITE, 0
TEXT = 0xFFFF_FFFF_8100_0000
PLACE = -(1 << 40)


class Granting(FakeGuest):
    def __init__(self, *, undo=False, **isolation):
        super().__init__(some_function=(TEXT, TEXT + 0x100))
        self.watch = Watch()
        self.grants = Grants(self.target, Tables(self.target, self.tasks, undo=undo), self.watch, undo=undo)
        (self.log,) = (array for array in self.cpu.kept if array.ndim == 2)
        self.state = self.task(self.tenant(**isolation), isolated=True)
        self.call, self.record = self.state.call, self.state.call.record

    def log_rows(self, *rows):
        """As the compiled hooks do: (vaddr, rip, error, index of the entry, what it was)."""
        self.log[: len(rows)] = rows
        self.slot[slots.LOG_COUNT] = len(rows)

    def drain(self, *rows):
        self.log_rows(*rows)
        self.grants.drain(self.state, self.call)
        return self.record.code_faults, self.record.data_faults, self.record.prefaulted


def row(error, vaddr=PLACE, index=0x10000, before=0):
    return (vaddr, TEXT - (1 << 64), error, index, before)


def test_the_hooks_are_given_the_whole_log():
    guest = Granting()
    assert guest.log.shape == (LOG_ROWS, fault.LOG_COLUMNS)
    assert guest.slot[slots.LOG_CAPACITY] == LOG_ROWS
    assert guest.cpu.kept[guest.slot[slots.LOG] - 1] is guest.log


def test_fetches_and_data_are_counted_apart_and_the_log_is_empty_then():
    guest = Granting()
    assert guest.drain(row(FETCH), row(READ), row(WRITE), row(FETCH), row(READ)) == (2, 3, 0)
    assert guest.slot[slots.LOG_COUNT] == 0
    assert guest.call.granted_pages == 5
    assert guest.drain(row(FETCH)) == (3, 3, 0)
    assert guest.call.granted_pages == 6
    assert [len(rows) for rows in guest.call.rows] == [5, 1]


def test_the_watches_are_told_the_rows_once():
    guest = Granting()
    guest.drain(row(FETCH), row(READ, index=0x10008))
    ((name, state, call, rows),) = guest.watch.told
    assert (name, state, call) == ("granted", guest.state, guest.call)
    assert rows.tolist() == [list(row(FETCH)), list(row(READ, index=0x10008))]
    # An empty log is nothing to tell.
    guest.grants.drain(guest.state, guest.call)
    assert len(guest.watch.told) == 1 and len(guest.call.rows) == 1


def test_rows_do_not_change_with_the_log():
    guest = Granting()
    guest.drain(row(FETCH))
    guest.log[0] = 7
    assert guest.call.rows[0].tolist() == [list(row(FETCH))]


ASIDE = [
    row(FETCH),
    row(READ),
    row(FETCH | fault.LOG_PREFAULT),
    row(READ | fault.LOG_PREFAULT),
    row(READ | fault.LOG_ASIDE),
    row(WRITE, before=0x5000 | paging.PRESENT),
]


@pytest.mark.parametrize("how", ["undo", "prefault", "view"])
def test_what_is_no_grant_of_the_policy_is_not_counted_as_one(how):
    guest = Granting(undo=how == "undo")
    if how == "prefault":
        guest.state.tenant.prefault = object()
    if how == "view":
        guest.slot[slots.VIEW] = 1
    assert guest.drain(*ASIDE) == (1, 1, 2)
    assert guest.call.granted_pages == 2
    # All of it is forgotten in the end.
    assert [len(rows) for rows in guest.call.rows] == [6]
    assert len(guest.watch.told[0][3]) == 2


@pytest.mark.parametrize("how", ["undo", "plain"])
def test_faults_are_kept_for_who_wants_them(how):
    guest = Granting(undo=how == "undo", keep_faults=True)
    guest.memory.words[0x10000], guest.memory.words[0x10001] = 0x5000 | paging.PRESENT, 0x6000 | paging.WRITABLE
    guest.drain(row(FETCH, vaddr=TEXT - (1 << 64) + 0x10), row(WRITE, index=0x10001), row(READ | fault.LOG_ASIDE))
    kept = guest.state.tenant.record.faults
    assert len(kept) == (2 if how == "undo" else 3)
    assert [(f.seq, f.kind, f.writable) for f in kept[:2]] == [(0, "fetch", False), (0, "write", True)]
    assert (kept[0].vaddr, kept[0].rip, kept[0].symbol) == (TEXT + 0x10, TEXT, "some_function+0x10")
    assert kept[1].vaddr == PLACE & U64


def test_nobody_who_does_not_want_them_has_faults():
    guest = Granting()
    guest.drain(row(FETCH))
    assert guest.state.tenant.record.faults == []


def test_forgetting_writes_back_what_was_the_last_row_first():
    """The same entry twice, as with undo: read-only, then writable. In the end it is as before the first."""
    guest = Granting()
    words = guest.memory.words
    words[0x10000], words[0x10001] = 0x9003, 0x8003
    guest.drain(row(READ, before=0), row(READ, index=0x10001, before=0x8001), row(WRITE, before=0x9001))
    guest.drain(row(WRITE, before=0x7001))
    guest.grants.forget(guest.call)
    assert (words[0x10000], words[0x10001]) == (0, 0x8001)
    assert guest.call.rows == []


# -- one block -------------------------------------------------------------------------------------------


def with_entry(active=1):
    guest = Granting()
    guest.map(PLACE, 0x5000 | paging.PRESENT)
    guest.state.root = KERNEL_ROOT
    guest.slot[slots.ACTIVE] = active
    guest.slot[slots.CLOCK], guest.slot[slots.DEADLINE], guest.slot[slots.ATTENTION] = 1000, 5000, 4000
    return guest


def test_what_the_table_held_is_read_from_the_tasks_own():
    guest = with_entry()
    assert guest.grants.entry_before(guest.state, PLACE + 0x123) == 0x5000 | paging.PRESENT
    assert guest.grants.entry_before(guest.state, PLACE + (1 << 39)) == 0


@pytest.mark.parametrize("active", [0, 1])
def test_a_grant_for_one_block_ends_with_it(active):
    guest = with_entry(active)
    before = guest.grants.entry_before(guest.state, PLACE)
    guest.map(PLACE, 0x6000 | paging.PRESENT)
    guest.grants.make_one_block(guest.state, PLACE, before, rip=0x40)
    guest.map(PLACE, 0x7000 | paging.PRESENT)
    guest.grants.make_one_block(guest.state, PLACE, 0x6000 | paging.PRESENT, rip=0x40)
    guest.cpu.cr3 = 0x3000
    guest.grants.end_one_block()
    assert guest.grants.entry_before(guest.state, PLACE) == before
    # The engine caches translations, but only where the table is in use.
    assert guest.cpu.done == ([("cr3", 0x3000)] if active else [])
    guest.map(PLACE, 0x7000 | paging.PRESENT)
    guest.grants.end_one_block()
    assert guest.grants.entry_before(guest.state, PLACE) == 0x7000 | paging.PRESENT, "it ends once"
    assert len(guest.cpu.done) == active


@pytest.mark.parametrize(
    ("rip", "stop"),
    [(0x0FF, 1001), (0x100, 961), (0x110, 977), (0x127, 1000), (0x128, 1001)],
)
def test_the_cpu_stops_when_the_block_has_run(rip, stop):
    """Of the block 0x100 to 0x128, which is counted already, what is still to run is counted again."""
    guest = with_entry()
    guest.slot[slots.BLOCK_START], guest.slot[slots.BLOCK_END] = 0x100, 0x128
    guest.grants.make_one_block(guest.state, PLACE, 0, rip)
    assert (guest.slot[slots.DEADLINE], guest.slot[slots.ATTENTION]) == (stop, stop)


def test_a_stop_that_comes_sooner_stays():
    guest = with_entry()
    guest.slot[slots.DEADLINE], guest.slot[slots.ATTENTION] = 500, 0
    guest.grants.make_one_block(guest.state, PLACE, 0, 0)
    assert (guest.slot[slots.DEADLINE], guest.slot[slots.ATTENTION]) == (500, 0)


INSIDE = Symbol("clear_page", VAddr(0xFFFF_FFFF_8100_0000), VAddr(0xFFFF_FFFF_8100_0040))
ELSEWHERE = Symbol("memcpy", VAddr(0xFFFF_FFFF_8100_0040), VAddr(0xFFFF_FFFF_8100_0080))


def lent(guest):
    """The code in which the CPU does not stop at the end of each block, and where it stops at the latest."""
    slot = guest.slot
    return slot[slots.BRIEF_START] & U64, slot[slots.BRIEF_END] & U64, slot[slots.BRIEF_DEADLINE]


def test_a_grant_for_a_function_goes_on_over_its_blocks_and_no_others():
    guest = with_entry()
    guest.grants.make_one_block(guest.state, PLACE, 0, 0, INSIDE)
    assert lent(guest) == (INSIDE.start, INSIDE.end_exclusive, 5000)
    guest.grants.make_one_block(guest.state, PLACE, 0, 0, INSIDE)
    assert lent(guest) == (INSIDE.start, INSIDE.end_exclusive, 5000), "not the deadline of the first grant"
    guest.grants.end_one_block()
    assert lent(guest)[:2] == (0, 0)


@pytest.mark.parametrize(("first", "second"), [(INSIDE, None), (None, INSIDE), (INSIDE, ELSEWHERE)])
def test_of_two_grants_the_shorter_holds(first, second):
    guest = with_entry()
    guest.grants.make_one_block(guest.state, PLACE, 0, 0, first)
    guest.grants.make_one_block(guest.state, PLACE, 0, 0, second)
    assert lent(guest)[:2] == (0, 0)


def test_after_a_reset_no_function_is_lent_anything():
    guest = with_entry()
    guest.grants.make_one_block(guest.state, PLACE, 0, 0, INSIDE)
    guest.grants.reset()
    assert lent(guest)[:2] == (0, 0)


def test_after_a_reset_nothing_is_taken_back():
    guest = with_entry()
    guest.grants.make_one_block(guest.state, PLACE, 0, 0)
    guest.grants.reset()
    guest.grants.end_one_block()
    assert guest.grants.entry_before(guest.state, PLACE) == 0x5000 | paging.PRESENT
    assert guest.cpu.done == []


def test_pages_of_tables_that_a_grant_made_are_counted():
    guest = Granting()
    guest.state.root = 1
    pool = next(array for array in guest.cpu.kept if array.ndim == 1)
    pool[0] -= 3
    guest.drain(row(FETCH))
    assert guest.state.tenant.record.table_pages_made == 3
    assert np.count_nonzero(guest.call.rows[0]) > 0


def test_frames_a_call_could_write_are_those_it_holds_writable_or_held_and_lost():
    """Rows of kernel data only; a page that the kernel took away meanwhile counts by where it is mapped."""
    guest = Granting()
    held, read_only, gone, nowhere, user = 0x10000, 0x10008, 0x10010, 0x10018, 0x10020
    guest.memory.words[held] = 0x7000 | paging.PRESENT | paging.WRITABLE | paging.DIRTY
    guest.memory.words[read_only] = 0x8000 | paging.PRESENT
    guest.memory.words[user] = 0x9000 | paging.PRESENT | paging.WRITABLE
    guest.map(PLACE + 0x2000, 0x5000 | paging.PRESENT | paging.WRITABLE)
    assert guest.grants.written_frames(guest.call).tolist() == []
    guest.drain(
        row(WRITE, index=held),
        row(WRITE, index=held),
        row(READ, vaddr=PLACE + 0x1000, index=read_only),
        row(WRITE, vaddr=PLACE + 0x2ABC, index=gone),
        row(WRITE, vaddr=PLACE + 0x400000, index=nowhere),
        row(WRITE, vaddr=0x7000, index=user),
    )
    assert guest.grants.written_frames(guest.call).tolist() == [0x5000, 0x7000]


def test_what_the_end_of_a_task_is_granted_is_counted_outside_its_calls():
    guest = Granting()
    guest.call.is_exit = True
    guest.drain(row(FETCH), row(READ))
    assert guest.state.tenant.record.outside == {"pages granted to ends": 2}
    assert guest.watch.told[0][0] == "granted"
