"""Whose a page is: the flags of its word, and whether an obj_cgroup stands between, which is measured."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.memcg import charges_by_objcg, find_memcg_shape

MEMBERS = {
    "page.memcg_data": 56, "obj_cgroup.memcg": 16, "task_struct.cgroups": 100, "css_set.subsys": 8,
    "mem_cgroup.css": 0, "cgroup_subsys_state.parent": 80,
}  # fmt: skip


def shape(**enums):
    return find_memcg_shape(fake_facts("root_mem_cgroup", members=MEMBERS, enums={"memory_cgrp_id": 4, **enums}))


def test_flags_are_two_bits_or_with_extensions_three():
    assert shape(MEMCG_DATA_OBJCGS=1, MEMCG_DATA_KMEM=2).flags == 3
    newer = shape(MEMCG_DATA_OBJEXTS=1, MEMCG_DATA_KMEM=2, __NR_OBJEXTS_FLAGS=8)
    assert (newer.flags, newer.set_css_at) == (7, 8 + 4 * 8)


def test_flags_of_another_meaning_are_refused():
    with pytest.raises(MissingFactError, match="flags of memcg_data"):
        shape(MEMCG_DATA_OBJEXTS=2, MEMCG_DATA_KMEM=1)


OWN, OBJCG, OTHERS = 0x1000, 0x2000, 0x3000


@pytest.mark.parametrize(("pointers", "by_objcg"), [([OWN], False), ([OBJCG], True), ([OTHERS, OBJCG, OWN], True)])
def test_a_page_of_the_tasks_own_says_how_pages_are_charged(pointers, by_objcg):
    assert charges_by_objcg(pointers, {OWN}.__contains__, {OBJCG: OWN}.get) is by_objcg


@pytest.mark.parametrize("pointers", [[], [OTHERS]])
def test_where_none_says_so_views_are_refused(pointers):
    with pytest.raises(MissingFactError, match="user page of this task"):
        charges_by_objcg(pointers, {OWN}.__contains__, lambda _objcg: 0)


def test_on_real_kernels(real_facts):
    if not real_facts.types.has_member("page", "memcg_data"):
        pytest.skip("no page.memcg_data: views are refused on this kernel")
    assert find_memcg_shape(real_facts).flags in (3, 7)
