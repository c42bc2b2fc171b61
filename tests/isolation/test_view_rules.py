"""The compiled question, interpreted: what is plainly visible, on a made-up kernel of a few words."""

import pytest
from tests.support.made_up_kernel import (
    MEMMAP,
    OBJECTS,
    TOP,
    OWN,
    ROOT,
    OTHER,
    MINE,
    THEIRS,
    VECTOR,
    PAGE,
    RESERVED,
    SLAB,
    Kernel,
)
from thinbox.isolation import view_rules


@pytest.mark.parametrize(
    ("page", "permissive", "strict"),
    [
        ({"flags": RESERVED, "count": 0}, True, True),
        ({"memcg": OWN}, True, True),
        ({"memcg": OTHER}, False, False),
        ({"memcg": ROOT}, True, False),
        ({"memcg": MINE | 2}, True, True),
        ({"memcg": THEIRS | 2}, False, False),
        ({"memcg": (OBJECTS + 0x5000) | 2}, False, False),
        ({}, True, True),
        ({"count": 0}, False, False),
        ({"memcg": VECTOR | 1, "objects": 3}, False, False),
        ({"head": MEMMAP + 64 * 6 + 1, "memcg": OWN}, False, False),
    ],
)
def test_whole_pages(page, permissive, strict):
    for rule, wanted in ((view_rules.PERMISSIVE, permissive), (view_rules.STRICT, strict)):
        kernel = Kernel(rule)
        # The page before is another's: the head of a compound page decides for its tail.
        kernel.page(6, memcg=OTHER)
        kernel.page(**page)
        assert kernel.visible() is wanted


class OldKernel(Kernel):
    """As Linux 5.10 has it: a page of the kernel's is told by its type, and charged to a memory cgroup itself."""

    def __init__(self, rule):
        super().__init__(rule)
        self.view[view_rules.KERNEL_AT], self.view[view_rules.KERNEL_BY_OBJCG] = 48, 0
        self.view[view_rules.KERNEL_MASK], self.view[view_rules.KERNEL_VALUE] = 0xF0000200, 0xF0000000


STACK, TABLE, UNCHARGED_TABLE, UNMAPPED = 0xFFFFFDFF, 0xFFFFF9FF, 0xFFFFFBFF, 0xFFFFFFFF


@pytest.mark.parametrize(
    ("page", "permissive", "strict", "mappable"),
    [
        ({"memcg": OWN, "page_type": STACK}, True, True, False),
        ({"memcg": OWN, "page_type": TABLE}, True, True, False),
        ({"memcg": OTHER, "page_type": STACK}, False, False, False),
        ({"memcg": OTHER, "page_type": TABLE}, False, False, False),
        # Not charged to the root: the kernel never does that, so it is not for all either.
        ({"memcg": ROOT, "page_type": STACK}, False, False, False),
        ({"memcg": 0, "page_type": UNCHARGED_TABLE}, True, True, False),
        ({"memcg": OWN, "page_type": UNMAPPED}, True, True, True),
        # Mapped once and often: the word counts, and is no type.
        ({"memcg": OWN, "page_type": 0}, True, True, True),
        ({"memcg": OWN, "page_type": 0x3FF}, True, True, True),
        ({"memcg": OTHER, "page_type": 0}, False, False, False),
        ({"memcg": ROOT, "page_type": 0}, True, False, False),
        # An obj_cgroup of the tenant's own is no memory cgroup here.
        ({"memcg": MINE, "page_type": STACK}, False, False, False),
        ({"flags": SLAB, "memcg": OWN, "page_type": UNMAPPED}, False, False, False),
    ],
)
def test_pages_of_5_10(page, permissive, strict, mappable):
    for rule, wanted in ((view_rules.PERMISSIVE, permissive), (view_rules.STRICT, strict)):
        kernel = OldKernel(rule)
        kernel.page(**page)
        assert kernel.visible() is wanted
    assert view_rules.is_plain_mapping(kernel.words, TOP, 0x1000, kernel.view, PAGE) is mappable


def test_a_slab_of_5_10_keeps_obj_cgroups_all_the_same():
    kernel = OldKernel(view_rules.STRICT)
    kernel.page(flags=SLAB, memcg=VECTOR | 1, objects=2, page_type=UNMAPPED)
    kernel.store(VECTOR, MINE)
    assert kernel.visible()
    kernel.store(VECTOR + 8, THEIRS)
    assert not kernel.visible()


