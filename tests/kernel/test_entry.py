"""Entries, teardowns and dispatch are found by the names and the code each kernel has."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.entry import find_dispatchers, find_entry, takes_regs_second

NAMES = (
    "__entry_text_start", "__irqentry_text_end", "do_syscall_64", "native_irq_return_iret", "__switch_to_asm",
    "finish_task_switch.isra.0", "wake_up_new_task", "flush_tlb_all", "flush_tlb_mm_range",
    "rewind_stack_and_make_dead", "do_group_exit",
)  # fmt: skip


def test_a_teardown_given_by_its_end_and_one_by_its_size_are_told_apart():
    new = find_entry(fake_facts(*NAMES, "__vunmap_range_noflush", "unmap_kernel_range_noflush"))
    old = find_entry(fake_facts(*NAMES, "unmap_kernel_range_noflush"))
    assert (new.range_teardowns, new.sized_teardowns) == ((0xC000,), ())
    assert (old.range_teardowns, old.sized_teardowns) == ((), (0xC000,))


def test_a_missing_name_is_a_hole_and_all_are_named():
    with pytest.raises(MissingFactError, match="wake_up_new_task.*__vunmap_range_noflush or vunmap_range_noflush"):
        find_entry(fake_facts(*(name for name in NAMES if name != "wake_up_new_task")))


def test_the_number_is_known_by_the_tracer_or_where_that_is_inline_by_the_dispatcher():
    whole = find_dispatchers(fake_facts("syscall_trace_enter.constprop.0", "x64_sys_call"))
    inline = find_dispatchers(fake_facts("x64_sys_call", "ia32_sys_call"))
    assert (whole.tracers, whole.switches) == ((0x1000,), ())
    assert (inline.tracers, inline.switches) == ((), (0x1000, 0x2000))
    with pytest.raises(MissingFactError, match="syscall_trace_enter or x64_sys_call"):
        find_dispatchers(fake_facts("ia32_sys_call"))


MOV_RDI, MOV_RSI, OTHER = bytes.fromhex("4889e7"), bytes.fromhex("4889e6"), bytes.fromhex("4863f0")


def test_the_order_of_arguments_is_read_off_the_entry_code():
    assert takes_regs_second(OTHER + MOV_RSI + OTHER)
    assert not takes_regs_second(MOV_RSI + OTHER + MOV_RDI)  # the last one counts
    with pytest.raises(MissingFactError, match="argument of do_syscall_64"):
        takes_regs_second(OTHER)


def test_on_real_kernels(real_kernel):
    image, facts = real_kernel
    found = find_entry(facts)
    assert found.switches_in and found.whole_teardowns
    assert bool(found.range_teardowns) != bool(found.sized_teardowns)
    dispatch = find_dispatchers(facts)
    assert bool(dispatch.tracers) != bool(dispatch.switches)
    start = facts.symbols.address_of("entry_SYSCALL_64")
    code = image.read_vaddr(start, 0x200)
    names = facts.types.parameters_of("do_syscall_64") if facts.types.has_member("task_struct", "__state") else ()
    if names:
        assert takes_regs_second(code) is (names[0] != "regs"), "BTF says otherwise"
