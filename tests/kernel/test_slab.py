"""Owners of slab objects are found where the kernel keeps them."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.slab import find_slab_shape

MEMBERS = {
    "slab.objects": (336, 15), "slab.slab_cache": 8, "kmem_cache.name": 96, "kmem_cache.size": 28,
}  # fmt: skip


OLD = {"page.objects": (336, 15), "page.slab_cache": 24, "kmem_cache.name": 96, "kmem_cache.size": 24}


def shape(members, **sizes):
    return find_slab_shape(fake_facts(members=MEMBERS | members, sizes={"slab": 64, **sizes}))


def old_shape(members):
    return find_slab_shape(fake_facts(members=OLD | members, sizes={"page": 64}))


def test_7_3_owners_may_lie_in_the_objects():
    found = shape(
        {"slab.obj_exts": 56, "slabobj_ext._objcg": 0, "slab.obj_exts_in_object": (352, 1),
         "slab.obj_exts_needs_objcg": (353, 1)}, slabobj_ext=8)  # fmt: skip
    assert (found.objects_at, found.objects_shift, found.objects_mask) == (40, 16, 0x7FFF)
    assert (found.in_object, found.owned) == (1 << 32, 1 << 33)
    assert (found.vector_at, found.owner_bytes, found.owner_at) == (56, 8, 0)


def test_6_10_a_vector_of_extensions():
    found = shape({"slab.obj_exts": 56, "slabobj_ext.objcg": 8}, slabobj_ext=16)
    assert (found.owner_bytes, found.owner_at, found.in_object, found.owned) == (16, 8, 0, 0)


def test_6_1_a_vector_of_pointers():
    found = shape({"slab.memcg_data": 56})
    assert (found.vector_at, found.owner_bytes, found.owner_at) == (56, 8, 0)


@pytest.mark.parametrize("word", ["page.obj_cgroups", "page.memcg_data"])
def test_5_10_and_5_15_a_slab_is_described_in_its_page(word):
    found = old_shape({word: 56, "kmem_cache.cpu_slab": 0})
    assert (found.vector_at, found.owner_bytes, found.owner_at) == (56, 8, 0)
    assert (found.cache_at, found.objects_at, found.objects_shift, found.objects_mask) == (24, 40, 16, 0x7FFF)
    assert (found.in_object, found.owned) == (0, 0)


def test_of_another_allocator_a_page_has_the_members_too_and_is_refused():
    """CONFIG_SLAB: struct page is the same, the words mean something else."""
    with pytest.raises(MissingFactError, match="cpu_slab"):
        old_shape({"page.obj_cgroups": 56, "kmem_cache.cpu_cache": 0})


def test_a_vector_elsewhere_than_the_rest_is_refused():
    with pytest.raises(MissingFactError, match="vector of owners"):
        shape({"page.memcg_data": 56})


@pytest.mark.parametrize(("owner", "tag"), [("objcg", "ref"), ("_objcg", "_ctref")])
def test_an_extension_with_room_for_profiling_behind_the_owner_is_two_words(owner, tag):
    found = shape({"slab.obj_exts": 56, f"slabobj_ext.{owner}": 0, f"slabobj_ext.{tag}": 8}, slabobj_ext=16)
    assert (found.owner_bytes, found.owner_at) == (16, 0)


@pytest.mark.parametrize("profiled", ["slabobj_ext._ctref", "slabobj_ext.ref"])
def test_extensions_that_share_a_place_with_profiling_are_refused(profiled):
    with pytest.raises(MissingFactError, match="allocation profiling"):
        shape({"slab.obj_exts": 56, "slabobj_ext._objcg": 0, profiled: 0}, slabobj_ext=8)


def test_a_bit_elsewhere_than_beside_the_count_is_refused():
    with pytest.raises(MissingFactError, match="beside slab.objects"):
        shape({"slab.obj_exts": 56, "slabobj_ext._objcg": 0, "slab.obj_exts_in_object": (5, 1)}, slabobj_ext=8)


def test_on_real_kernels(real_facts):
    found = find_slab_shape(real_facts)
    assert found.owner_bytes == 8 and found.objects_mask == 0x7FFF
