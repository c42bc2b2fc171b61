"""What the kernel takes away goes from SCI tables too, without a guest: which copies go, and which stay."""

import numpy as np
import pytest
from tests.support.fake_target import KERNEL_ROOT, FakeGuest

from thinbox import paging
from thinbox.address import U64
from thinbox.enforcement.shootdown import Shootdown
from thinbox.machine import cpu as registers
from thinbox.machine import slots

RANGE, WHOLE, USER = 0x100, 0x200, 0x300
BASE = -(1 << 40)
SCI_ROOT = 0x200000
ENTRY = 0x5000 | paging.PRESENT | paging.WRITABLE | paging.NO_EXECUTE


class Granted(FakeGuest):
    """A running isolated call that was granted pages 0 to 3 of BASE; a sleeping one the same; one not isolated."""

    def __init__(self):
        super().__init__()
        self.drained = []
        grants = type("Grants", (), {"drain": lambda _self, state, call: self.drained.append((state, call))})()
        Shootdown(self.target, self.tasks, grants).install()
        tenant = self.tenant()
        self.states = [self.task(tenant, 1, isolated=True), self.task(tenant, 2, isolated=True)]
        self.plain = self.task(tenant, 3, isolated=False)
        self.tasks.running = self.states[0]
        self.slot[slots.ACTIVE] = 1
        self.cpu.cr3 = SCI_ROOT
        for number in range(4):
            self.map(BASE + 4096 * number, ENTRY + 4096 * number)
        for at, state in enumerate([*self.states, self.plain]):
            first = 0x30000 + 0x100 * at
            rows = [[BASE + 4096 * number, 0, 0, first + number, 0] for number in range(4)]
            state.call.rows = [np.array(rows[:1], dtype=np.int64), np.array(rows[1:], dtype=np.int64)]
            for number in range(4):
                self.memory.words[first + number] = ENTRY + 4096 * number

    def kept(self, task=0):
        first = 0x30000 + 0x100 * task
        return [number for number in range(4) if self.memory.words[first + number]]

    def teardown(self, start, end):
        self.cpu.regs[registers.RDI], self.cpu.regs[registers.RSI] = start & U64, end & U64
        self.cpu.reach(RANGE)


@pytest.fixture
def fake():
    return Granted()


@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [
        (BASE + 4096, BASE + 3 * 4096, [0, 3]),
        (BASE + 4096, BASE + 3 * 4096 + 1, [0]),
        (BASE + 4096 + 0x800, BASE + 2 * 4096, [0, 2, 3]),
        (BASE, BASE, [0, 1, 2, 3]),
        (BASE - 4096, BASE, [0, 1, 2, 3]),
        (BASE - (1 << 30), -1, []),
    ],
)
def test_a_range_goes_from_running_and_sleeping_calls(fake, start, end, kept):
    fake.teardown(start, end)
    assert fake.kept(0) == fake.kept(1) == kept
    assert fake.kept(2) == [0, 1, 2, 3], "a call that is not isolated has no table"
    assert fake.cpu.done == ([("cr3", SCI_ROOT)] if len(kept) < 4 else [])


def test_the_log_of_the_running_call_is_looked_at_too(fake):
    fake.teardown(BASE, BASE + 4096)
    assert fake.drained == [(fake.states[0], fake.states[0].call)]


@pytest.mark.parametrize("running", [None, "plain", "between"])
def test_where_no_isolated_call_runs_no_log_is_drained(fake, running):
    if running == "between":
        fake.states[0].call = None
    else:
        fake.tasks.running = fake.plain if running else None
    fake.teardown(BASE, BASE + 4096)
    assert fake.drained == []
    assert fake.kept(1) == [1, 2, 3]


def test_outside_of_the_table_nothing_is_reloaded(fake):
    fake.slot[slots.ACTIVE] = 0
    fake.teardown(BASE, BASE + 4096)
    assert fake.kept() == [1, 2, 3] and fake.cpu.done == []


def test_without_tasks_nothing_is_looked_at(fake):
    fake.tasks.clear()
    for place in (RANGE, WHOLE):
        fake.cpu.reach(place)
    assert fake.drained == []


