"""A case without preparation still looks at what the kernel wrote."""

import pytest

from thinbox.audit import case, expect
from thinbox.audit.case_runner import CaseRunner, make_checkpoint
from thinbox.isolation.policies import load_policy

OWN_PARAMETER = (0, b"\xff" * 4)


@pytest.fixture(scope="module")
def runner(guest):
    return CaseRunner(guest, make_checkpoint(guest), load_policy("sci"))


@pytest.fixture
def made():
    """Makes a plain case that is not in the corpus afterwards."""
    before = dict(case._CASES)

    def make(*args, **options) -> case.Case:
        case.plain(*args, **options)
        return list(case._CASES.values())[-1]

    yield make
    case._CASES.clear()
    case._CASES.update(before)


def test_a_case_passes_when_the_call_wrote_what_it_must(runner, made) -> None:
    tried = made("sched_getparam", "tried", OWN_PARAMETER, expect.ZERO, holds=bytes(4))
    assert tried.success
    for isolated in (False, True):
        assert runner.run(tried, isolated=isolated).problem is None


def test_a_case_fails_when_the_call_wrote_something_else(runner, made) -> None:
    tried = made("sched_getparam", "tried", OWN_PARAMETER, expect.ZERO, holds=b"\1\0\0\0")
    assert "not 00000000" in runner.run(tried, isolated=False).problem


def test_a_case_that_expects_an_error_is_an_error_path_whatever_its_number(runner, made) -> None:
    tried = made("rt_sigpending", "tried", (1, 8), expect.fails(14))
    assert not tried.success
    assert runner.run(tried, isolated=True).ret == -14


def test_a_case_that_expects_one_number_is_a_success_path(made) -> None:
    assert made("getpriority", "tried", (0, 0), expect.exactly(20)).success
