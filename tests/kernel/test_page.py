"""A page's kind is told by a flag or by its type, as the kernel has it."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.page import find_page_shape

MEMBERS = {"page.page_type": 48, "page.flags": 0, "page._refcount": 52, "page.mapping": 24, "page.private": 40}
SIZES = {"page": 64}
TYPES = {"PGTY_slab": 0xF5, "PGTY_buddy": 0xF0, "PGTY_table": 0xF2, "PG_reserved": 13}


def shape(members, enums):
    return find_page_shape(fake_facts("vmemmap_base", members=MEMBERS | members, sizes=SIZES, enums=enums))


def test_7_1_types_in_a_byte_and_compound_info():
    found = shape({"page.compound_info": 8, "ptdesc.pt_mm": 32}, TYPES | {"PGTY_large_kmalloc": 0xF8})
    assert (found.slab_at, found.slab_mask, found.slab_value) == (48, 0xFF000000, 0xF5000000)
    assert (found.head_at, found.table_mm_at, found.reserved_mask) == (8, 32, 1 << 13)
    types = found.types
    assert types.is_buddy(0xF0000003) and not types.is_buddy(0xF5000003)
    assert types.is_large(0xF8000000) and not types.is_large(0xFFFFFFFF)
    assert types.table_key(0xF2000001) == types.table == 0xF2


def test_6_1_a_flag_and_cleared_bits():
    found = shape({"page.compound_head": 8, "page.pt_mm": 32}, {"PG_slab": 9, "PG_reserved": 12})
    assert (found.slab_at, found.slab_mask, found.slab_value) == (0, 1 << 9, 1 << 9)
    types = found.types
    assert types.is_buddy(0xFFFFFF7F) and not types.is_buddy(0xFFFFFFFF) and not types.is_buddy(0)
    assert types.table is None and not types.is_large(0xF8000000)


def test_a_slab_that_is_a_bit_of_the_type_is_not_taken_for_a_flag():
    """Linux 6.10: enum pagetype { PG_slab = 0x01000000 }."""
    with pytest.raises(MissingFactError, match="PGTY_slab"):
        shape({"page.compound_head": 8, "ptdesc.pt_mm": 32}, {"PG_slab": 0x01000000, "PG_reserved": 12})


def test_on_real_kernels(real_facts):
    found = find_page_shape(real_facts)
    assert found.page_bytes == 64 and found.head_at == 8
    assert found.slab_value == found.slab_value & found.slab_mask != 0
