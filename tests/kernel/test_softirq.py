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


def test_5_10_a_function_calls_them_on_that_stack():
    names = ("__do_softirq", "hardirq_stack_ptr", "asm_call_on_stack", "__x86_indirect_thunk_rsi")
    found = find_softirq(fake_facts(*names))
    assert (found.stack_at, found.below, found.called_by, found.thunk) == (0x2000, 16, 0x3000, 0x4000)
    # push %rbp; call *%rsi; leave: directly, or by way of the thunk, or of another function, which is none of them.
    assert found.ends_of_calls(b"\x55\xff\xd6\xc9") == (0x3003,)
    to = lambda vaddr: b"\x55\xe8" + (vaddr - 0x3006).to_bytes(4, "little", signed=True) + b"\xc9"
    assert found.ends_of_calls(to(0x4000)) == (0x3006,)
    assert found.ends_of_calls(to(0x4004)) == found.ends_of_calls(to(0x4000)[:5]) == ()
    assert find_softirq(fake_facts("__do_softirq", "hardirq_stack_ptr")).below == 8


def test_on_real_kernels(real_facts):
    found = find_softirq(real_facts)
    assert found.functions and found.stack_at
