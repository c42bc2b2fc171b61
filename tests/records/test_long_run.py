"""A real run of more calls than stay objects: what each was, and the shell's long wait for them, is in the record."""

import pytest
from tests.support.tiny_program import loop_command
from thinbox.records.events import SLEEPS
from thinbox.records.row_store import CHUNK_ROWS
from thinbox.session.session import RunOptions, run

TIMES = 2 * CHUNK_ROWS + 500
GETPID = 39


@pytest.fixture(scope="module")
def record(guest):
    sh, option, script = loop_command(GETPID, TIMES)
    # The shell waits for the program: its wait4 is open while all the others are made and packed.
    command = [sh, option, script.replace("exec /tmp/loop", "/tmp/loop; exit $?")]
    result = run(guest, command, RunOptions(policy="live", isolate="getpid,wait4", coverage=True, keep_faults=True))
    assert result.exit_code == 0, result.stderr
    return result.record


def loop_of(record):
    """The program's calls; the shell asks for its own pid once."""
    found = [call for call in record.calls if call.name == "getpid"]
    child = found[-1].pid
    return child, [call for call in found if call.pid == child]


def test_old_calls_are_packed_and_all_are_there(record):
    assert 0 not in record.calls._live, "nothing was packed"
    calls = list(record.calls)
    assert [call.seq for call in calls] == list(range(len(record.calls)))
    child, loop = loop_of(record)
    assert len(loop) == TIMES and {call.ret for call in loop} == {child}
    assert all(call.isolated and call.code_faults and call.coverage.data_pages for call in loop)
    assert record.totals["code_faults"] == sum(call.code_faults for call in calls)


def test_the_call_that_was_open_all_the_time_has_its_end(record):
    child, loop = loop_of(record)
    (wait,) = [call for call in record.calls if call.name == "wait4" and call.ret == child]
    assert wait.seq < TIMES - CHUNK_ROWS and wait.isolated
    assert wait.virtual_ns > sum(call.virtual_ns for call in loop)
    assert record.events.rows[wait.seq][SLEEPS] > 0, "it slept"


def test_faults_are_those_the_calls_count(record):
    assert len(record.faults) == sum(call.code_faults + call.data_faults for call in record.calls)
    some = record.calls[TIMES]
    faults = list(record.faults.of_calls(some.seq, some.seq + 1))
    assert len(faults) == some.code_faults + some.data_faults == some.faults
    assert sum(fault.kind == "fetch" for fault in faults) == some.code_faults


def test_coverage_counts_every_call(record):
    found = record.coverage.named("getpid")
    assert found.calls == found.isolated == record.calls.tally.names["getpid"].times >= TIMES
