"""What a refusal says, and what the CPU was doing by the fault's error code."""

import pytest
from thinbox.isolation.verdict import PLANNED, Access, AccessKind, Violation, kind_of, remedy
from thinbox.paging import FAULT_FETCH, FAULT_PRESENT, FAULT_USER, FAULT_WRITE


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (0, AccessKind.READ),
        (FAULT_PRESENT | FAULT_USER, AccessKind.READ),
        (FAULT_WRITE, AccessKind.WRITE),
        (FAULT_WRITE | FAULT_PRESENT, AccessKind.WRITE),
        (FAULT_FETCH, AccessKind.FETCH),
        (FAULT_FETCH | FAULT_WRITE, AccessKind.FETCH),
    ],
)
def test_the_kind_of_an_access_is_in_its_error_code(error, kind):
    assert kind_of(error) is kind


def test_a_place_is_a_symbol_and_an_offset_or_an_address():
    inside = Access(0x1012, AccessKind.READ, 0, "f", 0x1000, 0x1100)
    assert (inside.offset, inside.place) == (0x12, "f+0x12")
    outside = Access(0x1012, AccessKind.READ, 0, None, 0, 0)
    assert (outside.offset, outside.place) == (0, "0x1012")


def test_a_sentence_names_what_was_refused_and_by_whom():
    of = lambda **more: Violation("read", "why", "6b", 0x1012, "f", 0x12, "sci", "fetch", **more).sentence()
    assert of() == "read was killed: fetch at f+0x12 (0x1012) refused by rule 6b of policy sci: why"
    assert of(view="strict") == "read was killed: fetch at f+0x12 (0x1012) refused by rule 6b of view strict: why"
    bare = Violation("read", "why", "6c", 0x1012, None, 0, "sci", "write").sentence()
    assert bare == "read was killed: write at 0x1012 refused by rule 6c of policy sci: why"
    planned = Violation("read", "the plan says so", "plan", 0, None, 0, "p", PLANNED).sentence()
    assert planned == "read was killed: the plan says so"


@pytest.mark.parametrize(
    ("policy", "rule", "better"),
    [
        ("sci", "6b", "live"), ("sci", "6c", "live"), ("function", "6c", "live"), ("transfer", "6c", "live"),
        ("sci+guard", "6b", "live+guard"), ("patch", "6c (posted)", "live"), ("function", "6b", ""), ("live", "6b", ""),
        ("live", "6c", ""), ("patch", "limits (posted)", ""), ("callgraph", "G", ""),
    ],
)  # fmt: skip
def test_a_kill_says_which_policy_a_program_without_guilt_runs_under(policy, rule, better):
    text = remedy(Violation("read", "why", rule, 0x1012, "f", 0x12, policy, "fetch"))
    assert text.startswith(f"if that was no attack, try --policy {better}, which") if better else not text
    assert not remedy(Violation("read", "why", rule, 0x1012, "f", 0x12, policy, "fetch", view="strict"))
    assert not remedy(Violation("read", "why", rule, 0x1012, "f", 0x12, policy, "write"))
