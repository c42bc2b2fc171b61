"""One traced run of a program that calls getppid in a loop, for all tests of the cost room."""

import pytest
from tests.support.tiny_program import loop_command
from thinbox.cost.workload import workload_of_record
from thinbox.session.session import RunOptions, run

GETPPID = 110


@pytest.fixture(scope="session")
def loop_result(guest):
    result = run(guest, loop_command(GETPPID, 200), RunOptions(keep_trace=True))
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="session")
def loop_workload(loop_result):
    return workload_of_record(loop_result.record)
