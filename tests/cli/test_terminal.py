"""`thinbox run` at a real terminal: raw while the tenant runs, given back whatever happens."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from thinbox.cli.terminal import EscapeKeys

pytestmark = pytest.mark.usefixtures("guest")
SOURCE = Path(__file__).resolve().parents[2] / "src"
LIMIT_S = 600


class Typist:
    """thinbox on a pseudo-terminal of the host, and someone who types."""

    def __init__(self, *command: str, rows: int = 41, columns: int = 123, program=None, **streams) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            program or [sys.executable, "-m", "thinbox", "run", "-q", *command],
            env=os.environ | {"PYTHONPATH": str(SOURCE), "TERM": "vt220"},
            **({"stdin": self.slave, "stdout": self.slave, "stderr": self.slave} | streams),
            preexec_fn=self._lead,
        )
        self.shown = b""

    def _lead(self) -> None:
        os.setsid()
        fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("<4H", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, text: bytes) -> bytes:
        """Return what was shown up to `text`."""
        end = time.monotonic() + LIMIT_S
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0, (text, self.shown)
            if select.select([self.master], [], [], min(left, 0.1))[0]:
                self.shown += os.read(self.master, 65536)
            else:
                assert self.process.poll() is None or self._pending(), (text, self.shown)
        before, self.shown = self.shown.split(text, 1)
        return before

    def _pending(self) -> bool:
        return bool(select.select([self.master], [], [], 0)[0])

    def end(self, *, same: bool = True) -> int:
        """Wait for the end, reading what is still shown; require the settings of before, if `same`."""
        end = time.monotonic() + LIMIT_S
        while self.process.poll() is None or self._pending():
            assert time.monotonic() < end, self.shown
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 65536)
        assert not same or termios.tcgetattr(self.slave) == self.before, "the terminal is as it was"
        return self.process.returncode

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


@pytest.fixture
def sit_down():
    typists = []

    def start(*command, **options):
        typists.append(Typist(*command, **options))
        return typists[-1]

    yield start
    for typist in typists:
        if typist.process.poll() is None:
            typist.process.kill()
            typist.process.wait()
        os.close(typist.master)
        os.close(typist.slave)


def test_at_a_terminal_the_tenant_gets_one_of_the_same_size_and_kind(sit_down):
    typist = sit_down("--", "sh", "-c", "tty; stty size; echo $TERM; exit 9")
    assert typist.end() == 9
    assert typist.shown == b"/dev/pts/0\r\n41 123\r\nvt220\r\n"


def test_an_interactive_shell_with_job_control(sit_down):
    # The job says when it runs and when it goes on: a key that comes before is the shell's.
    job = "trap 'echo go''es on' CONT; echo st''arted; while :; do sleep 1; done"
    typist = sit_down("--", "sh", "-c", f"cat >/tmp/job <<'E'\n{job}\nE\nexec sh -i")
    typist.read_until(b"# ")
    assert typist.is_raw()
    typist.type(b"sh /tmp/job\n")
    typist.read_until(b"started")
    typist.type(b"\x1a")
    typist.read_until(b"Stopped")
    typist.type(b"jobs\n")
    assert b"can't access tty" not in typist.read_until(b"Stopped")
    typist.type(b"fg\n")
    typist.read_until(b"goes on")
    typist.type(b"\x03")
    typist.type(b"echo sta''tus $?\n")
    typist.read_until(b"status 130")
    typist.type(b"\x04")
    assert typist.end() == 0


def test_a_resize_reaches_the_tenant(sit_down):
    typist = sit_down("--", "sh", "-c", "trap 'stty size; exit 0' WINCH; echo ready; while :; do read -t 1 x; done")
    typist.read_until(b"ready\r\n")
    typist.resize(7, 70)
    assert typist.end() == 0
    assert typist.shown == b"7 70\r\n"


def test_ctrl_c_ends_a_tenant_that_computes(sit_down):
    typist = sit_down("--", "sh", "-c", "echo ready; while :; do :; done")
    typist.read_until(b"ready")
    typist.type(b"\x03")
    assert typist.end() == 130


def test_tilde_dot_leaves_a_tenant_that_does_not_answer(sit_down):
    typist = sit_down("--", "sh", "-c", "trap '' INT TERM HUP QUIT TSTP; stty raw; echo ready; while :; do :; done")
    typist.read_until(b"ready")
    typist.type(b"\x03\r~.")
    assert typist.end() == 130
    assert typist.shown.endswith(b"thinbox: interrupted\r\n")


def test_the_first_sigterm_is_for_the_tenant_and_the_second_ends_thinbox(sit_down):
    typist = sit_down("--", "sh", "-c", "trap 'echo term' TERM; echo ready; while :; do read -t 1 x; done")
    typist.read_until(b"ready")
    typist.process.send_signal(signal.SIGTERM)
    typist.read_until(b"term")
    typist.process.send_signal(signal.SIGTERM)
    assert typist.end() == 130


SIZES = "trap 'stty size' WINCH; echo ready; until read -t 1 line; do :; done; echo \"<$line>\""
QUOTED = SIZES.replace("'", "'\\''")


def test_the_terminal_is_given_back_while_thinbox_is_suspended(sit_down):
    typist = sit_down(program=["sh", "-i"])
    typist.type(b"PS1='host''> '\n")
    typist.read_until(b"host> ")
    typist.type(f"{sys.executable} -m thinbox run -q -- sh -c '{QUOTED}'\n".encode())
    typist.read_until(b"ready\r\n")
    assert typist.is_raw()
    typist.type(b"~\x1a")
    typist.read_until(b"host> ")
    typist.type(b"stty -a | grep -o ' isig icanon iexten echo '; echo co''oked\n")
    assert b" isig icanon iexten echo " in typist.read_until(b"cooked\r\n").splitlines()[-1]
    typist.type(b"stty rows 20 cols 60; fg\n")
    typist.read_until(b"20 60\r\n")
    assert typist.is_raw()
    typist.type(b"more\n")
    typist.read_until(b"<more>\r\n")
    typist.read_until(b"host> ")
    typist.type(b"exit 4\n")
    assert typist.end(same=False) == 4


def test_after_a_stop_that_cannot_be_caught_the_terminal_is_raw_again(sit_down):
    typist = sit_down("--", "sh", "-c", SIZES)
    typist.read_until(b"ready\r\n")
    typist.process.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(typist.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    raw = termios.tcgetattr(typist.slave)
    termios.tcsetattr(typist.slave, termios.TCSANOW, typist.before)
    typist.resize(20, 60)
    typist.process.send_signal(signal.SIGCONT)
    typist.read_until(b"20 60\r\n")
    assert termios.tcgetattr(typist.slave) == raw
    typist.type(b"more\n")
    typist.read_until(b"<more>")
    assert typist.end() == 0


def test_the_terminal_is_given_back_after_a_kill(sit_down):
    typist = sit_down("--policy", "patch", "--", "mkdir", "/tmp/x")
    assert typist.end() == 137
    assert b"was killed" in typist.shown


def test_the_terminal_is_given_back_after_a_failure(sit_down):
    typist = sit_down("--", "no-such-program")
    assert typist.end() == 2
    assert b"no-such-program" in typist.shown


def test_no_tty_means_pipes(sit_down):
    typist = sit_down("--no-tty", "--", "sh", "-c", "test -t 0 || test -t 1 || test -t 2 || echo none")
    assert typist.end() == 0
    assert typist.shown == b"none\r\n"


def test_without_terminals_there_is_one_only_if_asked_for():
    command = [sys.executable, "-m", "thinbox", "run", "-q"]
    script = ["--", "sh", "-c", "tty; stty size"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": LIMIT_S, "check": False}
    plain = subprocess.run([*command, *script], env=environment, **streams)
    assert plain.stdout == b"not a tty\n"
    asked = subprocess.run([*command, "-t", *script], env=environment, **streams)
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, b"/dev/pts/0\r\n24 80\r\n", b"")


def test_a_stderr_that_goes_elsewhere_goes_on_going_there(sit_down, tmp_path):
    with (tmp_path / "err").open("wb") as stderr:
        typist = sit_down("--", "sh", "-c", "echo out; echo err >&2", stderr=stderr)
        assert typist.end() == 0
    assert typist.shown == b"out\r\n"
    assert (tmp_path / "err").read_bytes() == b"err\n"


class Left(Exception):
    pass


@pytest.mark.parametrize(
    ("typed", "tenant"),
    [
        (b"ls ~.\r", b"ls ~.\r"),
        (b"~~.\r", b"~.\r"),
        (b"~/bin\r", b"~/bin\r"),
        (b"a\r~b", b"a\r~b"),
        (b"~~~.\r", b"~~.\r"),
        (b"~\r~\r", b"~\r~\r"),
        (b"\x03\x1a\x04", b"\x03\x1a\x04"),
    ],
)
def test_a_tilde_is_only_an_escape_at_the_start_of_a_line_and_before_its_keys(typed, tenant):
    def leave():
        raise Left

    whole = EscapeKeys(leave, leave)
    assert whole(typed) == tenant
    one_by_one = EscapeKeys(leave, leave)
    assert b"".join(one_by_one(bytes([key])) for key in typed) == tenant


@pytest.mark.parametrize("typed", [b"~.", b"a\n~.", b"\r~.", b"~~\r~.", b"~\r~.", b"~a\r~\x1a"])
def test_tilde_dot_and_tilde_ctrl_z_at_the_start_of_a_line_are_for_thinbox(typed):
    def leave():
        raise Left

    with pytest.raises(Left):
        EscapeKeys(leave, leave)(typed)


def test_after_a_suspension_a_line_starts():
    calls = []
    keys = EscapeKeys(lambda: calls.append("leave"), lambda: calls.append("suspend"))
    assert keys(b"~\x1a~.x") == b"x"
    assert calls == ["suspend", "leave"]
