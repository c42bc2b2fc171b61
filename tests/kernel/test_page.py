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
    assert types.table.holds(0xF2000001) and not types.table.holds(0xF5000001) and not types.counts_tables


def test_6_11_bits_of_the_type_that_are_cleared():
    """enum pagetype of 6.11; the lower 16 bits are the owner's own."""
    bits = {"PG_buddy": 0x40000000, "PG_table": 0x10000000, "PG_slab": 0x02000000, "PAGE_TYPE_BASE": 0x80000000}
    found = shape({"page.compound_head": 8, "ptdesc.pt_mm": 32}, bits | {"PG_reserved": 12})
    assert (found.slab_at, found.slab_mask, found.slab_value) == (48, 0x82000000, 0x80000000)
    types = found.types
    assert types.is_buddy(0xBFFFFFFF) and types.is_buddy(0xBFFF0003) and not types.is_buddy(0xFFFFFFFF)
    assert types.table.holds(0xEFFFFFFF) and not types.table.holds(0xFDFFFFFF) and types.counts_tables
    # What is mapped counts how often there.
    assert not any(test.holds(value) for test in (types.buddy, types.table) for value in (0, 1, 7, 0xFFFF))
    slab = 0xFDFFFFFF
    assert slab & found.slab_mask == found.slab_value != 0xFFFFFFFF & found.slab_mask


def test_6_10_the_same_of_other_values():
    bits = {"PG_buddy": 0x80, "PG_table": 0x200, "PG_slab": 0x1000, "PAGE_TYPE_BASE": 0xF0000000}
    found = shape({"page.compound_head": 8, "ptdesc.pt_mm": 32}, bits | {"PG_reserved": 12})
    assert (found.slab_mask, found.slab_value) == (0xF0001000, 0xF0000000)
    assert found.types.is_buddy(0xFFFFFF7F) and found.types.table.holds(0xFFFFFDFF)


@pytest.mark.parametrize("bad", [{"PG_slab": 0x3000}, {"PG_table": 0}, {"PG_buddy": 0x10000000}])
def test_types_that_are_no_bits_beside_the_base_are_refused(bad):
    bits = {"PG_buddy": 0x80, "PG_table": 0x200, "PG_slab": 0x1000, "PAGE_TYPE_BASE": 0xF0000000, "PG_reserved": 12}
    with pytest.raises(MissingFactError, match="one bit each"):
        shape({"page.compound_head": 8, "ptdesc.pt_mm": 32}, bits | bad)


def test_6_1_a_flag_and_cleared_bits():
    found = shape({"page.compound_head": 8, "page.pt_mm": 32}, {"PG_slab": 9, "PG_reserved": 12})
    assert (found.slab_at, found.slab_mask, found.slab_value) == (0, 1 << 9, 1 << 9)
    types = found.types
    assert types.is_buddy(0xFFFFFF7F) and not types.is_buddy(0xFFFFFFFF) and not types.is_buddy(0)
    assert types.table is None and not types.is_large(0xF8000000)
    table = types.measured_table(0xFFFFFDFF)
    assert table.holds(0xFFFFFDFF) and not table.holds(0xFFFFFFFF) and not table.holds(0xFFFFFBFF)


def test_5_10_a_page_table_is_one_whether_it_is_charged_or_not():
    found = shape({"page.compound_head": 8, "page.pt_mm": 32, "page.mem_cgroup": 56}, {"PG_slab": 9, "PG_reserved": 12})
    plain, charged = 0xFFFFFBFF, 0xFFFFF9FF
    for measured in (plain, charged):
        table = found.types.measured_table(measured)
        assert table.holds(plain) and table.holds(charged)
        assert not table.holds(0xFFFFFFFF) and not table.holds(0xFFFFFDFF), "charged memory of the kernel's is no table"


def test_a_slab_that_is_no_flag_is_not_taken_for_one():
    """A bit of a page's type, of a kernel that does not say which bits a type has."""
    with pytest.raises(MissingFactError, match="PGTY_slab"):
        shape({"page.compound_head": 8, "ptdesc.pt_mm": 32}, {"PG_slab": 0x01000000, "PG_reserved": 12})


def test_on_real_kernels(real_facts):
    found = find_page_shape(real_facts)
    assert found.page_bytes == 64 and found.head_at == 8
    assert found.slab_value == found.slab_value & found.slab_mask != 0
