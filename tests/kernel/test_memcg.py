"""Whose a page is: the flags of its word, and whether an obj_cgroup stands between, which is measured."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.memcg import charges_by_objcg, find_memcg_shape

MEMBERS = {
    "page.memcg_data": 56, "obj_cgroup.memcg": 16, "task_struct.cgroups": 100, "css_set.subsys": 8,
    "mem_cgroup.css": 0, "cgroup_subsys_state.parent": 80,
}  # fmt: skip


OLD = {name: at for name, at in MEMBERS.items() if name != "page.memcg_data"} | {"page.page_type": 48}
FLAGS = {"MEMCG_DATA_OBJCGS": 1, "MEMCG_DATA_KMEM": 2}


def shape(members=MEMBERS, sizes=("slab",), **enums):
    return find_memcg_shape(
        fake_facts(
            "root_mem_cgroup", members=members, sizes=dict.fromkeys(sizes, 64), enums={"memory_cgrp_id": 4, **enums}
        )
    )


def test_flags_are_two_bits_or_with_extensions_three():
    assert shape(**FLAGS).flags == 3
    newer = shape(MEMCG_DATA_OBJEXTS=1, MEMCG_DATA_KMEM=2, __NR_OBJEXTS_FLAGS=8)
    assert (newer.flags, newer.set_css_at) == (7, 8 + 4 * 8)


def test_6_1_a_page_of_the_kernels_is_told_by_its_flag_and_charged_by_an_objcg():
    found = shape(**FLAGS)
    assert (found.data_at, found.kernel_at, found.kernel_mask, found.kernel_value) == (56, 56, 2, 2)
    assert found.kernel_by_objcg


@pytest.mark.parametrize("newer", ["obj_stock", "folio"])
def test_5_14_to_5_16_likewise(newer):
    assert shape(sizes=(newer,), **FLAGS).kernel_by_objcg


def test_5_11_and_5_12_where_that_flag_stands_for_another_pointer_are_refused():
    with pytest.raises(MissingFactError, match=r"by way of an obj_cgroup \(5\.13\)"):
        shape(sizes=(), **FLAGS)


def test_5_10_a_page_of_the_kernels_is_told_by_its_type_and_charged_itself():
    found = shape(OLD | {"page.mem_cgroup": 56, "page.obj_cgroups": 56}, sizes=())
    assert (found.data_at, found.flags, found.kernel_at, found.kernel_by_objcg) == (56, 3, 48, False)
    count = 1 << 32

    def is_kernels(page_type):
        return (count | page_type) & found.kernel_mask == found.kernel_value

    # A page table, memory of no type, user memory that is mapped nowhere, once, often.
    assert is_kernels(0xFFFFF9FF) and is_kernels(0xFFFFFDFF)
    assert not any(is_kernels(value) for value in (0xFFFFFFFF, 0xFFFFFBFF, 0, 1, 0x1FF, 0xFFFF))


@pytest.mark.parametrize("members", [{}, {"page.obj_cgroups": 48}])
def test_a_vector_of_owners_elsewhere_is_refused(members):
    with pytest.raises(MissingFactError, match="obj_cgroups"):
        shape(OLD | {"page.mem_cgroup": 56} | members, sizes=())


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
    assert find_memcg_shape(real_facts).flags in (3, 7)
