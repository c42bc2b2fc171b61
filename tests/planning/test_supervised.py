"""A supervised loop makes its calls, and its supervisor is asked about every one."""

import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest
from thinbox.planning.host_process import descendants
from thinbox.planning.microbench import LOOPS
from thinbox.planning.supervised import NOTIFY, PTRACE, SUPERVISORS, build_supervised

TURNS = 7


@pytest.mark.parametrize("supervisor", SUPERVISORS)
@pytest.mark.parametrize("name", LOOPS)
def test_every_call_of_a_loop_is_asked_about(tmp_path, name, supervisor):
    program = tmp_path / "loop"
    program.write_bytes(build_supervised(name, TURNS, supervisor))
    program.chmod(0o755)
    done = subprocess.run([program], stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0
    (asked,) = struct.unpack("<Q", done.stdout)
    calls = len(LOOPS[name][1])
    if supervisor == NOTIFY:
        # Its listener closed; each call once; the exit of each child; at last that of the loop.
        expected = TURNS * (calls + (name == "fork+wait")) + 2
    else:
        # Each call as it enters and leaves. A child besides: its birth, its first stop, its exit, and SIGCHLD for it.
        assert supervisor == PTRACE
        expected = TURNS * (2 * calls + 4 * (name == "fork+wait")) + 1
    assert asked == expected


@pytest.mark.parametrize("supervisor", SUPERVISORS)
@pytest.mark.parametrize("name", ["getppid", "fork+wait"])
def test_a_loop_ends_with_its_supervisor(tmp_path, name, supervisor):
    """As where thinbox is killed: nobody is left to answer for it."""
    kill_the_supervisor(tmp_path, name, supervisor, lambda pid: calls_waiting(pid) >= 1)


@pytest.mark.parametrize("supervisor", SUPERVISORS)
@pytest.mark.parametrize("turn", range(5))
def test_a_loop_ends_with_a_supervisor_killed_at_once(tmp_path, turn, supervisor):
    """Somewhere between its birth and the first call that is asked about."""
    kill_the_supervisor(tmp_path, "fork+wait", supervisor, lambda _: True)


def kill_the_supervisor(tmp_path, name, supervisor, far_enough):
    program = tmp_path / "loop"
    program.write_bytes(build_supervised(name, (1 << 31) - 1, supervisor))
    program.chmod(0o755)
    end = time.monotonic() + 300
    with subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as watcher:
        while not (below := descendants(watcher.pid)) or not far_enough(below[0]):
            assert time.monotonic() < end
        watcher.send_signal(signal.SIGKILL)
    while any(runs(pid, program) for pid in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < end
        time.sleep(0.01)


def runs(process, program):
    try:
        return (process / "exe").readlink() == program
    except OSError:
        return False


def calls_waiting(pid):
    """How often a process gave the CPU up: not before its calls are supervised."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
