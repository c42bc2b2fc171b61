"""Owners of slab objects are found where the kernel keeps them."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.slab import find_slab_shape

MEMBERS = {
    "slab.objects": (336, 15), "slab.slab_cache": 8, "kmem_cache.name": 96, "kmem_cache.size": 28,
}  # fmt: skip


def shape(members, **sizes):
    return find_slab_shape(fake_facts(members=MEMBERS | members, sizes=sizes))


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


@pytest.mark.parametrize("profiled", ["slabobj_ext._ctref", "slabobj_ext.ref"])
def test_extensions_with_room_for_profiling_are_refused(profiled):
    with pytest.raises(MissingFactError, match="allocation profiling"):
        shape({"slab.obj_exts": 56, "slabobj_ext.objcg": 0, profiled: 8}, slabobj_ext=16)


def test_a_bit_elsewhere_than_beside_the_count_is_refused():
    with pytest.raises(MissingFactError, match="beside slab.objects"):
        shape({"slab.obj_exts": 56, "slabobj_ext._objcg": 0, "slab.obj_exts_in_object": (5, 1)}, slabobj_ext=8)


def test_on_real_kernels(real_facts):
    if not real_facts.types.has_type("slab"):
        pytest.skip("no struct slab: views are refused on this kernel")
    found = find_slab_shape(real_facts)
    assert found.owner_bytes == 8 and found.objects_mask == 0x7FFF
