"""What a user namespace maps counts only as far as a call wrote it that may; without a guest."""

import struct
from types import SimpleNamespace

import pytest
from thinbox.enforcement import id_maps
from thinbox.enforcement.id_maps import IdMaps
from thinbox.isolation.policies.guard import ProtectedObject
from thinbox.kernel.id_maps import GROUPS, USERS, IdMapShape
from thinbox.machine import cpu as registers

FIRST, OUTER, INNER, FILE, SEQ = 0x1000, 0x2000, 0x3000, 0x8000, 0x9000
UID_WRITE, GID_WRITE = 0x100, 0x200
SHAPE = IdMapShape({UID_WRITE: USERS, GID_WRITE: GROUPS}, 8, 16, 24, 32)
ME, VICTIM, TASK = 1000, 2000, 7
SETGID, SETUID = 1 << 6, 1 << 7


def identity(*, namespace=FIRST, user=ME, effective=0):
    capabilities = struct.pack("<5Q", 0, 0, effective, 0, 0)
    content = struct.pack("<8I", *[user] * 8) + bytes(4) + capabilities + struct.pack("<2Q", namespace, 0)
    return ProtectedObject(0, content, is_identity=True, first_namespace=FIRST)


class Guest:
    """OUTER lies in the first namespace, INNER in OUTER; both are ME's."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(id_maps, "find_id_map_shape", lambda _facts: SHAPE)
        self.words = {FILE + 8: SEQ, OUTER + 24: FIRST, INNER + 24: OUTER, OUTER + 32: ME, INNER + 32: ME}
        self.memory, self.hooks = {}, {}
        regs = [0] * 16
        regs[registers.RDI] = FILE
        target = SimpleNamespace(
            view=SimpleNamespace(facts=None),
            kernel_root=0,
            memory=SimpleNamespace(word_at=lambda _root, at: self.words.get(at, 0)),
            cpu=SimpleNamespace(regs=regs, add_code_hook=self.hooks.__setitem__),
        )
        self.tasks = SimpleNamespace(running=SimpleNamespace(task=TASK, identity=identity()))
        self.maps = IdMaps(target, self.tasks, lambda *key: self.memory.get(key, ()))

    def write(self, *wanted, namespace=OUTER, writer=None, function=UID_WRITE):
        """The kernel's function runs, and writes; what a call's end finds."""
        if writer is not None:
            self.tasks.running.identity = writer
        self.words[SEQ + 16] = namespace
        self.hooks[function]()
        self.memory[namespace, SHAPE.writers[function]] = wanted
        return self.maps.refused(self.tasks.running)


@pytest.fixture
def guest(monkeypatch):
    return Guest(monkeypatch)


def test_what_nobody_wrote_maps_nothing(guest):
    assert guest.maps.of(OUTER, USERS) == () and not guest.maps.is_forged(OUTER, USERS)
    guest.memory[OUTER, USERS] = (range(VICTIM, VICTIM + 1),)
    assert guest.maps.of(OUTER, USERS) == () and guest.maps.is_forged(OUTER, USERS)


def test_ones_own_id_may_be_mapped_and_counts(guest):
    own = range(ME, ME + 1)
    assert guest.write(own) == []
    assert guest.maps.of(OUTER, USERS) == (own,)
    assert guest.maps.of(OUTER, GROUPS) == ()
    guest.memory[OUTER, USERS] = (range(VICTIM, VICTIM + 1),)
    assert guest.maps.of(OUTER, USERS) == () and guest.maps.is_forged(OUTER, USERS)


def test_it_counts_while_the_call_that_wrote_it_still_runs(guest):
    guest.words[SEQ + 16] = OUTER
    guest.hooks[UID_WRITE]()
    assert guest.maps.of(OUTER, USERS) == ()
    guest.memory[OUTER, USERS] = (range(ME, ME + 1),)
    assert guest.maps.of(OUTER, USERS) == (range(ME, ME + 1),)


@pytest.mark.parametrize("wanted", [(range(VICTIM, VICTIM + 1),), (range(ME, ME + 2),), (range(ME, ME + 1),) * 2])
def test_without_a_capability_no_other_map_is_written(guest, wanted):
    assert guest.write(*wanted) == [(OUTER, USERS)]
    assert guest.maps.of(OUTER, USERS) == ()


@pytest.mark.parametrize(("function", "capability"), [(UID_WRITE, SETUID), (GID_WRITE, SETGID)])
def test_with_the_capability_in_the_namespace_above_any_may(guest, function, capability):
    kind = SHAPE.writers[function]
    both = SETUID | SETGID
    assert guest.write(range(100_000, 165_536), function=function, writer=identity(effective=both - capability)) == [
        (OUTER, kind)
    ]
    assert guest.write(range(100_000, 165_536), function=function, writer=identity(effective=capability)) == []
    assert guest.maps.of(OUTER, kind) == (range(100_000, 165_536),)


def test_capabilities_in_ones_own_namespace_are_none_above(guest):
    """A new namespace's first task has them all, there."""
    assert guest.write(range(VICTIM, VICTIM + 1), writer=identity(namespace=OUTER, effective=-1 & 0xFF)) != []


