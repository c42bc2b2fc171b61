"""The running task is found where each kernel keeps it, and the stack's end with it."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.current import find_current

HOT = {"pcpu_hot.current_task": 0, "pcpu_hot.top_of_stack": 24}


def test_newest_each_is_a_variable_of_its_own():
    found = find_current(fake_facts("__per_cpu_offset", "current_task", "cpu_current_top_of_stack", "cpu_tss_rw"))
    assert (found.offsets_at, found.task_at, found.stack_end_at, found.hot_at) == (0x1000, 0x2000, 0x3000, 0)


def test_6_2_to_6_14_both_are_in_pcpu_hot():
    found = find_current(fake_facts("__per_cpu_offset", "pcpu_hot", members=HOT))
    assert (found.task_at, found.stack_end_at, found.hot_at) == (0x2000, 0x2018, 0x2000)


def test_5_10_the_stacks_end_is_in_the_tss():
    facts = fake_facts("__per_cpu_offset", "current_task", "cpu_tss_rw", members={"tss_struct.x86_tss.sp1": 12})
    found = find_current(facts)
    assert (found.task_at, found.stack_end_at) == (0x2000, 0x300C)


def test_a_kernel_for_one_cpu_has_no_offsets():
    assert find_current(fake_facts("current_task", "cpu_current_top_of_stack")).offsets_at == 0


def test_another_shape_is_refused_with_everything_that_was_looked_for():
    with pytest.raises(MissingFactError, match="current_task or pcpu_hot.*cpu_current_top_of_stack or cpu_tss_rw"):
        find_current(fake_facts("__per_cpu_offset"))


def test_on_real_kernels(real_facts):
    found = find_current(real_facts)
    assert 0 < found.task_at != found.stack_end_at
