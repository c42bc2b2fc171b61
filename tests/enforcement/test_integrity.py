"""Who wrote is to blame: what a call could write of another task's ids is found at its end, and put back."""

from types import SimpleNamespace

import numpy as np
import pytest
from thinbox.enforcement.integrity import Integrity
from thinbox.enforcement.open_call import OpenCall
from thinbox.enforcement.tasks import TaskList, TaskState
from thinbox.isolation.policies.guard import Guard, ProtectedObject
from thinbox.records.call import CallRecord

MINE, OTHERS = 0x1000, 0x2000
FRAMES = {MINE: 0x10000, OTHERS: 0x20000}
IDS = (1000).to_bytes(4, "little") * 8 + bytes(40)
ROOT_IDS = bytes(72)


class Reader:
    """Ids by task; one frame for each."""

    def __init__(self):
        self.ids = {MINE: IDS, OTHERS: IDS}

    def identity(self, task, _root, _caller=0):
        return ProtectedObject(task + 8, self.ids[task], is_identity=True)

    real_identity = identity

    def frames(self, task, _known, _root):
        return (FRAMES[task],)

    def paths(self, _root):
        return []

    def put_back(self, _task, known, _root, *, real_only):
        return ((known.vaddr, known.content),)

    def id_map_place(self, namespace, kind):
        return namespace + 0x40 * kind

    def frame(self, place, _root):
        return place & ~0xFFF

    def is_in_new_namespace(self, _task, _parents, _root):
        return False


class Maps:
    """Maps of user namespaces: which were written without right, and which are forged."""

    def __init__(self):
        self.wrong, self.wrongly_mapped = [], set()

    def ends(self, _state):
        return self.wrong

    def forged(self, namespaces):
        return [place for place in sorted(self.wrongly_mapped) if place[0] in namespaces]

    def raw(self, namespace, kind):
        return b"%x %d" % (namespace, kind)

    def all(self):
        return (NAMESPACE, OTHER_NAMESPACE)


class Room:
    def __init__(self):
        self.written, self.reader, self.tasks = [], Reader(), TaskList()
        target = SimpleNamespace(view=None, memory=None, kernel_root=0)
        grants = SimpleNamespace(written_frames=lambda _call: np.array(self.written, dtype=np.int64))
        self.integrity = Integrity(target, self.tasks, grants)
        self.integrity._reader = self.reader
        self.maps = self.integrity._maps = Maps()
        tenant = SimpleNamespace(name="tenant", judge=SimpleNamespace(policy=Guard()))
        self.mine, self.others = (TaskState(task, number, tenant) for number, task in enumerate((MINE, OTHERS), 1))
        self.tasks.tasks = {MINE: self.mine, OTHERS: self.others}
        for state in (self.mine, self.others):
            self.integrity._policy(state)
            assert self.integrity.born(state) is None

    def call(self, name, isolated=True):
        call = OpenCall(CallRecord(0, "tenant", 1, 0, name, ()), 0, 0, 0.0, isolated=isolated)
        self.mine.call = call
        assert self.integrity.begins(self.mine, call) is None
        return call


@pytest.fixture
def room():
    return Room()


def test_anothers_ids_are_put_back_and_nobody_dies_for_it(room):
    """Credentials of many tasks share a page that every call counts references in: the writer is not known."""
    call = room.call("read")
    room.reader.ids[OTHERS], room.written = ROOT_IDS, [FRAMES[OTHERS]]
    (found,) = room.integrity.ends(room.mine, call)
    assert (found.verdict.rule, found.is_writer, found.whose) == ("G5", False, "tenant")
    assert found.repair == ((OTHERS + 8, IDS),)


def test_it_is_found_before_the_call_sleeps_too(room):
    call = room.call("read")
    room.reader.ids[OTHERS], room.written = ROOT_IDS, [FRAMES[OTHERS]]
    assert [found.verdict.rule for found in room.integrity.pauses(room.mine, call)] == ["G5"]


def test_what_a_call_cannot_have_written_is_not_its_fault(room):
    """Another's ids changed while it ran, in a page it never held: nothing is said of it."""
    call = room.call("read")
    room.reader.ids[OTHERS] = ROOT_IDS
    assert list(room.integrity.ends(room.mine, call)) == []


@pytest.mark.parametrize("written", [[], [FRAMES[MINE]]])
def test_ones_own_ids_are_put_back_and_cost_a_life_only_if_the_call_could_write_them(room, written):
    call = room.call("read")
    room.reader.ids[MINE], room.written = ROOT_IDS, written
    (found,) = room.integrity.ends(room.mine, call)
    assert (found.verdict.rule, found.is_writer) == ("G1", bool(written))
    assert found.repair == ((MINE + 8, IDS),)


