"""What a user namespace maps counts only as far as a call wrote it that may; without a guest."""

import struct
from types import SimpleNamespace

import pytest
from thinbox.enforcement import id_maps
from thinbox.enforcement.id_maps import IdMaps
from thinbox.isolation.policies.guard import ProtectedObject
from thinbox.kernel.id_maps import GROUPS, USERS, IdMapShape
from thinbox.machine import cpu as registers

FIRST, OUTER, INNER, CRED, FILE, SEQ = 0x1000, 0x2000, 0x3000, 0x7000, 0x8000, 0x9000
UID_WRITE, GID_WRITE, MAKES, FREES, BEHIND, STACK = 0x100, 0x200, 0x300, 0x400, 0x500, 0xF000
SHAPE = IdMapShape(
    writers={UID_WRITE: USERS, GID_WRITE: GROUPS},
    makes_at=MAKES, frees_at=FREES, cred_namespace_at=8, work_at=40, count_at=52,
    file_private_at=8, seq_private_at=16, parent_at=24, owner_at=32,
)  # fmt: skip
ME, VICTIM, TASK = 1000, 2000, 7
SETGID, SETUID, SYS_ADMIN = 1 << 6, 1 << 7, 1 << 21


def identity(*, namespace=FIRST, user=ME, effective=0):
    capabilities = struct.pack("<5Q", 0, 0, effective, 0, 0)
    content = struct.pack("<8I", *[user] * 8) + bytes(4) + capabilities + struct.pack("<2Q", namespace, 0)
    return ProtectedObject(0, content, is_identity=True, first_namespace=FIRST)


class Guest:
    """OUTER lies in the first namespace, INNER in OUTER; both are ME's."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(id_maps, "find_id_map_shape", lambda _facts: SHAPE)
        self.words = {FILE + 8: SEQ, STACK: BEHIND}
        self.memory, self.hooks, self.regs = {}, {}, [0] * 16
        target = SimpleNamespace(
            view=SimpleNamespace(facts=None, symbols=SimpleNamespace(is_text=lambda vaddr: vaddr == BEHIND)),
            kernel_root=0,
            memory=SimpleNamespace(word_at=lambda _root, at: self.words.get(at, 0)),
            cpu=SimpleNamespace(regs=self.regs, add_code_hook=self.hooks.__setitem__),
        )
        self.tasks = SimpleNamespace(running=SimpleNamespace(task=TASK, identity=identity()))
        self.maps = IdMaps(
            target, self.tasks, lambda *key: self.memory.get(key, ()), lambda *key: repr(self.memory.get(key)).encode()
        )
        self.make(OUTER, FIRST)
        self.make(INNER, OUTER)
        self.maps.ends(self.tasks.running)

    def make(self, namespace, parent, *, result=0, behind=STACK + 8):
        """The kernel's function makes a namespace, and returns."""
        self.regs[registers.RDI], self.regs[registers.RSP] = CRED, STACK
        self.hooks[MAKES]()
        self.words |= {CRED + 8: namespace, namespace + 24: parent, namespace + 32: ME}
        self.regs[registers.RAX], self.regs[registers.RSP] = result, behind
        self.hooks[BEHIND]()

    def write(self, *wanted, namespace=OUTER, writer=None, function=UID_WRITE):
        """The kernel's function runs, and writes; what a call's end finds."""
        if writer is not None:
            self.tasks.running.identity = writer
        self.words[SEQ + 16], self.regs[registers.RDI] = namespace, FILE
        self.hooks[function]()
        if wanted:
            self.memory[namespace, SHAPE.writers[function]] = wanted
        return self.maps.ends(self.tasks.running)

    def is_forged(self, namespace=OUTER, kind=USERS):
        return (namespace, kind) in self.maps.forged((namespace,))


@pytest.fixture
def guest(monkeypatch):
    return Guest(monkeypatch)


def test_what_nobody_wrote_maps_nothing(guest):
    assert guest.maps.of(OUTER, USERS) == () and not guest.is_forged()
    guest.memory[OUTER, USERS] = (range(VICTIM, VICTIM + 1),)
    assert guest.maps.of(OUTER, USERS) == () and guest.is_forged()


def test_ones_own_id_may_be_mapped_and_counts(guest):
    own = range(ME, ME + 1)
    assert guest.write(own) == []
    assert guest.maps.of(OUTER, USERS) == (own,)
    assert guest.maps.of(OUTER, GROUPS) == ()
    guest.memory[OUTER, USERS] = (range(VICTIM, VICTIM + 1),)
    assert guest.maps.of(OUTER, USERS) == () and guest.is_forged()


