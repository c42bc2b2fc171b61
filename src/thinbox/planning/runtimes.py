"""The runtimes a program is run in outside thinbox: natively, under a seccomp filter, under gVisor.

Why it exists: a comparison needs the same program, the same root file system and the same clock in each.

Rules of this file: every run is a whole process of this machine, timed by its wall clock; a runtime that is not
installed says what to install, and is left out.
"""

import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from thinbox.errors import InputError
from thinbox.planning.host_process import Ended, Start, run_bounded
from thinbox.planning.runsc import RUN_LIMIT_S, Runsc

INSTALL_BWRAP = "bubblewrap is not installed: apt install bubblewrap"


@dataclass(frozen=True, slots=True)
class HostRun:
    """What came of a program: status, output, and the median wall seconds of its runs."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    wall_s: float


def make_busybox_root(folder: Path) -> None:
    """Fill `folder` with thinbox's default root: busybox and its links, as in the guest."""
    from thinbox.guest.initramfs import FOLDERS, fetch_busybox

    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    busybox = folder / "bin" / "busybox"
    busybox.write_bytes(fetch_busybox())
    busybox.chmod(0o755)
    applets = subprocess.run([busybox, "--list-full"], capture_output=True, check=True, text=True).stdout.split()
    for applet in applets:
        link = folder / applet
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists() and not link.is_symlink():
            link.symlink_to("/bin/busybox")


def run_native(root: Path, command: Sequence[str], *, program: bytes | None = None, runs: int = 1) -> HostRun:
    """Run `command` in `root` under bubblewrap, with the seccomp `program` if there is one.

    Raises:
        InputError: bubblewrap is missing, or cannot make namespaces here.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise InputError(INSTALL_BWRAP)
    words = [bwrap, "--bind", str(root), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--unshare-net"]
    words += ["--die-with-parent", "--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin", "--chdir", "/"]
    if os.geteuid() != 0:
        # Root in a namespace of its own: as whom it runs in the guest, and under gVisor.
        words += ["--unshare-user", "--uid", "0", "--gid", "0"]
    if program is None:
        return _median(lambda: run_bounded([*words, "--", *command], Start(RUN_LIMIT_S)), runs)
    with tempfile.TemporaryFile() as file:
        file.write(program)
        file.flush()
        handle = file.fileno()
        words += ["--seccomp", str(handle), "--", *command]

        def run() -> Ended:
            os.lseek(handle, 0, os.SEEK_SET)
            return run_bounded(words, Start(RUN_LIMIT_S, pass_fds=(handle,)))

        return _median(run, runs)


def run_gvisor(root: Path, command: Sequence[str], runsc: Runsc, platform: str, *, runs: int = 1) -> HostRun:
    """Run `command` in `root` under gVisor; InputError if it does not end in time."""
    return _median(lambda: runsc.run(root, command, platform), runs)


def _median(run: Callable[[], Ended], runs: int) -> HostRun:
    # The first of several warms the caches and does not count.
    ended = [run() for _ in range(runs + (runs > 1))]
    if not ended:
        raise InputError("at least one run is needed")
    seconds = statistics.median(one.wall_s for one in ended[runs > 1 :])
    return HostRun(ended[-1].exit_code, ended[-1].stdout, ended[-1].stderr, seconds)
