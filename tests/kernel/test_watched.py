"""Where a tenant's reach beyond its calls cannot be watched, nothing is isolated."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.watched import find_watched

PTRACE, STARTS, RUNS = "__ptrace_may_access", "call_usermodehelper_exec", "call_usermodehelper_exec_async"


def test_a_kernel_without_rings_or_programs_of_its_own_needs_neither():
    found = find_watched(fake_facts(PTRACE))
    assert found.traced == (0x1000,) and (found.programs, found.programs_run, found.operations) == ((), (), ())


@pytest.mark.parametrize(
    ("symbols", "members", "missing"),
    [
        ((STARTS, RUNS), {}, PTRACE),
        ((PTRACE, STARTS), {}, RUNS),
        ((PTRACE,), {"io_kiocb.opcode": 0}, "io_issue_sqe"),
    ],
)
def test_what_is_inline_is_refused(symbols, members, missing):
    with pytest.raises(MissingFactError, match=missing):
        find_watched(fake_facts(*symbols, members=members))


def test_on_real_kernels(real_facts):
    found = find_watched(real_facts)
    assert found.traced and found.programs and found.programs_run and found.operations
