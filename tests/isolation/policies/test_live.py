"""Policy live: generated code at its start and from inside itself; everything else as policy function."""

from types import SimpleNamespace

import pytest
from thinbox.isolation.policies import load_policy
from thinbox.isolation.policies.live import Live
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
