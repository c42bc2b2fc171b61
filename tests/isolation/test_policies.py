"""Policies as pure functions."""

import pytest
from thinbox.errors import InputError
from thinbox.isolation.policies import load_policy
from thinbox.isolation.policies.all_of import AllOf
from thinbox.isolation.policies.live import Live
from thinbox.isolation.policies.patch import MAX_ADDRESSES, MAX_PAGES, Patch
from thinbox.isolation.policies.sci import Sci
from thinbox.isolation.verdict import Access, AccessKind, Violation

START = 0xFFFF_FFFF_8100_0F00
END = START + 0x3000


class View:
    def __init__(self, *executable, granted_pages=0):
        self.executable = {vaddr >> 12 for vaddr in executable}
        self.granted_pages = granted_pages
        self.notes = {}

    def is_executable(self, vaddr):
        return vaddr >> 12 in self.executable


def fetch(vaddr, symbol="blake2s_compress_generic", start=START):
    return Access(vaddr, AccessKind.FETCH, vaddr, symbol, start, END)


def test_sci_grants_data_and_function_starts_for_good():
    data = Sci().check_access(Access(1 << 63, AccessKind.WRITE, START, None, 0, 0), View())
    start = Sci().check_access(fetch(START), View())
    assert data.granted and data.cacheable
    assert start.granted and start.cacheable and start.rule == "6a"


def test_sci_grants_the_next_page_only_if_start_and_page_before_are_mapped():
    second, third = (START & ~0xFFF) + 0x1000, (START & ~0xFFF) + 0x2000
    assert Sci().check_access(fetch(second), View(START)).granted
    assert Sci().check_access(fetch(third + 0x10), View(START, second)).granted
    assert not Sci().check_access(fetch(third), View(START)).granted, "a page was skipped"
    assert not Sci().check_access(fetch(third), View(second)).granted, "the start was never reached"
    granted = Sci().check_access(fetch(third + 0x10), View(START, second))
    assert granted.while_mapped == (START, second), "it holds as long as these are mapped"


def test_of_policies_that_need_pages_mapped_all_pages_are_needed():
    page = (START & ~0xFFF) + 0x1000
    verdict = AllOf((Sci(), Live())).check_access(fetch(page), View(START))
    assert verdict.cacheable
    assert verdict.while_mapped == tuple(sorted({START, page - 0x1000}))


def test_sci_refuses_the_middle_of_a_function_in_its_first_page():
    verdict = Sci().check_access(fetch(START + 0xC5), View(START - 0x1000))
    assert not verdict.granted
    assert verdict.rule == "6b"


def test_sci_refuses_what_has_no_symbol():
    assert Sci().check_access(Access(START, AccessKind.FETCH, START, None, 0, 0), View()).rule == "6c"


def test_patch_wants_the_page_before_to_hold_a_recorded_address():
    view, policy = View(), Patch()
    assert policy.check_access(fetch(START), view).granted
    assert policy.check_access(fetch(START + 0x1000), view).granted
    assert not policy.check_access(fetch(START + 0x2000), view).granted, "a function of three pages is killed wrongly"


def test_patch_refuses_everything_past_its_limits():
    view, policy = View(), Patch()
    for number in range(MAX_ADDRESSES):
        assert policy.check_access(fetch(START + 0x10000 * number, start=START + 0x10000 * number), view).granted
    data = Access(1 << 63, AccessKind.READ, START, None, 0, 0)
    assert not policy.check_access(data, view).granted
    assert not policy.check_access(data, View(granted_pages=MAX_PAGES)).granted
    assert policy.check_access(data, View(granted_pages=MAX_PAGES - 1)).granted


def test_a_users_policy_is_loaded_by_name():
    assert load_policy("thinbox.isolation.policies.sci:Sci").name == "sci"
    for spec in ("nosuch", "thinbox.isolation.policies.sci:Nosuch", "nosuch.module:X", "json:dumps", ":", "a:"):
        with pytest.raises(InputError):
            load_policy(spec)


def test_a_violation_says_everything_in_one_sentence():
    text = Violation("getuid", "no reason", "6b", 0xFFFF_FFFF_8100_0FC5, "f", 0xC5, "sci", "fetch").sentence()
    for word in ("getuid", "0xffffffff81000fc5", "f+0xc5", "6b", "sci", "no reason"):
        assert word in text
    assert "\n" not in text
