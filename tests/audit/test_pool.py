"""Workers: all results come back, and a case that brings its process down costs only itself."""

import os
import signal

import pytest
from thinbox.audit.case import Case
from thinbox.audit.case_runner import CaseRunner, make_checkpoint
from thinbox.audit.pool import run_cases
from thinbox.errors import MachineError
from thinbox.isolation.policies import load_policy


@pytest.fixture(scope="module")
def make_runner(guest):
    checkpoint = make_checkpoint(guest)
    return lambda: CaseRunner(guest, checkpoint, load_policy("sci"))


def good(process):
    yield from process.measure()


def crashes(process):
    os.kill(os.getpid(), signal.SIGKILL)
    yield from process.measure()


def breaks(process):
    raise MachineError("broken on purpose")
    yield


CASES = [
    Case("getpid", "first", True, good),
    Case("getuid", "dies", True, crashes),
    Case("getgid", "breaks", True, breaks),
    Case("getppid", "last", True, good),
]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_worker_that_dies_costs_its_own_case_only(make_runner, jobs):
    found = dict(run_cases(CASES, make_runner, jobs, range(4)))
    assert sorted(found) == [0, 1, 2, 3]
    assert found[0].same and found[3].same
    assert not found[1].exercised and found[1].reason == "the worker process died (signal 9)"
    assert not found[2].exercised and found[2].reason == "the machine failed: broken on purpose"


def test_one_and_two_workers_find_the_same(make_runner):
    one = dict(run_cases(CASES[:1] + CASES[3:], make_runner, 1, range(2)))
    two = dict(run_cases(CASES[:1] + CASES[3:], make_runner, 2, range(2)))
    assert one == two


def test_only_what_is_asked_for_is_run(make_runner):
    assert [number for number, _ in run_cases(CASES, make_runner, 2, [3])] == [3]
