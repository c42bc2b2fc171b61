"""A supervised loop makes its calls, and its supervisor is asked about every one."""

import struct
import subprocess

import pytest
from thinbox.planning.microbench import LOOPS
from thinbox.planning.supervised import NOTIFY, PTRACE, SUPERVISORS, build_supervised

TURNS = 7


@pytest.mark.parametrize("supervisor", SUPERVISORS)
@pytest.mark.parametrize("name", LOOPS)
def test_every_call_of_a_loop_is_asked_about(tmp_path, name, supervisor):
    program = tmp_path / "loop"
    program.write_bytes(build_supervised(name, TURNS, supervisor))
    program.chmod(0o755)
    done = subprocess.run([program], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    (asked,) = struct.unpack("<Q", done.stdout)
    calls = len(LOOPS[name][1])
    if supervisor == NOTIFY:
        # Each call once; the exit of each child; at last that of the loop.
        expected = TURNS * (calls + (name == "fork+wait")) + 1
    else:
        # Each call as it enters and leaves. A child besides: its birth, its first stop, its exit, and SIGCHLD for it.
        assert supervisor == PTRACE
        expected = TURNS * (2 * calls + 4 * (name == "fork+wait")) + 1
    assert asked == expected
