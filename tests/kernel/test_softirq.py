"""Both functions that run soft interrupts are known, and the stack they run on."""

from tests.support.fake_facts import fake_facts
from thinbox.kernel.softirq import find_softirq


def test_split_or_not():
    assert find_softirq(fake_facts("__do_softirq")).functions == (0x1000,)
    assert set(find_softirq(fake_facts("__do_softirq", "handle_softirqs")).functions) == {0x1000, 0x2000}


def test_the_stack_is_a_variable_or_in_pcpu_hot_or_there_is_none():
    hot = {"pcpu_hot.hardirq_stack_ptr": 32}
    assert find_softirq(fake_facts("__do_softirq", "hardirq_stack_ptr")).stack_at == 0x2000
    assert find_softirq(fake_facts("__do_softirq", "pcpu_hot", members=hot)).stack_at == 0x2020
    assert find_softirq(fake_facts("__do_softirq")).stack_at == 0


def test_on_real_kernels(real_facts):
    found = find_softirq(real_facts)
    assert found.functions and found.stack_at
