"""Events in a record: the same under every way of running; each grant of the trace is one of the record."""

from pathlib import Path

import numpy as np
import pytest
from tests.support.tiny_program import loop_command
from thinbox.cost.sound_trace import require_sound
from thinbox.cost.workload import workload_of_record
from thinbox.errors import InputError
from thinbox.isolation.policies.sci import MIDDLE, Sci
from thinbox.isolation.verdict import Verdict
from thinbox.machine import tracing_slots as tracing
from thinbox.records.profile import KnownPages, Pages
from thinbox.session.session import RunOptions, run

from .conftest import GETPPID

LOOP = loop_command(GETPPID, 20)


class KillsInGetppid(Sci):
    """Policy sci, but some access of `getppid` is refused; all data is asked for."""

    name = "kills-in-getppid"
    grants_all_data = False

    def __init__(self):
        self.asked = 0

    def check_access(self, access, call):
        if call.name == "getppid":
            self.asked += 1
            if self.asked == 40:
                return MIDDLE
        verdict = super().check_access(access, call)
        return Verdict(verdict.granted, verdict.rule, verdict.reason)


def granted(record):
    return record.totals["code_faults"] + record.totals["data_faults"]


def grant_marks(trace):
    return int(np.count_nonzero(trace.words[trace.stream] == tracing.GRANT << 2 | tracing.MARK))


@pytest.fixture(scope="module")
def plain(guest):
    return run(guest, LOOP, RunOptions(keep_trace=True)).record


def test_each_grant_has_a_mark_in_the_trace(plain):
    assert grant_marks(plain.events.trace) == len(plain.events.trace.grants) == granted(plain)


def test_what_undo_maps_for_itself_is_no_grant(guest, plain):
    record = run(guest, LOOP, RunOptions(keep_trace=True, on_violation="undo")).record
    trace = record.events.trace
    assert grant_marks(trace) == len(trace.grants) == granted(record)
    assert granted(record) == pytest.approx(granted(plain), rel=0.02)
    states = trace.words[trace.words & 15 == (tracing.STATE << 2 | tracing.MARK)] >> 4
    assert set((states >> 1 & 1).tolist()) == {0, 1}


@pytest.mark.parametrize("way", ["oops", "undo", "stop"])
def test_the_grants_of_a_killed_call_stay_in_the_trace(guest, way):
    record = run(guest, LOOP, RunOptions(policy=KillsInGetppid(), keep_trace=True, on_violation=way)).record
    assert record.killed is not None and record.killed.undone == (way == "undo")
    (seq,) = [call.seq for call in record.calls if call.verdict == "killed"]
    trace, call = record.events.trace, record.calls[seq]
    assert np.count_nonzero(trace.grants[:, 0] == seq) == call.code_faults + call.data_faults > 0
    assert grant_marks(trace) == len(trace.grants)
    assert np.count_nonzero(trace.grants[:, 0] >= 0) == granted(record)
    # Killed as by an oops or undone, the task ends outside its call, on its table.
    of_ends = int(np.count_nonzero(trace.grants[:, 0] == -1))
    assert of_ends == record.outside.get("pages granted to ends", 0) and (of_ends > 0) == (way != "stop")
    require_sound(trace, len(record.calls), Path(way))


def test_a_prefaulted_run_is_no_workload(guest, plain):
    vaddr = guest.facts.symbols.address_of("__x64_sys_getppid")
    page = (vaddr - guest.facts.symbols.text_start) >> 12
    known = KnownPages({"getppid": Pages((page,), ())}, guest.facts.sha256, guest.facts.symbols.text_start)
    record = run(guest, LOOP, RunOptions(prefault=known, keep_trace=True)).record
    trace = record.events.trace
    assert grant_marks(trace) == len(trace.grants) == granted(record) < granted(plain)
    with pytest.raises(InputError, match="--prefault"):
        workload_of_record(record)


def test_coverage_beside_it_changes_no_event(guest, plain):
    covered = run(guest, LOOP, RunOptions(coverage=True, keep_trace=True)).record
    assert covered.coverage is not None
    assert covered.events.rows == plain.events.rows
    assert covered.events.totals == plain.events.totals
    assert (covered.events.trace.grants == plain.events.trace.grants).all()


def test_the_trace_changes_no_count(guest, plain):
    assert run(guest, LOOP).record.events.rows == plain.events.rows


def test_a_call_that_sleeps_has_its_sleeps_counted_and_not_the_work_of_others(guest):
    record = run(guest, ["sh", "-c", "sleep 0.2"]).record
    (seq,) = [call.seq for call in record.calls if call.name in ("nanosleep", "clock_nanosleep")]
    row = record.events.rows[seq]
    assert row[2] >= 1
    assert sum(r[0] for r in record.events.rows) <= record.events.totals["interrupts"]
    assert sum(r[1] for r in record.events.rows) <= record.events.totals["exceptions"]
