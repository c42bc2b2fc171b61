"""The judgement of a view, as a table: which page, for which rule, is refused in whose name."""

import pytest
from thinbox.isolation import view_rules
from thinbox.isolation.page_ownership import PageFacts, PageKind, check_lower_table, check_mapping, check_page

P, S = view_rules.PERMISSIVE, view_rules.STRICT
B, BOTH, NOBODY, OWN = frozenset({"b"}), frozenset({"a", "b"}), frozenset({None}), frozenset({"a"})
K = PageKind
G, R, BRIEF = "granted", "refused", "one_block"


@pytest.mark.parametrize(
    ("facts", "function", "permissive", "strict", "owner"),
    [
        (PageFacts(K.STATIC), None, G, G, None),
        (PageFacts(K.FREE), None, R, R, None),
        (PageFacts(K.UNKNOWN), None, G, R, None),
        (PageFacts(K.UNKNOWN), "clear_page_erms", G, BRIEF, None),
        (PageFacts(K.UNKNOWN, here="a"), "pgd_alloc", G, BRIEF, None),
        (PageFacts(K.UNKNOWN, here="b"), "pgd_alloc", G, R, None),
        (PageFacts(K.MEMORY, OWN), None, G, G, None),
        (PageFacts(K.MEMORY, B), None, R, R, "b"),
        (PageFacts(K.MEMORY, B), "rb_erase", R, R, "b"),
        (PageFacts(K.MEMORY, NOBODY), None, G, R, None),
        (PageFacts(K.KERNEL, B), None, R, R, "b"),
        (PageFacts(K.KERNEL, B), "rb_erase", BRIEF, BRIEF, "b"),
        (PageFacts(K.KERNEL, NOBODY), None, G, G, None),
        (PageFacts(K.TABLE, B), None, R, R, "b"),
        (PageFacts(K.FILE, OWN), None, G, G, None),
        (PageFacts(K.FILE, B), None, R, R, "b"),
        (PageFacts(K.FILE, B, is_public=True), None, G, R, "b"),
        (PageFacts(K.FILE, B, is_held=True), None, G, G, None),
        (PageFacts(K.FILE, NOBODY), None, G, R, None),
        (PageFacts(K.FILE, NOBODY, is_public=True), None, G, G, None),
        (PageFacts(K.SLAB, OWN, "a", "filp"), None, G, G, None),
        (PageFacts(K.SLAB, BOTH, "a", "filp"), None, G, BRIEF, "b"),
        (PageFacts(K.SLAB, BOTH, None, "filp"), None, G, BRIEF, "b"),
        (PageFacts(K.SLAB, BOTH, "b", "filp"), None, R, R, "b"),
        (PageFacts(K.SLAB, BOTH, "b", "filp"), "rb_erase", BRIEF, BRIEF, "b"),
        (PageFacts(K.SLAB, B, "b", "task_struct"), None, G, BRIEF, "b"),
    ],
)
def test_every_kind_of_page_under_both_rules(facts, function, permissive, strict, owner):
    for rule, wanted in ((P, permissive), (S, strict)):
        found = check_page(rule, "a", facts, function)
        state = (BRIEF if found.is_one_block else G) if found.verdict.granted else R
        assert state == wanted, (rule, found)
        if state == R:
            assert found.owner == owner
            assert ("tenant b" in found.verdict.reason) == (owner == "b")


@pytest.mark.parametrize(
    ("facts", "granted", "owner"),
    [
        (PageFacts(PageKind.MEMORY, frozenset({"a"})), True, None),
        (PageFacts(PageKind.MEMORY, frozenset({None})), True, None),
        (PageFacts(PageKind.MEMORY, frozenset({"b"})), False, "b"),
        (PageFacts(PageKind.FILE, frozenset({"b"}), is_held=True), True, None),
        (PageFacts(PageKind.FILE, frozenset({"b"})), False, "b"),
        (PageFacts(PageKind.SLAB, frozenset({"a"}), "a"), False, None),
        (PageFacts(PageKind.SLAB, frozenset({"a", "b"}), "a"), False, "b"),
        (PageFacts(PageKind.TABLE, frozenset({"a"})), False, None),
        (PageFacts(PageKind.KERNEL, frozenset({"a"})), True, None),
        (PageFacts(PageKind.KERNEL, frozenset({"b"})), False, "b"),
        (PageFacts(PageKind.FREE), False, None),
        (PageFacts(PageKind.STATIC), False, None),
    ],
)
@pytest.mark.parametrize("rule", [view_rules.PERMISSIVE, view_rules.STRICT])
def test_what_a_user_page_table_may_map(rule, facts, granted, owner):
    found = check_mapping(rule, "a", facts)
    assert (found.verdict.granted, found.owner) == (granted, owner)
    assert granted or found.verdict.rule == "V7"


@pytest.mark.parametrize(
    ("kind", "owner", "typed", "granted"),
    [
        (PageKind.TABLE, "a", True, True),
        (PageKind.TABLE, None, True, True),
        (PageKind.TABLE, "b", True, False),
        (PageKind.KERNEL, "a", True, False),
        (PageKind.KERNEL, "a", False, True),
        (PageKind.KERNEL, "b", False, False),
        (PageKind.MEMORY, "a", True, False),
        (PageKind.MEMORY, "a", False, False),
        (PageKind.SLAB, None, False, False),
    ],
)
def test_what_an_upper_entry_may_name_as_the_next_table(kind, owner, typed, granted):
    found = check_lower_table("a", PageFacts(kind, frozenset({owner})), is_typed=typed)
    assert found.verdict.granted is granted and found.verdict.rule == "V7"


@pytest.mark.parametrize(
    ("owners", "held", "public", "writable", "rule"),
    [
        ({None}, True, True, False, "V8"),
        ({None}, False, True, False, "V8"),
        ({"b"}, True, False, False, "V8"),
        ({"b"}, True, False, True, None),
        ({"b"}, False, False, True, "V3"),
        ({None}, True, True, True, None),
        ({"a"}, False, False, False, None),
    ],
)
@pytest.mark.parametrize("view_rule", [view_rules.PERMISSIVE, view_rules.STRICT])
def test_a_file_is_written_only_by_who_may_write_it(view_rule, owners, held, public, writable, rule):
    facts = PageFacts(PageKind.FILE, frozenset(owners), is_held=held, is_public=public, is_writable=writable)
    found = check_page(view_rule, "a", facts, "memcpy", is_write=True).verdict
    assert (found.granted, None if found.granted else found.rule) == (rule is None, rule)
    if rule == "V8":
        assert check_page(view_rule, "a", facts, "memcpy", is_write=False).verdict.granted
