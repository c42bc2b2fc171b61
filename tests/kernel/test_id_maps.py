"""Where the maps of user namespaces are written."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.id_maps import GROUPS, USERS, find_id_map_shape

MEMBERS = {
    "file.private_data": 200,
    "seq_file.private": 112,
    "user_namespace.parent": 208,
    "user_namespace.owner": 220,
    "user_namespace.work": 240,
    "user_namespace.ns.count": 300,
    "cred.user_ns": 0x90,
}
WRITERS = ("proc_uid_map_write", "proc_gid_map_write")
MAKERS = ("create_user_ns", "free_user_ns")


def test_each_map_has_its_function():
    found = find_id_map_shape(fake_facts(*MAKERS, *WRITERS, members=MEMBERS))
    assert sorted(found.writers.values()) == [USERS, GROUPS]
    assert (found.file_private_at, found.seq_private_at, found.parent_at, found.owner_at) == (200, 112, 208, 220)


def test_a_kernel_without_user_namespaces_has_none():
    assert find_id_map_shape(fake_facts(members=MEMBERS)).writers == {}


def test_a_kernel_that_has_them_and_lacks_a_function_is_refused():
    """Every map would count as forged."""
    with pytest.raises(MissingFactError, match="proc_gid_map_write"):
        find_id_map_shape(fake_facts(*MAKERS, WRITERS[0], members=MEMBERS))


def test_on_real_kernels(real_facts):
    found = find_id_map_shape(real_facts)
    assert len(found.writers) == 2
    assert found.makes_at
    assert found.frees_at