def test_it_counts_while_the_call_that_wrote_it_still_runs(guest):
    guest.words[SEQ + 16], guest.regs[registers.RDI] = OUTER, FILE
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


def test_a_capability_counts_in_all_below_where_one_has_it(guest):
    assert guest.write(range(100_000, 165_536), writer=identity(effective=SETUID)) == []
    assert guest.write(range(100_005, 100_010), namespace=INNER, writer=identity(user=VICTIM, effective=SETUID)) == []


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
    del guest.memory[OUTER, USERS]
    guest.make(OUTER, FIRST)
    assert guest.maps.of(OUTER, USERS) == () and not guest.is_forged()
    guest.memory[OUTER, USERS] = (range(ME, ME + 1),)
    assert guest.is_forged()


def test_what_no_kernel_function_made_is_no_namespace(guest):
    """It is neither believed, nor written to."""
    guest.maps.reset()
    guest.words[OUTER + 24] = FIRST
    assert guest.write(range(ME, ME + 1)) == []
    assert guest.maps.of(OUTER, USERS) == () and guest.maps.standing(OUTER, TASK).line == ()
    assert guest.maps.all() == () and guest.maps.forged((OUTER, 0)) == []


@pytest.mark.parametrize("more", [{"result": -12 & (1 << 64) - 1}, {"behind": STACK + 16}])
def test_what_failed_or_returned_elsewhere_made_none(guest, more):
    guest.maps.reset()
    guest.make(OUTER, FIRST, **more)
    assert guest.maps.all() == ()


def test_the_task_that_makes_one_is_known_until_its_call_ends(guest):
    guest.make(0x4000, FIRST)
    assert guest.maps.standing(0x4000, TASK).is_made_now
    assert not guest.maps.standing(0x4000, TASK + 1).is_made_now and not guest.maps.standing(OUTER, TASK).is_made_now
    guest.maps.ends(guest.tasks.running)
    assert not guest.maps.standing(0x4000, TASK).is_made_now
    assert not guest.maps.standing(0x4000, 0).is_made_now


def test_parent_and_owner_are_those_it_was_made_with(guest):
    guest.words |= {OUTER + 24: INNER, OUTER + 32: VICTIM}
    assert guest.maps.standing(INNER, TASK).line == ((OUTER, ME), (FIRST, ME))


@pytest.mark.parametrize(("references", "left"), [(1, ()), (2, (OUTER,))])
def test_one_that_is_freed_is_none_any_more_nor_those_above_that_nobody_else_uses(guest, references, left):
    guest.words[OUTER + 48] = references << 32
    guest.regs[registers.RDI] = INNER + 40
    guest.hooks[FREES]()
    assert guest.maps.all() == left


def test_what_was_written_can_be_put_back(guest):
    guest.write(range(ME, ME + 1))
    right = guest.maps.raw(OUTER, USERS)
    guest.memory[OUTER, USERS] = (range(VICTIM, VICTIM + 1),)
    assert guest.maps.forged((OUTER,)) == [(OUTER, USERS)]
    assert guest.maps.raw(OUTER, USERS) == right == repr((range(ME, ME + 1),)).encode()


def test_a_map_that_is_half_written_is_no_forged_one(guest):
    """Another task runs between the kernel's writing of the extents and of their number."""
    guest.words[SEQ + 16], guest.regs[registers.RDI] = OUTER, FILE
    guest.hooks[UID_WRITE]()
    guest.memory[OUTER, USERS] = ()
    assert not guest.is_forged() and guest.maps.of(OUTER, USERS) == ()
    guest.memory[OUTER, USERS] = (range(ME, ME + 1),)
    assert guest.maps.ends(guest.tasks.running) == [] and guest.maps.of(OUTER, USERS) == (range(ME, ME + 1),)


def test_whoever_is_not_guarded_writes_what_it_likes(guest):
    guest.tasks.running.identity = None
    assert guest.write(range(VICTIM, VICTIM + 1)) == []
    assert guest.maps.of(OUTER, USERS) == (range(VICTIM, VICTIM + 1),)


def test_the_agent_s_are_known_too(guest):
    guest.words[SEQ + 16], guest.tasks.running = OUTER, None
    guest.regs[registers.RDI] = FILE
    guest.hooks[UID_WRITE]()
    guest.memory[OUTER, USERS] = (range(5),)
    assert guest.maps.of(OUTER, USERS) == (range(5),)
