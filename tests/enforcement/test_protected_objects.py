"""Ids are put back where they are the task's, and nowhere else: not into memory that is another's by now."""

from types import SimpleNamespace

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.enforcement import protected_objects
from thinbox.enforcement.protected_objects import ProtectedObjectReader
from thinbox.isolation.policies.guard import ProtectedObject

TASK, OLD, NEW = 0x10000, 0x20000, 0x30000
CRED, REAL = 8, 16
USAGE, FIRST = 0, 4
IDS, OTHER = b"\x01" * 16, b"\x02" * 16


class Kernel:
    def __init__(self, monkeypatch, *, cred=OLD, real=OLD, old=IDS, new=OTHER, usage=3):
        self.memory = bytearray(1 << 18)
        self.put(TASK + CRED, cred.to_bytes(8, "little"))
        self.put(TASK + REAL, real.to_bytes(8, "little"))
        for at, ids, count in ((OLD, old, usage), (NEW, new, 7)):
            self.put(at + USAGE, (count & 0xFFFFFFFF).to_bytes(4, "little"))
            self.put(at + FIRST, ids)
        view = SimpleNamespace(
            facts=fake_facts(members={"subprocess_info.path": 40}),
            read_u64=lambda at, _root: self.word(at, 8), read_u32=lambda at, _root: self.word(at, 4),
        )  # fmt: skip
        memory = SimpleNamespace(
            read_virtual=lambda _root, at, size: bytes(self.memory[at : at + size]),
            word_at=lambda _root, at: self.word(at, 8),
        )
        shape = SimpleNamespace(
            task_cred_at=CRED,
            task_real_cred_at=REAL,
            usage_at=USAGE,
            run_at=FIRST,
            run_bytes=len(IDS),
            namespace_at=40,
            groups_at=48,
            first_namespace_at=0,
        )
        monkeypatch.setattr(protected_objects, "find_cred_shape", lambda _facts: shape)
        maps = SimpleNamespace(
            uid_map_at=0, gid_map_at=0, extent_count_at=0, extents_at=4, more_extents_at=8,
            group_count_at=4, group_list_at=8,
        )  # fmt: skip
        monkeypatch.setattr(protected_objects, "find_identity", lambda _facts: maps)
        self.reader = ProtectedObjectReader(view, memory)
        self.known = ProtectedObject(OLD + FIRST, IDS + bytes(16), is_identity=True)

    def put(self, at, data):
        self.memory[at : at + len(data)] = data

    def word(self, at, size):
        return int.from_bytes(self.memory[at : at + size], "little")

    def put_back(self, *, real_only=False):
        found = self.reader.put_back(TASK, self.known, 0, real_only=real_only)
        for at, data in found:
            self.put(at, data)
        return found


def test_what_was_changed_in_place_is_written_in_place(monkeypatch):
    kernel = Kernel(monkeypatch, old=OTHER)
    assert kernel.put_back() == tuple((OLD + at, data) for at, data in ((FIRST, IDS), (40, bytes(8)), (48, bytes(8))))


def test_pointers_are_put_back_to_what_is_still_there_and_counted(monkeypatch):
    kernel = Kernel(monkeypatch, cred=NEW, real=NEW)
    kernel.put_back()
    assert (kernel.word(TASK + CRED, 8), kernel.word(TASK + REAL, 8)) == (OLD, OLD)
    assert kernel.word(OLD + USAGE, 4) == 3 + 2
    assert kernel.memory[NEW + FIRST : NEW + FIRST + 16] == OTHER


def test_of_another_only_its_own_pointer_is_put_back_not_what_it_works_with_for_a_while(monkeypatch):
    kernel = Kernel(monkeypatch, cred=NEW, real=NEW)
    kernel.put_back(real_only=True)
    assert (kernel.word(TASK + CRED, 8), kernel.word(TASK + REAL, 8)) == (NEW, OLD)
    assert kernel.word(OLD + USAGE, 4) == 3 + 1


@pytest.mark.parametrize("change", [{"old": OTHER}, {"usage": 0}, {"usage": -5}, {"usage": 1 << 30}])
def test_nothing_is_written_into_what_is_another_s_by_now(monkeypatch, change):
    kernel = Kernel(monkeypatch, cred=NEW, real=NEW, **change)
    before = bytes(kernel.memory)
    assert kernel.put_back() == () and bytes(kernel.memory) == before


def test_where_the_task_still_holds_it_both_are_put_back(monkeypatch):
    kernel = Kernel(monkeypatch, cred=NEW, real=OLD, old=OTHER)
    kernel.put_back()
    assert kernel.word(TASK + CRED, 8) == OLD and kernel.memory[OLD + FIRST : OLD + FIRST + 16] == IDS


GROUPS = 0x3800
LIST = (2).to_bytes(4, "little") + (1000).to_bytes(4, "little") + (1001).to_bytes(4, "little")
"""How many, and which."""


@pytest.mark.parametrize("forged", [(3).to_bytes(4, "little"), LIST[:4] + bytes(4), (1 << 31).to_bytes(4, "little")])
def test_a_list_of_groups_is_read_and_put_back_with_its_length(monkeypatch, forged):
    kernel = Kernel(monkeypatch)
    kernel.put(OLD + 48, GROUPS.to_bytes(8, "little"))
    kernel.put(GROUPS + 4, LIST)
    kernel.known = kernel.reader.identity(TASK, 0, TASK)
    assert kernel.known.groups == LIST
    kernel.put(GROUPS + 4, forged)
    assert not kernel.reader.identity(TASK, 0, TASK).is_as(kernel.known)
    kernel.put_back()
    assert kernel.reader.identity(TASK, 0, TASK).is_as(kernel.known)
    assert kernel.memory[GROUPS + 4 : GROUPS + 4 + len(LIST)] == LIST
