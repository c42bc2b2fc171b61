"""Policy guard: what is compared at the end of a call, and who may change it."""

import struct
from dataclasses import replace

import pytest
from thinbox.isolation.policies import load_policy
from thinbox.isolation.policies.guard import (
    CHANGES_IDENTITY,
    Guard,
    ProtectedObject,
    Standing,
    is_born_with,
    is_list_changed,
)

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


@pytest.mark.parametrize("name", ["read", "setgroups", "setresuid", "execve", "unshare"])
def test_a_list_of_groups_changes_in_no_call(name):
    """`setgroups` makes a new one."""
    with_groups = replace(IDENTITY, groups=b"\x01\0\0\0\xe8\x03\0\0")
    verdict, _vaddr = Guard().check_end(name, (IDENTITY,), (with_groups,))
    assert verdict.rule == "G1"
    assert Guard().check_between(IDENTITY, with_groups)[0].rule == "G3"
    assert not is_born_with(IDENTITY, with_groups, in_new_namespace=False)
    assert not is_born_with(IDENTITY, with_groups, in_new_namespace=True)
    elsewhere = replace(with_groups, content=IDENTITY.content[:-8] + bytes(8))
    assert not is_list_changed(IDENTITY, elsewhere)


def test_ids_do_not_change_between_calls():
    assert Guard().check_between(IDENTITY, IDENTITY) is None
    verdict, vaddr = load_policy("live+guard").check_between(IDENTITY, ROOT)
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


SETGID, SETUID, ALL = 1 << 6, 1 << 7, (1 << 41) - 1
FIRST, OWN = 0xFFFFFFFF82000000, 0xFFFF888001000000
NOT_KNOWN = Standing()


SYS_ADMIN, MADE_NOW = 1 << 21, Standing(line=((FIRST, 1000),), is_made_now=True)


def identity(
    users=(1000,) * 4,
    groups=(1000,) * 4,
    permitted=0,
    effective=None,
    namespace=FIRST,
    more=7,
    gap=0,
    standing=NOT_KNOWN,
):
    """As the kernel has it: since 6.3 a capability set is a word of its own, aligned."""
    ids = [value for pair in zip(users, groups, strict=True) for value in pair]
    sets = (0, permitted, permitted if effective is None else effective, ALL, 0)
    content = (
        struct.pack("<8I", *ids) + bytes(4 + gap) + struct.pack("<5Q", *sets) + struct.pack("<2Q", namespace, more)
    )
    return ProtectedObject(0x1000, content, is_identity=True, first_namespace=FIRST, standing=standing)


@pytest.mark.parametrize("gap", [0, 4])
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("setuid", {}, {"users": (0,) * 4}),
        ("setresuid", {"users": (1000, 1001, 1000, 1000)}, {"users": (1000, 0, 1000, 1000)}),
        ("setgid", {}, {"groups": (0,) * 4}),
        ("setuid", {}, {"groups": (0,) * 4}),
        ("setgid", {"permitted": SETUID}, {"permitted": SETUID, "groups": (0,) * 4}),
        ("setfsuid", {}, {"permitted": ALL}),
        ("setuid", {}, {"permitted": 0, "effective": ALL}),
        ("setuid", {"namespace": OWN}, {"namespace": FIRST}),
        ("setuid", {"namespace": OWN, "permitted": SETUID}, {"namespace": OWN, "permitted": SETUID, "users": (5,) * 4}),
        ("execve, which failed", {}, {"users": (1000, 0, 0, 0), "permitted": ALL}),
        ("setgroups", {}, {"more": 8}),
        ("setuid", {"permitted": SETGID}, {"permitted": SETGID, "more": 8}),
        ("capset", {}, {"permitted": ALL}),
        ("capset", {}, {"users": (0,) * 4}),
        ("prctl", {}, {"permitted": ALL}),
        ("keyctl", {}, {"users": (0,) * 4}),
        ("keyctl", {}, {"namespace": OWN}),
        ("unshare", {}, {"users": (0,) * 4}),
        ("unshare", {}, {"permitted": ALL}),
        ("unshare", {}, {"namespace": OWN, "permitted": ALL}),
        ("unshare", {}, {"namespace": OWN, "permitted": ALL, "standing": Standing(line=((FIRST, 1000),))}),
        ("unshare", {"namespace": OWN}, {"namespace": OWN + 8, "permitted": ALL, "standing": MADE_NOW}),
        ("setns", {}, {"namespace": OWN, "permitted": ALL}),
        ("setns", {}, {"namespace": OWN, "permitted": ALL, "standing": Standing(line=((FIRST, 5),))}),
        (
            "setns",
            {"namespace": OWN},
            {"namespace": OWN + 8, "permitted": ALL, "standing": Standing(line=((FIRST, 1000),))},
        ),
        ("unshare", {"namespace": OWN}, {"namespace": FIRST, "permitted": ALL}),
        ("execve", {}, {"users": (0,) * 4}),
        ("execve", {}, {"groups": (0, 1000, 1000, 1000)}),
        ("execve", {"namespace": OWN}, {"namespace": FIRST}),
        ("execve", {}, {"more": 8}),
    ],
)
def test_a_call_gives_no_more_than_it_can(name, old, new, gap):
    old, new = identity(**old, gap=gap), identity(**new, gap=gap)
    verdict, vaddr = Guard().check_end(name, (old,), (new,))
    assert (verdict.granted, verdict.rule, vaddr) == (False, "G1" if "failed" in name else "G7", 0x1000)


