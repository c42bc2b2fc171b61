"""Tables that name functions for other uses than calling them, and what dispatches calls: as a kernel has them."""

from tests.support.fake_facts import fake_facts
from thinbox.kernel.function_tables import FunctionTables, find_function_tables


def test_6_9_calls_are_dispatched_by_functions():
    found = find_function_tables(fake_facts("x64_sys_call", "ia32_sys_call", "sys_call_table"))
    assert found == FunctionTables(dispatchers=(0x1000, 0x2000), handlers=((0x3000, 8192),), ranges=())


def test_5_10_calls_are_dispatched_by_tables():
    found = find_function_tables(fake_facts("sys_call_table", "ia32_sys_call_table"))
    assert found == FunctionTables(dispatchers=(), handlers=((0x1000, 8192), (0x2000, 8192)), ranges=())


def test_a_table_lies_between_two_symbols():
    names = ("__start_mcount_loc", "__stop_mcount_loc", "__start___ksymtab")
    assert find_function_tables(fake_facts(*names)).ranges == ((0x1000, 0x2000),)


def test_on_real_kernels(real_facts):
    found = find_function_tables(real_facts)
    assert found.handlers and found.ranges and all(start <= end for start, end in found.ranges)
