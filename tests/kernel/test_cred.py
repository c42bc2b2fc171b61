"""Credentials are one run of ids and capabilities, or refused."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.cred import find_cred_shape

RUN = ("uid", "gid", "fsuid", "fsgid", "securebits", "cap_inheritable", "cap_effective", "cap_ambient")
OFFSETS = {f"cred.{name}": 8 * (number + 1) for number, name in enumerate(RUN)}
OTHERS = {"task_struct.cred": 0x700, "task_struct.real_cred": 0x6F8, "cred.usage": 0}
MEMBERS = OFFSETS | OTHERS | {"cred.user_ns": 0x90, "cred.group_info": 0xA0}


def test_the_run_is_from_the_first_id_to_the_end_of_the_last_capability():
    found = find_cred_shape(fake_facts("init_user_ns", members=MEMBERS))
    assert (found.run_at, found.run_bytes, found.file_ids_at) == (8, 64, (24, 32))


def test_members_in_another_order_are_refused():
    """What is compared would not be all of them."""
    with pytest.raises(MissingFactError, match="one run"):
        find_cred_shape(fake_facts("init_user_ns", members=MEMBERS | {"cred.uid": 0x80}))


@pytest.mark.parametrize("name", ["user_ns", "group_info"])
def test_namespace_and_groups_lie_behind_the_run(name):
    with pytest.raises(MissingFactError, match="behind its capabilities"):
        find_cred_shape(fake_facts("init_user_ns", members=MEMBERS | {f"cred.{name}": 0}))


def test_on_real_kernels(real_facts):
    found = find_cred_shape(real_facts)
    assert 40 < found.run_bytes < 200
