"""What is planned, isolated and recorded is what the kernel dispatches: a tracer may put another call in its place."""

import errno

import pytest
from tests.support.traced_program import build_traced_program
from thinbox.sandbox.plan_file import parse_plan
from thinbox.session.session import RunOptions, run
from thinbox.syscalls.table import call_number

MKDIR = call_number("mkdir")
HEAD = 'schema = "thinbox.plan/1"\nname = "test"\ndefault = "isolate"\n[calls]\n'


@pytest.fixture
def run_traced(guest, tmp_path):
    def start(wish="getuid", nr=MKDIR, second=0o755, calls=None, head=HEAD, **options):
        path = tmp_path / "program"
        path.write_bytes(build_traced_program(wish, nr, second))
        path.chmod(0o755)
        plan = None if calls is None else parse_plan(head + calls, "test.toml", lambda _path: b"")
        return run(guest, ["/program"], RunOptions(policy="live", rootfs=tmp_path, plan=plan, **options))

    return start


def made(result):
    """Whether the tracer found the folder that its child's `getuid` became."""
    assert result.exit_code in (0, 1), result.console[-2000:]
    return result.exit_code == 1


def rewritten(result):
    (call,) = [call for call in result.record.calls if call.requested]
    return call


def test_the_record_names_the_call_that_ran(run_traced):
    result = run_traced()
    assert made(result), "the test's own program does not put mkdir in getuid's place"
    call = rewritten(result)
    assert (call.name, call.nr, call.requested, call.ret) == ("mkdir", MKDIR, "getuid", 0)
    assert call.args[1] == 0o755


def test_a_plan_is_asked_about_the_call_that_runs(run_traced):
    result = run_traced(calls='mkdir = "deny:EACCES"\n')
    assert not made(result)
    call = rewritten(result)
    assert (call.name, call.disposition, call.verdict, call.ret) == ("mkdir", "deny", "denied", -errno.EACCES)
    assert [refusal.call for refusal in result.record.refusals] == ["mkdir"]


def test_a_plan_kills_for_the_call_that_would_run(run_traced):
    result = run_traced(calls='mkdir = "kill"\n')
    assert result.exit_code == 137
    assert result.record.killed.call == "mkdir"


def test_arguments_put_in_by_a_tracer_are_judged(run_traced):
    """The rule looks at the kind of socket; the child's registers held none."""
    rules = """socket = [
  { do = "deny", errno = "EPERM", when = { type = ["SOCK_STREAM"] } },
  { do = "isolate" },
]
"""
    for kind, expected in ((1, -errno.EPERM), (2, -errno.EAFNOSUPPORT)):
        result = run_traced(nr=call_number("socket"), second=kind, calls=rules)
        assert rewritten(result).ret == expected


def test_isolate_of_one_call_isolates_what_becomes_it(run_traced):
    result = run_traced(isolate="mkdir")
    assert made(result)
    call = rewritten(result)
    assert call.isolated and call.code_faults > 0
    assert [c.name for c in result.record.calls if c.isolated] == ["mkdir"]


def test_a_call_that_becomes_one_that_need_not_be_isolated_stays_isolated(run_traced):
    result = run_traced(isolate="getuid")
    assert made(result)
    assert rewritten(result).isolated


def test_a_call_a_tracer_takes_away_is_named_skipped(run_traced):
    """Nothing is dispatched; what the tracer makes of its result is no result of a call."""
    result = run_traced(nr=-1)
    assert not made(result)
    call = rewritten(result)
    assert (call.name, call.nr, call.requested) == ("skipped", -1, "getuid")


def test_a_phase_ends_at_the_call_that_runs_not_at_the_one_asked_for(run_traced):
    """`mkdir` is the marker and comes in `getuid`'s place; what start-up alone may do is refused behind it."""
    rules = 'access = [{ do = "isolate", phase = "start" }, { do = "deny", errno = "EPERM" }]\n'
    result = run_traced(calls=rules, head=HEAD.replace("[calls]", 'phase_marker = ["mkdir"]\n[calls]'))
    assert result.record.steady_seq > rewritten(result).seq
    (refusal,) = result.record.refusals
    assert refusal.call == "access"
    assert run_traced(calls=rules, nr=call_number("getgid")).record.steady_seq is None
