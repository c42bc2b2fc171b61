"""The list of traceable functions, where a kernel has one."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.ftrace import FtracePages, find_ftrace_pages

MEMBERS = {"ftrace_page.next": 0, "ftrace_page.records": 8, "ftrace_page.index": 16}


def test_groups_of_records_are_chained():
    facts = fake_facts("ftrace_pages_start", members=MEMBERS, sizes={"dyn_ftrace": 16})
    assert find_ftrace_pages(facts) == FtracePages(0x1000, 0, 8, 16, 16)


def test_a_kernel_without_the_list_lacks_nothing_and_one_with_another_is_refused():
    assert find_ftrace_pages(fake_facts()) is None
    with pytest.raises(MissingFactError, match="struct dyn_ftrace"):
        find_ftrace_pages(fake_facts("ftrace_pages_start", members=MEMBERS))


def test_on_real_kernels(real_facts):
    assert find_ftrace_pages(real_facts).record_bytes == real_facts.types.size_of("dyn_ftrace")
