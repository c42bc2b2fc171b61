"""Policy live: generated code at its start and from inside itself; everything else as policy function."""

from types import SimpleNamespace

import pytest
from thinbox.isolation.policies import load_policy
from thinbox.isolation.policies.function import Function
from thinbox.isolation.policies.live import Live, judges_ends
from thinbox.isolation.verdict import Access, AccessKind

START, END = 0xFFFFFFFFC0000654, 0xFFFFFFFFC0002654


def access(vaddr, *, generated=True, kind=AccessKind.FETCH):
    return Access(vaddr, kind, vaddr, "bpf_prog_1", START, END, generated)


def call(source=None, *, mapped=True):
    return SimpleNamespace(source=source, is_executable=lambda _vaddr: mapped, symbol_at=lambda _vaddr: None, notes={})


def block(end):
    return SimpleNamespace(start=end - 16, end=end, straight=False)


def test_the_start_of_listed_code_is_granted_and_never_for_good():
    verdict = Live().check_access(access(START), call())
    assert verdict.granted and not verdict.cacheable


def test_its_middle_is_granted_from_inside_it_only():
    inside, outside = block(START + 0x100), block(0xFFFFFFFF81000100)
    assert Live().check_access(access(START + 0x1000), call(inside)).granted
    assert not Live().check_access(access(START + 0x1000), call(outside)).granted
    assert not Live().check_access(access(START + 0x1000), call(None)).granted
    assert not Live().check_access(access(START + 0x1000), call(inside, mapped=False)).granted


@pytest.mark.parametrize("name", ["sci", "patch", "function", "transfer"])
def test_every_other_policy_refuses_it_by_rule_6c(name):
    view = SimpleNamespace(granted_pages=0, **vars(call()))
    verdict = load_policy(name).check_access(access(START), view)
    assert not verdict.granted and verdict.rule == "6c"


@pytest.mark.parametrize(
    ("source", "granted"),
    [
        (SimpleNamespace(start=START - 8, end=START, straight=False), False),
        (SimpleNamespace(start=START - 8, end=START + 1, straight=False), True),
        (SimpleNamespace(start=END - 8, end=END, straight=False), True),
        (SimpleNamespace(start=END - 8, end=END + 1, straight=False), False),
        (SimpleNamespace(start=END - 8, end=END + 8, straight=True), True),
        (SimpleNamespace(start=START - 8, end=START + 8, straight=True), False),
    ],
)
def test_inside_is_where_the_last_instruction_begins(source, granted):
    """A block that runs straight into the next page has not run its last instruction: its start counts."""
    assert Live().check_access(access(START + 0x1000), call(source)).granted == granted


def test_everything_else_is_as_policy_function_says():
    assert Live().grants_all_data
    for wanted in (
        access(START, kind=AccessKind.READ),
        access(START, generated=False),
        access(START + 8, generated=False),
    ):
        assert Live().check_access(wanted, call()) == Function().check_access(wanted, call())
    assert Live().check_access(access(START, generated=False), call()).granted
    assert not Live().check_access(access(START + 8, generated=False), call()).granted


@pytest.mark.parametrize(
    ("name", "judges"),
    [
        ("live", True),
        ("function", True),
        ("guard", True),
        ("callgraph", True),
        ("sci", False),
        ("patch", False),
        ("transfer", False),
        ("live+guard", True),
        ("live+sci", False),
    ],
)
def test_ends_are_judged_only_if_every_part_does(name, judges):
    assert judges_ends(load_policy(name)) is judges
