"""runsc is found and asked for its platforms; whatever ends a run, nothing of it is left."""

import os
import signal
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tests.support.gvisor_binaries import installed_runsc, newer_runsc
from thinbox.errors import InputError
from thinbox.planning.host_process import Start, descendants, program_name, run_bounded, running
from thinbox.planning.runsc import Runsc, find_runsc, parse_platforms

FLAGS_2022 = """  -platform string
    \tspecifies which platform to use: ptrace (default), kvm. (default "ptrace")
  -platform_device_path string
    \tpath to a platform-specific device file
"""
FLAGS_2024 = FLAGS_2022.replace("ptrace (default), kvm", "systrap (default), ptrace, kvm")
WAIT_LIMIT_S = 300


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition):
    end = time.monotonic() + WAIT_LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.002)
    return found


def test_the_platforms_are_those_runsc_names_the_default_first():
    assert parse_platforms(FLAGS_2022, "kvm\nptrace\n") == ("ptrace", "kvm")
    assert parse_platforms(FLAGS_2024, "") == ("systrap", "ptrace", "kvm")
    assert parse_platforms("no such flag", "ptrace\nkvm\nsystrap\n") == ("kvm", "ptrace", "systrap")
    assert parse_platforms("no such flag", "Usage: runsc <flags>\n") == ()


def test_what_is_no_runsc_says_what_to_do(monkeypatch):
    with pytest.raises(InputError, match="does not say its version.*--runsc names"):
        find_runsc("/bin/true")
    with pytest.raises(InputError, match="nowhere/runsc is no program.*--runsc names"):
        find_runsc("/nowhere/runsc")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="apt install runsc"):
        find_runsc()


def test_a_platform_that_is_not_there_says_who_has_it():
    old = Runsc("/bin/false", "0.0~20221219.0", ("ptrace", "kvm"))
    with pytest.raises(InputError, match=r"20221219.0 has no platform systrap \(it has ptrace, kvm\).*backports"):
        old.require("systrap")
    with pytest.raises(InputError, match="no platform other.*--runsc"):
        old.require("other")
    with pytest.raises(InputError, match="platform ptrace does not work on this machine: status 1"):
        old.require("ptrace")


def test_a_run_that_does_not_end_is_ended_with_what_it_put_into_other_sessions(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fake = tmp_path / "runsc"
    fake.write_text('#!/bin/sh\nsetsid sh -c \'echo $$ >"$0"; exec sleep 600\' "$0.pid" & wait\n')
    fake.chmod(0o755)
    seen, elsewhere = set(), tmp_path / "runsc.pid"
    communicate = subprocess.Popen.communicate

    def when_started(child, *rest, **more):
        """Time runs from where the process in the other session is there, however slow the machine is."""
        if more.get("timeout") == 0.5:
            wait_for(lambda: elsewhere.exists() and elsewhere.read_text().strip() and seen)
        return communicate(child, *rest, **more)

    monkeypatch.setattr(subprocess.Popen, "communicate", when_started)
    hung = Runsc(str(fake), "0", ("ptrace",))
    with pytest.raises(InputError, match="did not end within 0.5 s"):
        hung.run(tmp_path, ["true"], "ptrace", 0.5, watch=lambda pid: seen.update(descendants(pid)))
    assert int(elsewhere.read_text()) in seen
    assert all(gone(pid) for pid in seen)
    assert {path.name for path in tmp_path.iterdir()} == {"runsc", "runsc.pid"}


def test_an_interrupted_wait_ends_the_whole_tree():
    words = ["sh", "-c", "setsid sleep 600 & echo $!; wait"]
    with pytest.raises(KeyboardInterrupt), running(words, Start(60)) as child:
        grandchild = int(child.stdout.readline())
        raise KeyboardInterrupt
    assert gone(child.pid) and gone(grandchild)


def test_output_and_status_are_the_processes_own():
    ended = run_bounded(["sh", "-c", "echo out; echo err >&2; exit 7"], Start(60))
    assert (ended.exit_code, ended.stdout, ended.stderr) == (7, b"out\n", b"err\n")


def test_a_program_runs_on_every_platform_that_is_there(gvisor):
    runsc, platform = gvisor
    assert 0 < runsc.require(platform) < 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_compare_leaves_no_sandbox_behind(tmp_for_runsc, number):
    runsc = newer_runsc()
    if isinstance(runsc, str):
        runsc = installed_runsc()
    if isinstance(runsc, str):
        pytest.skip(runsc)
    scratch = tmp_for_runsc
    words = [sys.executable, "-m", "thinbox", "compare", "-q", "--calls", "--runsc", runsc.path]
    compare = subprocess.Popen(
        words, env=os.environ | {"TMPDIR": str(scratch)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: any(program_name(pid) == "runsc-sandbox" for pid in descendants(compare.pid)))
        left = descendants(compare.pid)
        compare.send_signal(number)
        status = compare.wait(WAIT_LIMIT_S)
    finally:
        compare.kill()
    if number == signal.SIGKILL:
        # Nobody is left to wait for them: they die with it.
        wait_for(lambda: all(gone(pid) for pid in left))
        shutil.rmtree(scratch)
        scratch.mkdir()
    else:
        assert status == 130
        assert all(gone(pid) for pid in left)
        assert not list(scratch.iterdir())


@pytest.mark.parametrize(("name", "mode"), [("x" * 100, 0o755), ("closed", 0o700)])
def test_a_temporary_folder_runsc_cannot_use_does_not_keep_it_from_starting(tmp_path, monkeypatch, name, mode):
    runsc = installed_runsc()
    if isinstance(runsc, str):
        pytest.skip(runsc)
    folder = tmp_path / name
    folder.mkdir(mode)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert runsc.require("ptrace") > 0
    assert not list(folder.iterdir())


def test_without_root_gvisor_takes_a_namespace_of_its_own(monkeypatch, tmp_path):
    runsc = Runsc("runsc", "1", ("ptrace",))
    for user, wanted in ((0, False), (1000, True)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        with runsc.prepared(tmp_path, ["true"], "ptrace") as (words, _env):
            assert ("--rootless" in words[: words.index("do")]) is wanted
