"""The case runner: each case alone, from the same state, only the measured call isolated."""

import errno
import struct
from dataclasses import replace

import pytest
from thinbox.audit import case_runner
from thinbox.audit.case import Case
from thinbox.audit.expect import AT_LEAST_0, ZERO, exactly, fails
from thinbox.audit.case_runner import FILE_BYTES, CaseRunner, file_content, make_checkpoint
from thinbox.audit.pool import audit_case
from thinbox.isolation.policies import load_policy
from thinbox.isolation.policies.sci import MIDDLE, Sci
from thinbox.isolation.verdict import AccessKind

O_CREAT_RDWR = 0o102


@pytest.fixture(scope="module")
def checkpoint(guest):
    return make_checkpoint(guest)


@pytest.fixture(scope="module")
def runner(guest, checkpoint):
    return CaseRunner(guest, checkpoint, load_policy("sci"))


def case(call, body, *, varies=False):
    return Case(call, "test", True, body, varies)


def test_a_case_runs_both_ways_with_the_same_result(runner):
    def body(process):
        place = process.buffer(64)
        handle = yield from process.must("open", "file", 0, 0)
        got = yield from process.measure(handle, place, 64, expect=exactly(64))
        process.check(process.read(place, got) == file_content()[:64], "the file's first bytes")

    entry = audit_case(runner, case("read", body))
    assert entry.exercised and entry.same and entry.ret == entry.isolated_ret == 64
    assert entry.code_faults > 5 and entry.data_faults > 5
    assert len(entry.grants) == entry.code_faults + entry.data_faults
    assert {grant.kind for grant in entry.grants} >= {"fetch", "read"}


def test_only_the_measured_call_is_isolated(runner):
    def body(process):
        yield from process.must("getpid")
        yield from process.measure()
        yield from process.must("getpid")

    runner.run(case("getpid", body), isolated=True)
    calls = runner.tenant.record.calls
    assert [record.isolated for record in calls if record.name == "getpid"] == [False, True, False]
    runner.run(case("getpid", body), isolated=False)
    assert not any(record.isolated for record in runner.tenant.record.calls)


def test_nothing_of_one_case_reaches_the_next(runner):
    def write(process):
        yield from process.must("open", "mine", O_CREAT_RDWR, 0o600)
        yield from process.must("unlink", "file")
        yield from process.measure()

    def look(process):
        yield from process.measure("mine", 0, expect=fails(errno.ENOENT))
        found = yield from process.call("access", "file", 0)
        process.check(found == 0, "the other case's unlink is undone")

    first = runner.run(case("getpid", write), isolated=True)
    assert first.problem is None
    outcome = runner.run(case("access", look), isolated=True)
    assert outcome.problem is None


def test_two_runs_are_equal_to_the_record(runner):
    def body(process):
        yield from process.measure("new", O_CREAT_RDWR, 0o600)

    first, second = (runner.run(case("open", body), isolated=True) for _ in range(2))
    assert first == second


def test_a_result_that_is_not_expected_fails_the_case(runner):
    def body(process):
        yield from process.measure(99, expect=ZERO)

    entry = audit_case(runner, case("close", body))
    assert not entry.exercised and entry.reason == "close returned EBADF, expected 0" and not entry.lacking


def test_what_a_kernel_cannot_do_is_not_exercised_and_says_why(runner):
    def body(process):
        process.needs((yield from process.call("getpid")) < 0, "this kernel has processes")
        yield from process.measure(77, expect=fails(errno.EBADF))

    entry = audit_case(runner, Case("close", "needs", False, body))
    assert not entry.exercised and not entry.same and entry.reason == "this kernel has processes"
    assert entry.lacking


def test_a_case_without_or_with_two_measured_calls_fails(runner):
    def none(process):
        yield from process.must("getpid")

    def two(process):
        yield from process.measure()
        yield from process.measure()

    assert runner.run(case("getpid", none), isolated=False).problem == "the case made no measured call"
    assert runner.run(case("getpid", two), isolated=False).problem == "a case has exactly one measured call"


