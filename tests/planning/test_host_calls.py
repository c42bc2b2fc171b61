"""Host calls are counted by the kernel, filters are read back as they were loaded, and what cannot be measured says why."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
from thinbox.errors import InputError
from thinbox.planning import gvisor_rows, host_calls, loaded_filter, runtimes
from thinbox.planning.call_counter import CallCounter
from thinbox.planning.classic_bpf import parse_program
from thinbox.planning.exports.bpf import render_bpf
from thinbox.planning.filters import make_filter
from thinbox.planning.gvisor_rows import GvisorChoice, Workload
from thinbox.planning.host_calls import HostCalls, classify, count_made, measure_host_calls, read_allowed
from thinbox.planning.host_process import descendants
from thinbox.planning.loaded_filter import read_filters
from thinbox.planning.microbench import build_loop, build_waiter
from thinbox.planning.runsc import PLATFORMS, Runsc, make_loop_root
from thinbox.planning.runtime_calls import RUNTIMES
from thinbox.sandbox.plan_file import load_plan, parse_plan
from thinbox.syscalls.table import call_number

GET_FILTER = 0x420C
PLAN = """schema = "thinbox.plan/1"
name = "loop"
default = "deny:EPERM"
[calls]
write = "isolate"
read = { do = "isolate", when = { fd = 0 } }
exit_group = "isolate"
"""


@pytest.fixture(scope="module")
def counting():
    """Skips where this user or kernel cannot count."""
    try:
        with CallCounter():
            pass
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def bubblewrap(tmp_path):
    """A root with the program `/bin/loop`, which a test puts there; skips where there is no bubblewrap."""
    make_loop_root(tmp_path, build_loop("getppid", 1))
    try:
        ran = runtimes.run_native(tmp_path, ["/bin/loop"])
    except InputError as error:
        pytest.skip(str(error))
    if ran.exit_code:
        pytest.skip(f"bubblewrap cannot run here: {ran.stderr.decode(errors='replace').strip()}")
    return tmp_path


def the_filter(text=PLAN):
    return render_bpf(make_filter(parse_plan(text, "p", None), (RUNTIMES["exec"],)))


def without_rights(action):
    """Return what `action` raises for a user without any."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            action()
        except InputError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


def test_every_call_is_counted(counting):
    with CallCounter() as counter:
        for _ in range(1234):
            os.getppid()
        counts = counter.read()[os.getpid()]
    assert counts.all[call_number("getppid")] == 1234
    assert counts.confined == {}


def test_a_call_a_filter_takes_away_is_not_counted(counting, bubblewrap):
    """`stat` by its old number, which no C library of today uses."""
    make_loop_root(bubblewrap, build_loop("stat", 567))
    stat = call_number("stat")
    with CallCounter() as counter:
        assert runtimes.run_native(bubblewrap, ["/bin/loop"]).exit_code == 0
        assert 567 in [counts.all.get(stat) for counts in counter.read().values()]
    for allowed in (True, False):
        program = the_filter(PLAN + 'stat = "isolate"\n' if allowed else PLAN)
        with CallCounter() as counter:
            assert runtimes.run_native(bubblewrap, ["/bin/loop"], program=program).exit_code == 0
            confined = [counts.confined.get(stat, 0) for counts in counter.read().values()]
        assert max(confined) == (567 if allowed else 0)