@pytest.mark.parametrize(
    ("owners", "visible"),
    [((MINE, 0, MINE), True), ((0, 0, 0), True), ((MINE, 0, THEIRS), False), ((THEIRS, MINE, MINE), False)],
)
def test_a_slab_is_visible_only_if_no_object_is_anothers(owners, visible):
    for rule in (view_rules.PERMISSIVE, view_rules.STRICT):
        kernel = Kernel(rule)
        kernel.page(flags=SLAB, memcg=VECTOR | 1, objects=3)
        for number, owner in enumerate(owners):
            kernel.store(VECTOR + 8 * number, owner)
        assert kernel.visible() is visible


def test_what_has_no_struct_page_is_not_visible():
    kernel = Kernel(view_rules.PERMISSIVE)
    assert not view_rules.is_plainly_visible(kernel.words, TOP, 0x1000, kernel.view, 1 << 30)


@pytest.mark.parametrize(
    ("offset", "own"),
    [(0, True), (999, True), (1000, False), (1999, False), (2000, True), (3000, False), (4095, False)],
)
def test_of_a_mixed_slab_the_object_touched_decides(offset, own):
    """Objects of 1,000 bytes: mine, theirs, nobody's; behind them there is none."""
    kernel = Kernel(view_rules.PERMISSIVE)
    kernel.page(flags=SLAB, memcg=VECTOR | 1, objects=3)
    cache = OBJECTS + 0x700
    kernel.store(MEMMAP + 64 * 7 + 24, cache)
    kernel.store(cache + 24, 1000 << 32)
    for number, owner in enumerate((MINE, THEIRS, 0)):
        kernel.store(VECTOR + 8 * number, owner)
    assert view_rules.is_object_own(kernel.words, TOP, 0x1000, kernel.view, PAGE + offset) is own


def test_in_a_tail_page_objects_are_counted_from_the_head():
    kernel = Kernel(view_rules.PERMISSIVE)
    kernel.page(6, flags=SLAB, memcg=VECTOR | 1, objects=2)
    kernel.page(7, head=MEMMAP + 64 * 6 + 1)
    cache = OBJECTS + 0x700
    kernel.store(MEMMAP + 64 * 6 + 24, cache)
    kernel.store(cache + 24, 4096 << 32)
    kernel.store(VECTOR, THEIRS)
    kernel.store(VECTOR + 8, MINE)
    for number, own in ((6, False), (7, True)):
        assert view_rules.is_object_own(kernel.words, TOP, 0x1000, kernel.view, number << 12) is own


@pytest.mark.parametrize(
    ("page", "permissive", "strict"),
    [
        ({"memcg": OWN}, True, True),
        ({"memcg": OTHER}, False, False),
        ({"memcg": ROOT}, True, False),
        ({"memcg": ROOT, "mapping": OBJECTS + 0x801}, True, True),
        ({"flags": RESERVED, "memcg": OWN}, False, False),
        ({"flags": SLAB, "memcg": VECTOR | 1}, False, False),
        ({"memcg": MINE | 2}, False, False),
        ({}, False, False),
        ({"count": 0}, False, False),
    ],
)
def test_user_memory_and_page_cache_alone_are_plainly_mapped(page, permissive, strict):
    for rule, wanted in ((view_rules.PERMISSIVE, permissive), (view_rules.STRICT, strict)):
        kernel = Kernel(rule)
        kernel.page(**page)
        assert view_rules.is_plain_mapping(kernel.words, TOP, 0x1000, kernel.view, PAGE) is wanted


FILE, ANON = OBJECTS + 0x800, OBJECTS + 0x801


@pytest.mark.parametrize(
    ("page", "foreign"),
    [
        ({"memcg": OTHER, "mapping": FILE}, True),
        ({"memcg": ROOT, "mapping": FILE}, True),
        ({"memcg": 0, "mapping": FILE}, True),
        ({"memcg": OWN, "mapping": FILE}, False),
        ({"memcg": OTHER, "mapping": ANON}, False),
        ({"memcg": OTHER}, False),
        ({"memcg": THEIRS | 2, "mapping": FILE}, False),
        ({"flags": SLAB, "memcg": VECTOR | 1, "mapping": FILE}, False),
        ({"flags": RESERVED, "mapping": FILE}, False),
    ],
)
def test_page_cache_of_others_is_told_from_the_rest(page, foreign):
    for rule in (view_rules.PERMISSIVE, view_rules.STRICT):
        kernel = Kernel(rule)
        kernel.page(**page)
        assert view_rules.is_foreign_file(kernel.words, TOP, 0x1000, kernel.view, PAGE) is foreign
