"""A room of this machine for a container engine: its own namespaces and control group, the host's files read-only.

Why it exists: engines leave processes, mounts, control groups and files behind, and a service manager that believes it
is the first process cleans a machine up. Here what they leave goes with the room.

Rules of this file:
- In the room only its folder, /run and its control group can be written. The network is a loopback that is down.
- The control groups are version 2 only, as on today's systems; crun refuses a machine that mixes both.
- Its first process is a shell of ours, never the engine. When that shell ends, or its time is up, everything in the room
  is killed (`unshare --kill-child`, cgroup.kill).
"""

import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNSHARE = "unshare --mount --pid --fork --kill-child --mount-proc --cgroup --ipc --uts --net"
_ENTER = f'echo $$ >"$1/cgroup.procs" && shift && exec {_UNSHARE} sh -c "$0" "$@"'
_INSIDE = """set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup
while read -r _ place _; do
  case $place in /proc* | /sys* | /dev*) ;; *) mount -o remount,bind,ro "$place" || [ "$place" != / ] ;; esac
done <<EOF
$(cat /proc/mounts)
EOF
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind "$0" "$0"
mount -o remount,bind,rw "$0"
mount -t tmpfs tmpfs /run
cd "$0"
set +e
. ./script"""


class NoRoomError(Exception):
    """This machine lets no such room be made; the text says why."""


def run_in_room(folder: Path, script: str, *, limit_s: float = 600) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in a room whose folder is `folder`; what it leaves running is killed.

    Raises:
        NoRoomError: not root, no control groups of version 2, or no namespaces.
    """
    if os.geteuid() != 0:
        raise NoRoomError("container engines are tried by root only")
    (folder / "script").write_text(f"{script}\n")
    with _control_group() as group:
        words = ["sh", "-c", _ENTER, _INSIDE, str(group), str(folder)]
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            stdout, stderr = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            raise AssertionError(f"not done within {limit_s} s: {stdout[-500:]!r} {stderr[-2000:]!r}") from None
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def require_room() -> None:
    """Raise NoRoomError where no room can be made."""
    folder = Path(tempfile.mkdtemp(prefix="thinbox-room-"))
    try:
        done = run_in_room(folder, "exit 3", limit_s=300)
        if done.returncode != 3:
            raise NoRoomError(f"no namespaces here: {done.stderr.decode(errors='replace').strip()[-200:]}")
    finally:
        shutil.rmtree(folder)


@contextmanager
def _control_group() -> Iterator[Path]:
    """Yield a new control group, and take it and all below it away at the end."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    tops = [words[4] for words in mounts if words[words.index("-") + 1] == "cgroup2"]
    if not tops:
        raise NoRoomError("there are no control groups of version 2 here")
    try:
        group = Path(tempfile.mkdtemp(prefix="thinbox-room-", dir=tops[0]))
    except OSError as error:
        raise NoRoomError(f"no control group can be made here: {error.strerror}") from error
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        _wait_until_empty(group)
        for path, _folders, _files in os.walk(group, topdown=False):
            os.rmdir(path)


def _wait_until_empty(group: Path, limit_s: float = 300) -> None:
    """Wait for the kernel's own word, `populated 0` in cgroup.events, of which it tells those who poll."""
    deadline = time.monotonic() + limit_s
    with (group / "cgroup.events").open() as file:
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        while "populated 1" in file.read():
            left = deadline - time.monotonic()
            assert left > 0, f"{group} still has processes"
            poll.poll(left * 1000)
            file.seek(0)