def remap(fake, change):
    fake.slot[slots.KERNEL_ROOT] = KERNEL_ROOT
    fake.map(BASE + 4096, change(ENTRY + 4096))
    fake.cpu.reach(WHOLE)
    return fake.kept(0), fake.kept(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda _entry: 0,
        lambda entry: entry & ~paging.PRESENT,
        lambda entry: entry + 4096,
        lambda entry: entry & ~paging.WRITABLE,
    ],
    ids=["gone", "not present", "another page", "read-only"],
)
def test_at_a_whole_flush_what_the_kernel_maps_otherwise_goes(fake, change):
    assert remap(fake, change) == ([0, 2, 3], [0, 2, 3])
    assert fake.cpu.done == [("cr3", SCI_ROOT)]


def test_what_the_kernel_took_from_users_alone_goes_too(fake):
    fake.memory.words[0x30000 + 1] |= paging.USER
    assert remap(fake, lambda entry: entry)[0] == [0, 2, 3]


@pytest.mark.parametrize("flags", [0, paging.ACCESSED, paging.DIRTY, paging.GLOBAL])
def test_at_a_whole_flush_what_is_mapped_alike_stays(fake, flags):
    assert remap(fake, lambda entry: entry | flags) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert fake.cpu.done == []


def test_text_that_may_not_run_any_more_goes_and_data_of_text_stays(fake):
    """A data grant is NX where the kernel's page is not; the other way round the right to run was taken away."""
    fake.memory.words[0x30000 + 1] &= ~paging.NO_EXECUTE
    assert remap(fake, lambda entry: entry) == ([0, 2, 3], [0, 1, 2, 3])
    both = Granted()
    both.memory.words[0x30000 + 1] &= ~paging.NO_EXECUTE
    assert remap(both, lambda entry: entry & ~paging.NO_EXECUTE) == ([0, 1, 2, 3], [0, 1, 2, 3])
    other = Granted()
    assert remap(other, lambda entry: entry & ~paging.NO_EXECUTE) == ([0, 1, 2, 3], [0, 1, 2, 3])


# -- the user half ---------------------------------------------------------------------------------------


def test_the_user_half_of_the_table_in_use_follows_the_kernels(fake):
    fake.slot[slots.SCI_ROOT], fake.slot[slots.KERNEL_ROOT] = SCI_ROOT, KERNEL_ROOT
    fake.memory.words[(KERNEL_ROOT >> 3) + 5] = 0x77003
    before = fake.memory.words[(SCI_ROOT >> 3) + 256]
    fake.cpu.reach(USER)
    assert fake.memory.words[(SCI_ROOT >> 3) + 5] == 0x77003
    assert fake.memory.words[(SCI_ROOT >> 3) + 256] == before
    assert fake.cpu.done == [("cr3", SCI_ROOT)]


def test_no_table_in_use_is_left_alone(fake):
    fake.slot[slots.SCI_ROOT], fake.slot[slots.KERNEL_ROOT], fake.slot[slots.ACTIVE] = SCI_ROOT, KERNEL_ROOT, 0
    fake.memory.words[(KERNEL_ROOT >> 3) + 5] = 0x77003
    fake.cpu.reach(USER)
    assert fake.memory.words[(SCI_ROOT >> 3) + 5] == 0 and fake.cpu.done == []


def test_with_undo_the_user_pages_go_and_come_again_when_they_are_touched(fake):
    fake.slot[slots.UNDO_MODE] = 1
    fake.states[0].call.rows.append(np.array([[0x7000, 0, 0, 0x31000, 0], [0, 0, 0, 0x31001, 0]], dtype=np.int64))
    fake.memory.words[0x31000] = fake.memory.words[0x31001] = 0x9007
    fake.cpu.reach(USER)
    assert fake.memory.words[0x31000] == fake.memory.words[0x31001] == 0
    assert fake.kept() == [0, 1, 2, 3]
    assert fake.cpu.done == [("cr3", SCI_ROOT)]