def test_what_the_namespace_above_does_not_map_cannot_be_mapped(guest):
    inside = identity(namespace=OUTER, effective=0xFF)
    assert guest.write(range(VICTIM, VICTIM + 1), namespace=INNER, writer=inside) == [(INNER, USERS)]
    assert guest.write(range(100_000, 165_536), writer=identity(effective=SETUID)) == []
    assert guest.write(range(165_000, 165_537), namespace=INNER, writer=inside) == [(INNER, USERS)]
    assert guest.write(range(165_000, 165_536), namespace=INNER, writer=inside) == []
    assert guest.maps.of(INNER, USERS) == (range(165_000, 165_536),)


def test_the_owner_of_what_lies_in_its_own_may_write_below(guest):
    assert guest.write(range(ME, ME + 1)) == []
    assert guest.write(range(ME, ME + 1), namespace=INNER, writer=identity(user=VICTIM)) == [(INNER, USERS)]
    assert guest.write(range(ME, ME + 1), namespace=INNER, writer=identity()) == []


def test_a_map_is_written_once(guest):
    assert guest.write(range(ME, ME + 1)) == []
    assert guest.write(range(VICTIM, VICTIM + 1), writer=identity(effective=SETUID)) == [(OUTER, USERS)]


def test_a_write_that_failed_leaves_nothing(guest):
    assert guest.write() == []
    assert guest.maps.of(OUTER, USERS) == ()


def test_a_namespace_made_where_another_was_begins_anew(guest):
    assert guest.write(range(ME, ME + 1)) == []
    guest.maps.fresh(OUTER)
    assert guest.maps.of(OUTER, USERS) == () and guest.maps.is_forged(OUTER, USERS)
    guest.write(range(ME, ME + 1))
    guest.maps.reset()
    assert guest.maps.of(OUTER, USERS) == ()


def test_whoever_is_not_guarded_writes_what_it_likes(guest):
    guest.tasks.running.identity = None
    assert guest.write(range(VICTIM, VICTIM + 1)) == []
    assert guest.maps.of(OUTER, USERS) == (range(VICTIM, VICTIM + 1),)


def test_the_agent_s_are_known_too(guest):
    guest.words[SEQ + 16], guest.tasks.running = OUTER, None
    guest.hooks[UID_WRITE]()
    guest.memory[OUTER, USERS] = (range(5),)
    assert guest.maps.of(OUTER, USERS) == (range(5),)


def test_parents_that_go_round_end(guest):
    guest.words[OUTER + 24] = OUTER
    assert guest.write(range(VICTIM, VICTIM + 1)) == [(OUTER, USERS)]
