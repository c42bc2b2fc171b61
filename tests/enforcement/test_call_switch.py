"""One call off its table, without a guest: the order of the steps, and what the record is told."""

import pytest
from tests.support.fake_target import FakeGuest

from thinbox.enforcement.call_switch import CallSwitch
from thinbox.enforcement.open_call import CallState
from thinbox.machine import slots


class Noted:
    """A part that only notes that it was asked, with the CPU's own notes in one list."""

    def __init__(self, done, **names):
        for name, word in names.items():
            setattr(self, name, lambda *_what, word=word: done.append((word,)))


class Switching(FakeGuest):
    def __init__(self, *, isolated, undo=True):
        super().__init__()
        done = self.cpu.done
        grants = Noted(done, drain="drain", end_one_block="end one block", forget="forget")
        self.switch = CallSwitch(
            self.target,
            grants,
            Noted(done, closed="closed", paused="paused", resumed="resumed"),
            Noted(done, end="undo ends") if undo else None,
        )
        self.state = self.task(self.tenant(), isolated=isolated)
        self.call = self.state.call
        self.slot[slots.ACTIVE] = self.slot[slots.SCI_ROOT] = self.slot[slots.RESUME_RSP] = 9
        self.slot[slots.CLOCK], self.slot[slots.SLEPT] = 5000, 1500
        self.state.bytes_mark, self.call.entered_ns, self.call.record.code_bytes = 3000, 1000, 70

    def words(self):
        return [word for (word,) in self.cpu.done]


@pytest.mark.parametrize(("isolated", "undo"), [(True, True), (True, False), (False, True)])
def test_a_call_that_sleeps_leaves_its_table_with_its_grants_kept(isolated, undo):
    guest = Switching(isolated=isolated, undo=undo)
    guest.slot[slots.RESUME_RIP], guest.slot[slots.RESUME_BLOCK_START], guest.slot[slots.RESUME_BLOCK_END] = 5, 6, 7
    guest.switch.sleep(guest.state, guest.call)
    off = ["drain", *(["undo ends"] if undo else []), "drain", "end one block", "leave"]
    assert guest.words() == [*(off if isolated else []), "paused"]
    assert guest.slot[slots.SCI_ROOT] == guest.slot[slots.RESUME_RSP] == (0 if isolated else 9)
    call = guest.call
    assert (call.resume_rsp, call.resume_rip, call.resume_block) == ((9, 5, (6, 7)) if isolated else (0, 0, (0, 0)))
    assert call.slept and call.state is CallState.SLEEPING and guest.state.call is call
    assert call.record.code_bytes == 70 + (5000 - 1500) - 3000


@pytest.mark.parametrize(("resume_rsp", "deferred_rsp", "entered"), [(0, 0, True), (8, 0, False), (0, 8, False)])
def test_a_call_that_wakes_goes_on_on_its_table_unless_something_else_is_to_end_first(
    resume_rsp, deferred_rsp, entered
):
    guest = Switching(isolated=True)
    guest.switch.sleep(guest.state, guest.call)
    guest.cpu.done.clear()
    used = []
    guest.state.tenant.judge.use = lambda: used.append(True)
    guest.state.root = 0x7000
    guest.call.resume_rsp, guest.call.deferred_rsp = resume_rsp, deferred_rsp
    assert guest.switch.wake(guest.state, guest.call) is entered
    assert guest.words() == ["resumed", *(["enter"] if entered else [])]
    assert used == [True], "its own policy's tables are the hooks'"
    assert (guest.slot[slots.SCI_ROOT], guest.slot[slots.RESUME_RSP]) == (0x7000, resume_rsp)
    assert guest.slot[slots.CALL_KEY] == 39
    assert guest.state.bytes_mark == 5000 - 1500


def test_a_call_that_wakes_without_isolation_goes_on_without_a_table():
    guest = Switching(isolated=False)
    guest.switch.sleep(guest.state, guest.call)
    guest.cpu.done.clear()
    assert guest.switch.wake(guest.state, guest.call) is False
    assert guest.words() == ["resumed"] and guest.slot[slots.SCI_ROOT] == 9


@pytest.mark.parametrize(
    ("isolated", "undo", "steps"),
    [
        (True, True, ["drain", "end one block", "leave", "closed", "forget", "undo ends"]),
        (True, False, ["drain", "end one block", "leave", "closed", "forget"]),
        (False, True, ["closed", "forget"]),
    ],
)
def test_a_call_is_closed_and_what_it_was_granted_forgotten(isolated, undo, steps):
    guest = Switching(isolated=isolated, undo=undo)
    guest.switch.close(guest.state, guest.call)
    assert guest.words() == steps
    assert guest.state.call is None and guest.call.state is CallState.RETURNED
    assert guest.slot[slots.SCI_ROOT] == (0 if isolated else 9)


def test_the_record_counts_the_code_that_ran_and_the_time_with_sleep():
    guest = Switching(isolated=True)
    guest.switch.close(guest.state, guest.call)
    assert guest.call.record.code_bytes == 70 + (5000 - 1500) - 3000
    assert guest.call.record.virtual_ns == 5000 - 1000


@pytest.mark.parametrize(
    ("isolated", "slept", "pages", "figures"),
    [(True, False, 4, 1), (True, True, 4, 0), (True, False, 0, 0), (False, False, 4, 0)],
)
def test_the_cost_of_a_fault_is_taken_of_isolated_calls_that_did_not_sleep(
    isolated, slept, pages, figures, monkeypatch
):
    monkeypatch.setattr("thinbox.enforcement.call_switch.time.perf_counter", lambda: 10.0)
    guest = Switching(isolated=isolated)
    guest.call.slept, guest.call.granted_pages, guest.call.entered_host_s = slept, pages, 9.0
    guest.switch.close(guest.state, guest.call)
    found = guest.state.tenant.record.fault_us
    assert (len(found), found.value) == (figures, 250_000.0 if figures else None)
