"""Policy guard: what is compared at the end of a call, and who may change it."""

import pytest
from thinbox.isolation.policies import load_policy
from thinbox.isolation.policies.guard import CHANGES_IDENTITY, Guard, ProtectedObject, is_born_with

IDENTITY = ProtectedObject(0x1000, b"\x01" * 40, is_identity=True)
ROOT = ProtectedObject(0x1000, bytes(40), is_identity=True)
PATH = ProtectedObject(0x2000, b"/sbin/modprobe", is_identity=False)
OTHER = ProtectedObject(0x2000, b"/tmp/x", is_identity=False)


def test_what_did_not_change_is_no_violation():
    assert Guard().check_end("read", (IDENTITY, PATH), (IDENTITY, PATH)) is None


def test_ids_change_only_in_calls_that_may():
    verdict, vaddr = Guard().check_end("read", (IDENTITY,), (ROOT,))
    assert (verdict.granted, verdict.rule, vaddr) == (False, "G1", 0x1000)
    assert all(Guard().check_end(name, (IDENTITY,), (ROOT,)) is None for name in CHANGES_IDENTITY)


def test_root_may_write_a_helpers_path():
    assert Guard().check_end("write", (ROOT, PATH), (ROOT, OTHER)) is None
    assert Guard().check_end("read", (ROOT, PATH), (ROOT, OTHER)) is not None


@pytest.mark.parametrize("name", ["read", "setuid", "write"])
def test_a_helpers_path_changes_in_no_call(name):
    verdict, vaddr = Guard().check_end(name, (IDENTITY, PATH), (IDENTITY, OTHER))
    assert (verdict.rule, vaddr) == ("G2", 0x2000)


def test_in_a_combination_it_still_guards():
    both = load_policy("sci+guard")
    verdict, _vaddr = both.check_end("read", (IDENTITY,), (ROOT,))
    assert both.guards_end and verdict.rule == "G1 of guard"
    assert not load_policy("sci+function").guards_end


def test_ids_do_not_change_between_calls():
    assert Guard().check_between(IDENTITY.content, IDENTITY) is None
    verdict, vaddr = load_policy("live+guard").check_between(IDENTITY.content, ROOT)
    assert (verdict.granted, verdict.rule, vaddr) == (False, "G3 of guard", 0x1000)


@pytest.mark.parametrize("path", [b"/sbin/modprobe", b"/usr/lib/core-catcher", b"/sbin/request-key"])
def test_the_kernel_starts_its_own_programs(path):
    core = ProtectedObject(0x3000, b"|/usr/lib/core-catcher %p %e", is_identity=False)
    assert Guard().check_program(path, (IDENTITY, PATH, core), 0x4000) is None


@pytest.mark.parametrize("path", [b"/bin/sh", b"", b"/sbin/modprobe-2", b"/sbin", b"|/sbin/modprobe"])
def test_the_kernel_starts_no_others(path):
    empty = ProtectedObject(0x3000, b"", is_identity=False)
    verdict, vaddr = Guard().check_program(path, (IDENTITY, PATH, empty), 0x4000)
    assert (verdict.granted, verdict.rule, vaddr) == (False, "G4", 0x4000)


def test_ids_that_cannot_be_read_any_more_have_changed():
    lost = ProtectedObject(0x7000, b"", is_identity=True)
    verdict, _vaddr = Guard().check_end("read", (IDENTITY,), (lost,))
    assert verdict.rule == "G1"


def test_a_task_is_born_with_its_parents_ids_and_in_a_new_namespace_with_other_capabilities():
    other_capabilities = ProtectedObject(0x1000, IDENTITY.content[:-8] + bytes(8), is_identity=True)
    assert is_born_with(IDENTITY, IDENTITY, in_new_namespace=False)
    assert not is_born_with(IDENTITY, other_capabilities, in_new_namespace=False)
    assert is_born_with(IDENTITY, other_capabilities, in_new_namespace=True)
    assert not is_born_with(IDENTITY, ROOT, in_new_namespace=True)
    gone = ProtectedObject(0x1000, b"", is_identity=True)
    assert not is_born_with(gone, gone, in_new_namespace=True)