def test_ids_changed_between_calls_are_put_back_and_nobody_is_the_writer(room):
    room.reader.ids[MINE] = ROOT_IDS
    call = OpenCall(CallRecord(0, "tenant", 1, 0, "read", ()), 0, 0, 0.0, isolated=True)
    found = room.integrity.begins(room.mine, call)
    assert (found.verdict.rule, found.is_writer, found.repair) == ("G3", False, ((MINE + 8, IDS),))


def test_a_call_that_may_change_ids_does_and_they_are_known_then(room):
    call = room.call("setuid")
    room.reader.ids[MINE], room.written = ROOT_IDS, [FRAMES[MINE]]
    assert list(room.integrity.ends(room.mine, call)) == []
    room.call("read")


def test_another_that_is_changing_its_ids_itself_is_left_alone(room):
    room.others.call = OpenCall(CallRecord(0, "tenant", 2, 0, "setuid", ()), 0, 0, 0.0, isolated=True)
    call = room.call("read")
    room.reader.ids[OTHERS], room.written = ROOT_IDS, [FRAMES[OTHERS]]
    assert list(room.integrity.ends(room.mine, call)) == []


def test_a_child_with_other_ids_than_its_parents_is_the_parents_doing(room):
    room.reader.ids[OTHERS] = ROOT_IDS
    found = room.integrity.born(room.others, room.mine)
    assert (found.verdict.rule, found.is_writer) == ("G6", True)


def test_a_task_that_is_gone_is_nobodys_victim(room):
    room.integrity.forget(room.others)
    call = room.call("read")
    room.reader.ids[OTHERS], room.written = ROOT_IDS, [FRAMES[OTHERS]]
    assert list(room.integrity.ends(room.mine, call)) == []


def test_the_same_ids_at_another_place_are_learned_and_nothing_is_written(room):
    """KEYCTL_SESSION_TO_PARENT gives a parent a new set with its own ids; the old one may be anybody's soon."""
    moved = {}

    def identity(task, _root, _caller=0):
        return ProtectedObject(moved.get(task, task + 8), room.reader.ids[task], is_identity=True)

    room.reader.identity = room.reader.real_identity = identity
    moved[MINE], moved[OTHERS] = 0x9000, 0xA000
    call = room.call("read")
    assert room.mine.identity.vaddr == 0x9000
    room.written = [FRAMES[OTHERS]]
    assert list(room.integrity.ends(room.mine, call)) == []
    assert room.others.identity.vaddr == 0xA000


NAMESPACE, OTHER_NAMESPACE = 0x30000, 0x50000
WITH_NAMESPACE = IDS[:32] + bytes(44) + NAMESPACE.to_bytes(8, "little") + bytes(8)
"""As long as a real one: the namespace and the groups are its last words."""


@pytest.fixture
def inside(room):
    """The task is in a user namespace of its own."""
    room.reader.ids[MINE] = WITH_NAMESPACE
    room.integrity._know(room.mine, room.reader.identity(MINE, 0))
    return room


@pytest.mark.parametrize("written", [[], [NAMESPACE]])
def test_a_forged_map_of_ones_own_namespace_is_put_back_and_costs_its_writers_life(inside, written):
    call = inside.call("read")
    inside.maps.wrongly_mapped, inside.written = {(NAMESPACE, 0)}, written
    (found,) = inside.integrity.ends(inside.mine, call)
    assert (found.verdict.rule, found.is_writer, found.vaddr) == ("G8", bool(written), NAMESPACE)
    assert found.repair == ((NAMESPACE, b"30000 0"),)


def test_a_call_begins_with_the_maps_that_were_written(inside):
    """Both are put back before it runs, and nobody is to blame."""
    inside.maps.wrongly_mapped = {(NAMESPACE, 0), (NAMESPACE, 1)}
    call = OpenCall(CallRecord(0, "tenant", 1, 0, "open", ()), 0, 0, 0.0, isolated=True)
    found = inside.integrity.begins(inside.mine, call)
    assert (found.verdict.rule, found.is_writer) == ("G8", False)
    assert found.repair == ((NAMESPACE, b"30000 0"), (NAMESPACE + 0x40, b"30000 1"))


@pytest.mark.parametrize(("written", "rules"), [([OTHER_NAMESPACE], ["G8"]), ([], [])])
def test_anothers_map_in_a_page_that_the_call_could_write_is_put_back(room, written, rules):
    call = room.call("read")
    room.maps.wrongly_mapped, room.written = {(OTHER_NAMESPACE, 0)}, written
    found = list(room.integrity.ends(room.mine, call))
    assert [one.verdict.rule for one in found] == rules
    assert not any(one.is_writer for one in found)


def test_a_map_that_the_call_may_not_write_is_put_back_whosever_it_is(room):
    call = room.call("write")
    room.maps.wrong = [(NAMESPACE, 1)]
    (found,) = room.integrity.ends(room.mine, call)
    assert (found.verdict.rule, found.is_writer) == ("G8", True)
    assert found.repair == ((NAMESPACE + 0x40, b"30000 1"),)
