"""A process of this machine that ends in time, with everything it started.

Why it exists: gVisor hangs where its platform does not work, and its sandbox lives in a session of its own, where a
signal to the process group does not find it.

Rules of this file: whatever ends the wait (time, Ctrl-C, an error) ends the whole tree, and waits until it is gone.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from thinbox.errors import InputError

_GONE_S = 5.0
"""How long killed processes may take to go."""
_LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ended by itself: status (negative: the signal), output, wall seconds."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    wall_s: float


@dataclass(frozen=True, slots=True)
class Start:
    """How a process is started: seconds it may take, its environment, descriptors it keeps, standard input."""

    limit_s: float
    env: Mapping[str, str] | None = None
    pass_fds: tuple[int, ...] = ()
    stdin: int = subprocess.DEVNULL


def run_bounded(words: Sequence[str], start: Start, watch: Callable[[int], None] | None = None) -> Ended:
    """Run `words` to the end; `watch` is called with its process id again and again meanwhile, in a thread.

    Raises:
        InputError: it did not end in time.
    """
    started = time.perf_counter()
    with running(words, start) as child, _watched(child.pid, watch):
        try:
            output, errors = child.communicate(timeout=start.limit_s)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{Path(words[0]).name} did not end within {start.limit_s:g} s") from error
        seconds = time.perf_counter() - started
    return Ended(child.returncode, output, errors, seconds)


@contextmanager
def running(words: Sequence[str], start: Start) -> Iterator["subprocess.Popen[bytes]"]:
    """Start `words` with pipes as output; at the end of the block nothing of it is left.

    It is in a session of its own, so that Ctrl-C is ours to handle, and dies with this process where setpriv is there.
    """
    setpriv = shutil.which("setpriv")
    child = subprocess.Popen(
        [setpriv, "--pdeathsig", "KILL", "--", *words] if setpriv else list(words),
        stdin=start.stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=start.env,
        pass_fds=start.pass_fds,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            _end_tree(child)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, parents first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - numbers, thousands of times
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                # The name, in brackets, may hold anything; the parent is the second word behind it.
                parent = int(Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    todo = [pid]
    while todo:
        mine = children.get(todo.pop(), [])
        found += mine
        todo += mine
    return found


def program_name(pid: int) -> str:
    """Return a process's own word for itself (argv[0]), empty if it has none or is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


def _end_tree(child: "subprocess.Popen[bytes]") -> None:
    """Kill `child` and all below it. What it starts meanwhile dies with it: gVisor asks for that (Pdeathsig)."""
    handles = []
    for pid in descendants(child.pid):
        with contextlib.suppress(OSError):
            handles.append(os.pidfd_open(pid))
    child.kill()
    for handle in handles:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    child.wait()
    end = time.monotonic() + _GONE_S
    for handle in handles:
        waiter = select.poll()
        waiter.register(handle, select.POLLIN)
        waiter.poll(max(0.0, end - time.monotonic()) * 1000)
        os.close(handle)


@contextmanager
def _watched(pid: int, watch: Callable[[int], None] | None) -> Iterator[None]:
    if watch is None:
        yield
        return
    over = Event()

    def look() -> None:
        while True:
            watch(pid)
            if over.wait(_LOOK_S):
                return

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
