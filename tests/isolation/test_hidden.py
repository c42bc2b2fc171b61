"""The judgement of a view, as a table: which page, for which rule, is refused in whose name."""

import pytest
from thinbox.isolation import view
from thinbox.isolation.hidden import PageFacts, PageKind, check_page

P, S = view.PERMISSIVE, view.STRICT
B, BOTH, NOBODY, OWN = frozenset({"b"}), frozenset({"a", "b"}), frozenset({None}), frozenset({"a"})
K = PageKind
G, R, BRIEF = "granted", "refused", "brief"


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
        state = (BRIEF if found.is_brief else G) if found.verdict.granted else R
        assert state == wanted, (rule, found)
        if state == R:
            assert found.owner == owner
            assert ("tenant b" in found.verdict.reason) == (owner == "b")
