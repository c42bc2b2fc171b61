"""When policy guard is asked, without a guest: at a call's ends, between calls, and where the kernel starts a program."""

from types import SimpleNamespace

import pytest
from tests.support.fake_target import FakeGuest

from thinbox.enforcement import integrity
from thinbox.isolation.policies.guard import ProtectedObject
from thinbox.machine import cpu as registers

STARTS = 0xFFFF_FFFF_8100_0000
FOUND = ("verdict", 0x77)


class Policy:
    guards_end = True

    def __init__(self):
        self.asked, self.answer = [], None

    def _ask(self, *what):
        self.asked.append(what)
        return self.answer

    def check_between(self, before, now):
        return self._ask("between", before, now.content)

    def check_end(self, name, before, now):
        return self._ask("end", name, before[0].content, now[0].content)

    def check_program(self, path, before, place):
        return self._ask("program", path, before[0].content, place)


class Guarded(FakeGuest):
    """The ids of the running task are `ids`; a started program's path is `path` at 0x4000."""

    def __init__(self, monkeypatch, policy, *, isolated=True):
        super().__init__(call_usermodehelper_exec=(STARTS, STARTS + 0x100))
        self.ids, self.read, self.refused = b"me", [], []
        reader = SimpleNamespace(
            read=lambda task, root: self.read.append((task, root)) or (ProtectedObject(0x10, self.ids, True),),
            read_program=lambda info, root: (0x4000, b"path of %d" % info),
        )
        monkeypatch.setattr(integrity, "ProtectedObjectReader", lambda _view, _memory: reader)
        self.integrity = integrity.Integrity(self.target, self.tasks)
        self.integrity.install(lambda *what: self.refused.append(what))
        self.state = self.task(self.tenant(policy=policy), 5, isolated=isolated)
        self.tasks.running, self.view.current = self.state, 5

    def begins(self):
        return self.integrity.begins(self.state, self.state.call)

    def ends(self):
        return self.integrity.ends(self.state, self.state.call)


@pytest.fixture
def guarded(monkeypatch):
    return Guarded(monkeypatch, Policy())


def asked(guarded):
    return guarded.state.tenant.judge.policy.asked


@pytest.mark.parametrize("policy", [object(), SimpleNamespace(guards_end=False)])
def test_a_tenant_whose_policy_guards_nothing_pays_nothing(monkeypatch, policy):
    guest = Guarded(monkeypatch, policy)
    guest.integrity.born(guest.state)
    assert guest.begins() is None and guest.ends() is None
    guest.state.call.guarded = (ProtectedObject(0, b"", True),)
    guest.cpu.reach(STARTS)
    assert guest.read == [] and guest.refused == [] and guest.state.identity is None


def test_an_isolated_call_is_compared_at_its_ends_and_its_ids_are_followed_then(guarded):
    assert guarded.begins() is None
    assert asked(guarded) == [], "the first call of a task has nothing to be compared with"
    guarded.ids = b"new"
    assert guarded.ends() is None
    assert asked(guarded) == [("end", "getpid", b"me", b"new")]
    assert guarded.state.identity == b"new"
    assert guarded.read == [(5, guarded.target.kernel_root)] * 2


def test_a_refusal_at_the_end_is_returned_and_the_ids_are_not_believed(guarded):
    guarded.begins()
    guarded.state.tenant.judge.policy.answer = FOUND
    guarded.ids = b"root"
    assert guarded.ends() == FOUND
    assert guarded.state.identity is None


def test_between_calls_the_ids_are_compared_and_a_refusal_leaves_nothing_guarded(guarded):
    guarded.state.identity = b"before"
    assert guarded.begins() is None
    assert asked(guarded) == [("between", b"before", b"me")]
    assert [one.content for one in guarded.state.call.guarded] == [b"me"]
    guarded.state.call.guarded = ()
    guarded.state.tenant.judge.policy.answer = FOUND
    assert guarded.begins() == FOUND
    assert guarded.state.call.guarded == ()


def test_before_the_first_isolated_call_of_a_task_others_are_not_looked_at(monkeypatch):
    guest = Guarded(monkeypatch, Policy(), isolated=False)
    assert guest.begins() is None and guest.ends() is None
    assert guest.read == [] and asked(guest) == []


def test_after_it_ids_are_followed_through_calls_that_are_not_isolated(monkeypatch):
    guest = Guarded(monkeypatch, Policy(), isolated=False)
    guest.state.identity = b"before"
    assert guest.begins() is None
    assert guest.state.call.guarded == ()
    guest.ids = b"after setuid"
    assert guest.ends() is None
    assert asked(guest) == [("between", b"before", b"me")]
    assert guest.state.identity == b"after setuid"


def test_a_new_task_begins_with_the_ids_it_was_given(guarded):
    guarded.integrity.born(guarded.state)
    assert guarded.state.identity == b"me" and guarded.read == [(5, guarded.target.kernel_root)]


@pytest.mark.parametrize("answer", [None, FOUND])
def test_a_program_that_the_kernel_starts_is_judged_by_what_was_guarded_then(guarded, answer):
    guarded.begins()
    guarded.ids = b"changed meanwhile"
    guarded.state.tenant.judge.policy.answer = answer
    guarded.cpu.regs[registers.RDI] = 9
    guarded.cpu.reach(STARTS)
    assert asked(guarded) == [("program", b"path of 9", b"me", 0x4000)]
    assert guarded.refused == ([(guarded.state, guarded.state.call, *FOUND)] if answer else [])


@pytest.mark.parametrize("who", ["nobody", "no call", "not guarded", "another task"])
def test_what_others_start_is_not_the_tenants(guarded, who):
    """A kernel thread runs, with the tenant's call asleep."""
    guarded.begins()
    if who == "nobody":
        guarded.tasks.running = None
    elif who == "no call":
        guarded.state.call = None
    elif who == "not guarded":
        guarded.state.call.guarded = ()
    else:
        guarded.view.current = 6
    guarded.cpu.reach(STARTS)
    assert asked(guarded) == [] and guarded.refused == []
