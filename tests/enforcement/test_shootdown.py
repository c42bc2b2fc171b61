"""What the kernel takes away goes from SCI tables too, without a guest: which copies go, and which stay."""

import numpy as np
import pytest
from tests.support.fake_target import FakeGuest

from thinbox import paging
from thinbox.address import U64
from thinbox.enforcement.shootdown import Shootdown
from thinbox.isolation import fault
from thinbox.machine import cpu as registers

BASE = -(1 << 40)
ENTRY = 0x5000 | paging.PRESENT | paging.WRITABLE | paging.NO_EXECUTE


class Granted(FakeGuest):
    """A running isolated call that was granted pages 0 to 3 of BASE; a sleeping one the same; one not isolated."""

    def __init__(self):
        super().__init__()
        self.shootdown = Shootdown(self.target, self.tasks)
        tenant = self.tenant()
        self.states = [self.task(tenant, 1, isolated=True), self.task(tenant, 2, isolated=True)]
        self.plain = self.task(tenant, 3, isolated=False)
        self.tasks.running = self.states[0]
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
        self.drop(self.shootdown.of_range())

    def drop(self, found):
        """What the enforcer does with it."""
        for rows in found:
            assert len(rows)
            self.memory.words[rows[:, fault.LOG_INDEX]] = 0


@pytest.fixture
def fake():
    return Granted()


@pytest.mark.parametrize(("size", "kept"), [(4096, [0, 2, 3]), (2 * 4096, [0, 3]), (2 * 4096 + 1, [0])])
def test_of_a_range_given_by_its_size_just_that_goes(fake, size, kept):
    """Taken for an end, a size would take everything above the start: the kernel's text, too."""
    fake.cpu.regs[registers.RDI], fake.cpu.regs[registers.RSI] = (BASE + 4096) & U64, size
    fake.drop(fake.shootdown.of_sized_range())
    assert fake.kept() == fake.kept(1) == kept


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


def remap(fake, change):
    fake.map(BASE + 4096, change(ENTRY + 4096))
    fake.drop(fake.shootdown.of_changes())
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


def test_what_the_kernel_took_from_users_alone_goes_too(fake):
    fake.memory.words[0x30000 + 1] |= paging.USER
    assert remap(fake, lambda entry: entry)[0] == [0, 2, 3]


@pytest.mark.parametrize("flags", [0, paging.ACCESSED, paging.DIRTY, paging.GLOBAL])
def test_at_a_whole_flush_what_is_mapped_alike_stays(fake, flags):
    assert remap(fake, lambda entry: entry | flags) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_text_that_may_not_run_any_more_goes_and_data_of_text_stays(fake):
    """A data grant is NX where the kernel's page is not; the other way round the right to run was taken away."""
    fake.memory.words[0x30000 + 1] &= ~paging.NO_EXECUTE
    assert remap(fake, lambda entry: entry) == ([0, 2, 3], [0, 1, 2, 3])
    both = Granted()
    both.memory.words[0x30000 + 1] &= ~paging.NO_EXECUTE
    assert remap(both, lambda entry: entry & ~paging.NO_EXECUTE) == ([0, 1, 2, 3], [0, 1, 2, 3])
    other = Granted()
    assert remap(other, lambda entry: entry & ~paging.NO_EXECUTE) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_of_the_user_half_all_goes_where_it_is_mapped_on_demand(fake):
    rows = np.array([[0x7000, 0, 0, 0x31000, 0], [0, 0, 0, 0x31001, 0]], dtype=np.int64)
    fake.states[0].call.rows.append(rows)
    fake.memory.words[0x31000] = fake.memory.words[0x31001] = 0x9007
    fake.drop(fake.shootdown.of_user_half())
    assert fake.memory.words[0x31000] == fake.memory.words[0x31001] == 0
    assert fake.kept() == [0, 1, 2, 3]