def test_a_filter_is_read_back_as_it_was_loaded(bubblewrap, tmp_path_factory):
    make_loop_root(bubblewrap, build_waiter())
    file = tmp_path_factory.mktemp("filter") / "program"
    file.write_bytes(the_filter())
    with file.open("rb") as program:
        words = ["bwrap", "--bind", str(bubblewrap), "/", "--die-with-parent", "--seccomp", str(program.fileno())]
        child = subprocess.Popen(
            [*words, "--", "/bin/loop"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(program.fileno(),)
        )
        with child:
            assert child.stdout.read(1) == b"/"
            try:
                found = read_filters(descendants(child.pid)[-1])
            except InputError as error:
                pytest.skip(str(error))
            finally:
                child.stdin.close()
                assert child.wait(300) == 0
    assert found == (parse_program(the_filter()),)
    allowed = classify(found)
    assert {"write", "exit_group"} <= set(allowed.any_args) and allowed.checked == ("read",)
    assert "stat" not in allowed.any_args


def test_a_process_without_a_filter_has_none():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        try:
            assert read_filters(child.pid) == ()
        except InputError as error:
            pytest.skip(str(error))
        finally:
            child.stdin.close()


def test_a_filter_that_this_kernel_does_not_give_is_not_no_filter(monkeypatch):
    """A kernel without CONFIG_CHECKPOINT_RESTORE says EINVAL, as for a process without a filter; `/proc` knows better."""

    def refuse(request, _pid, _address, _data):
        if request == GET_FILTER:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return 0

    monkeypatch.setattr(loaded_filter, "_ptrace", refuse)
    monkeypatch.setattr(loaded_filter.os, "waitpid", lambda *_args: (0, 0))
    monkeypatch.setattr(Path, "read_text", lambda _path: "Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n")
    assert read_filters(os.getpid()) == ()
    monkeypatch.setattr(Path, "read_text", lambda _path: "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n")
    with pytest.raises(InputError, match="CONFIG_CHECKPOINT_RESTORE"):
        read_filters(os.getpid())


def test_without_rights_one_line_says_what_is_needed():
    assert "counting host calls needs root" in without_rights(CallCounter().__enter__)
    assert "needs root (CAP_SYS_ADMIN)" in without_rights(lambda: read_filters(1))


def test_a_row_says_what_could_not_be_measured_and_marks_the_listed_figure(tmp_path, monkeypatch):
    def refuse(*_args):
        raise InputError("counting needs root")

    monkeypatch.setattr(host_calls, "count_made", refuse)
    monkeypatch.setattr(host_calls, "read_allowed", refuse)
    monkeypatch.setattr(Runsc, "require", lambda *_args: 0.15)
    monkeypatch.setattr(runtimes, "run_gvisor", lambda *_args, **_options: runtimes.HostRun(0, b"", b"", 0.3))
    monkeypatch.setattr(gvisor_rows, "find_runsc", lambda _named: Runsc("runsc", "1", PLATFORMS))
    workload = Workload(("true",), tmp_path, 1, 5, 0.1)
    for row, allowed in zip(gvisor_rows.gvisor_rows(GvisorChoice(), workload, print), (69, 85), strict=True):
        assert row.host == HostCalls(missing=("counting needs root", "counting needs root"))
        assert (row.host_calls, row.host_made, row.reaching, row.ratio) == (allowed, None, None, 3.0)
        assert "counting needs root" in row.note and "not read here" in row.note and "2026-11" in row.note


def test_gvisor_makes_only_host_calls_its_loaded_filters_allow(gvisor, tmp_path, counting):
    runsc, platform = gvisor
    root = tmp_path / "root"
    root.mkdir()
    make_loop_root(root, build_loop("write 1 B /dev/null", 100))
    found = measure_host_calls(runsc, platform, root, ["/bin/loop"])
    assert found.missing == ()
    assert set(found.made) == {"sentry", "gofer", "stub"}
    for role in ("sentry", "gofer"):
        allowed = found.allowed[role]
        assert not set(allowed.any_args) & set(allowed.checked)
        assert set(found.made[role]) <= {*allowed.any_args, *allowed.checked}
        assert len(found.made[role]) < allowed.count < 120
    # A hundred writes of the tenant, none of which is a write of the host's.
    assert found.made["sentry"].get("write", 0) < 100
    assert found.total == sum(sum(calls.values()) for calls in found.made.values())


def test_the_lists_that_come_with_thinbox_are_the_loaded_filters(gvisor):
    runsc, platform = gvisor
    if (platform, runsc.version) not in {("ptrace", "0.0~20221219.0"), ("systrap", "0.0~20240729.0")}:
        pytest.skip(f"no list of runsc {runsc.version} on {platform} comes with thinbox")
    try:
        found = read_allowed(runsc, platform)
    except InputError as error:
        pytest.skip(str(error))
    for role in ("sentry", "gofer"):
        rules = load_plan(f"gvisor-{platform}-{role}").every_rule
        assert sorted(found[role].checked) == sorted(rule.name for rule in rules if "certain arguments" in rule.reason)
        assert sorted(found[role].any_args) == sorted(rule.name for rule in rules if not rule.reason)


def test_a_sentry_that_is_not_seen_is_an_error_and_no_zero(counting, tmp_path):
    blind = Runsc("/bin/true", "0", ("ptrace",))
    with pytest.raises(InputError, match="no Sentry"):
        count_made(blind, "ptrace", tmp_path, ["true"])
