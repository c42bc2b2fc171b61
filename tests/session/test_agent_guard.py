"""The agent's processes are nobody's: root of the whole guest does not trace them, write their memory or take their files."""

import errno

import pytest
from tests.support.call_program import RESULT, Step, build_program, results
from thinbox.guest.agent_channel import AgentChannel
from thinbox.session.session import RunOptions, run

ATTACH, SEIZE, DETACH = 16, 0x4206, 17
TRIES = (
    Step("ptrace", (ATTACH, 1, 0, 0)),
    Step("ptrace", (SEIZE, 1, 0, 0)),
    Step("kcmp", (1, 1, 0, 0, 0)),
    Step("pidfd_open", (1, 0)),
    Step("pidfd_getfd", (RESULT, 0, 0)),
)


@pytest.fixture
def attempts(guest, tmp_path):
    def make(tries=TRIES):
        (tmp_path / "program").write_bytes(build_program(*tries))
        (tmp_path / "program").chmod(0o755)
        result = run(guest, ["/program"], RunOptions(policy="live", rootfs=tmp_path))
        return [found for step, found in zip(tries, results(result.stdout), strict=True) if step.name != "pidfd_open"]

    return make


def test_root_neither_traces_the_agent_nor_reaches_into_it(attempts):
    assert attempts() == [-errno.EPERM] * 4


def test_without_the_guard_the_kernel_lets_root_in(attempts, monkeypatch):
    """So it is the guard that keeps it out, and not the kernel."""
    monkeypatch.setattr(AgentChannel, "_is_looked_into", lambda _self: None)
    assert attempts(TRIES[1:]) == [0, 0, 4]


def test_its_files_in_proc_are_closed_and_ps_shows_it_all_the_same(guest):
    script = "cat /proc/1/maps; readlink /proc/1/exe; head -c 1 /proc/1/mem; cat /proc/1/fd/0; ps | grep -c '/init'"
    result = run(guest, ["sh", "-c", script], RunOptions(policy="live"))
    assert result.stderr.count(b"Permission denied") == 3
    assert int(result.stdout) >= 1