def test_in_a_namespace_of_its_own_a_task_has_the_ids_that_it_maps():
    old = replace(identity(namespace=OWN, permitted=ALL), standing=Standing(users=(range(100_000, 100_010),)))
    for user, is_fine in ((100_003, True), (100_010, False), (0, False)):
        new = identity(namespace=OWN, permitted=ALL, users=(user,) * 4)
        assert (Guard().check_end("setresuid", (old,), (new,)) is None) == is_fine


@pytest.mark.parametrize("gap", [0, 4])
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("setuid", {"users": (0,) * 4, "permitted": ALL}, {}),
        ("setresuid", {"users": (1000, 1001, 1002, 1000)}, {"users": (1002, 1000, 1001, 1001)}),
        ("setuid", {"permitted": SETUID}, {"users": (5,) * 4, "permitted": SETUID}),
        ("setgid", {"permitted": SETGID}, {"groups": (5,) * 4, "permitted": SETGID}),
        ("setgroups", {"permitted": SETGID}, {"more": 8, "permitted": SETGID}),
        ("capset", {"permitted": ALL}, {"permitted": SETUID}),
        ("unshare", {}, {"namespace": OWN, "permitted": ALL, "standing": MADE_NOW}),
        ("setns", {}, {"namespace": OWN, "permitted": ALL, "standing": Standing(line=((FIRST, 1000),))}),
        (
            "setns",
            {"permitted": SYS_ADMIN},
            {"namespace": OWN, "permitted": ALL, "standing": Standing(line=((FIRST, 5),))},
        ),
        ("setns", {}, {"namespace": OWN, "permitted": ALL, "standing": Standing(line=((OWN + 8, 5), (FIRST, 1000)))}),
        ("execve", {}, {"users": (1000, 0, 0, 0), "permitted": ALL}),
        ("execve", {"permitted": ALL}, {}),
    ],
)
def test_what_a_call_can_give_it_may(name, old, new, gap):
    assert Guard().check_end(name, (identity(**old, gap=gap),), (identity(**new, gap=gap),)) is None


def test_ids_that_are_no_ids_any_more_are_changed_ones():
    gone = ProtectedObject(0x1000, b"", is_identity=True, first_namespace=FIRST)
    verdict, _vaddr = Guard().check_end("setuid", (identity(),), (gone,))
    assert verdict.rule == "G7"


def test_nobody_is_born_into_the_first_namespace_from_another():
    parent = identity(namespace=OWN)
    made = Standing(line=((OWN, 1000), (FIRST, 1000)), is_made_now=True)
    assert is_born_with(parent, identity(namespace=OWN + 4096, permitted=ALL, standing=made), in_new_namespace=True)
    for wrong in (NOT_KNOWN, MADE_NOW, replace(made, is_made_now=False)):
        child = identity(namespace=OWN + 4096, permitted=ALL, standing=wrong)
        assert not is_born_with(parent, child, in_new_namespace=True)
    assert not is_born_with(parent, identity(namespace=FIRST, permitted=ALL), in_new_namespace=True)