def test_a_case_that_waits_for_ever_says_so(runner):
    def body(process):
        yield from process.measure()

    outcome = runner.run(case("pause", body), isolated=False)
    assert outcome.problem == "the case did not end within 60 s of virtual time"
    assert runner.run(case("getpid", body), isolated=False).problem is None


def test_a_case_that_makes_calls_without_end_says_so(runner, monkeypatch):
    def body(process):
        yield from process.measure()
        while True:
            yield from process.call("getuid")

    monkeypatch.setattr(case_runner, "_LIMITS", replace(case_runner._LIMITS, syscalls=5_000))
    assert runner.run(case("getpid", body), isolated=True).problem == "the case did not end within 5000 system calls"


def test_a_process_that_dies_unasked_fails_the_case(runner):
    def body(process):
        yield from process.measure(0, 9)

    outcome = runner.run(case("kill", body), isolated=False)
    assert outcome.problem and "wait status 0x9" in outcome.problem


def test_a_call_that_never_returns_is_judged_by_its_status(runner):
    def right(process):
        yield from process.measure_last(7, status=0x700)

    def wrong(process):
        yield from process.measure_last(8, status=0x700)

    assert runner.run(case("exit_group", right), isolated=True).problem is None
    assert "0x800" in (runner.run(case("exit_group", wrong), isolated=True).problem or "")


def test_memory_the_call_wrote_is_compared(runner):
    """A body that writes what only an isolated run has shows as a difference."""
    runs = iter((b"plain", b"isolated"))

    def body(process):
        yield from process.measure()
        process.buffer(next(runs))

    entry = audit_case(runner, case("getpid", body))
    assert entry.exercised and not entry.same and entry.reason == "user memory differs"

    runs_left_out = iter((b"plain___", b"isolated"))

    def left_out(process):
        yield from process.measure()
        process.volatile(process.buffer(next(runs_left_out)), 8)

    assert audit_case(runner, case("getpid", left_out)).same


def test_a_result_that_differs_is_a_difference_unless_it_may_vary(runner):
    doorbell = 10  # its descriptor, inherited
    runs = iter((False, True, False, True))

    def body(process):
        if next(runs):
            yield from process.must("dup", doorbell)
        yield from process.measure(doorbell, expect=AT_LEAST_0)

    assert "returned" in audit_case(runner, case("dup", body)).reason
    assert audit_case(runner, case("dup", body, varies=True)).same


class RefusesTheThirdFetch(Sci):
    """Kills every call at its third fetch."""

    name = "third"

    def check_access(self, access, call):
        if access.kind is AccessKind.FETCH:
            call.notes["fetches"] = call.notes.get("fetches", 0) + 1
            if call.notes["fetches"] == 3:
                return MIDDLE
        verdict = super().check_access(access, call)
        return type(verdict)(verdict.granted, verdict.rule, verdict.reason)


def test_a_kill_is_the_entrys_result_and_the_next_case_is_not_hurt(guest, checkpoint):
    strict = CaseRunner(guest, checkpoint, RefusesTheThirdFetch())

    def body(process):
        yield from process.measure("x", O_CREAT_RDWR, 0o600)

    for _ in range(2):
        entry = audit_case(strict, case("open", body))
        assert entry.exercised and not entry.same
        assert entry.killed and "open was killed: fetch at " in entry.killed and "policy third" in entry.killed


def test_children_and_sleeping(runner):
    def child(me):
        yield from me.must("nanosleep", struct.pack("<qq", 0, 3_000_000), 0)
        yield from me.must("write", 11, b"later", 5)

    def body(process):
        ends = process.buffer(8)
        yield from process.must("pipe2", ends, 0)
        reader, writer = process.read_int(ends), process.read_int(ends + 4)
        yield from process.must("dup2", writer, 11)
        yield from process.must("close", writer)
        yield from process.fork(child)
        place = process.buffer(16)
        yield from process.measure(reader, place, 16, expect=exactly(5))
        process.check(process.read(place, 5) == b"later", "what the child wrote")

    entry = audit_case(runner, case("read", body))
    assert entry.same, entry.reason
    assert entry.isolated_virtual_ns > 3_000_000


def test_the_prepared_file_is_what_the_runner_says():
    assert len(file_content()) == FILE_BYTES
