"""Code that the kernel lists is found where it has lists; what it does not generate is skipped."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.generated_code import find_generated_code

FILTERS = {
    "task_struct.seccomp": 2000, "seccomp.filter": 8, "seccomp_filter.prev": 128, "seccomp_filter.prog": 136,
    "bpf_prog.bpf_func": 48, "bpf_prog.jited_len": 12,
}  # fmt: skip


def test_what_a_kernel_does_not_generate_is_none():
    found = find_generated_code(fake_facts())
    assert (found.programs, found.trampolines, found.filters) == (None, None, None)


def test_filters_hang_one_behind_the_other():
    filters = find_generated_code(fake_facts(members=FILTERS, sizes={"seccomp_filter": 144})).filters
    assert (filters.newest_at, filters.before_at, filters.program_at) == (2008, 128, 136)
    assert (filters.start_at, filters.size_at) == (48, 12)


@pytest.mark.parametrize("head", ["bpf_kallsyms", "ftrace_ops_trampoline_list"])
def test_a_list_of_something_unknown_is_refused(head):
    with pytest.raises(MissingFactError, match="generated code"):
        find_generated_code(fake_facts(head))


def test_on_real_kernels(real_facts):
    found = find_generated_code(real_facts)
    assert found.programs and found.trampolines and found.filters
