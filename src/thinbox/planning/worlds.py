"""The worlds a program is run in outside thinbox: natively, under a seccomp filter, under gVisor.

Why it exists: a comparison needs the same program, the same root file system and the same clock in each.

Rules of this file: every run is a whole process of this machine, timed by its wall clock; a world that is not installed
says what to install, and is left out.
"""

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thinbox.errors import InputError

INSTALL_RUNSC = (
    "gVisor is not installed: apt install runsc (Debian), or see https://gvisor.dev/docs/user_guide/install/"
)
INSTALL_BWRAP = "bubblewrap is not installed: apt install bubblewrap"
RUN_LIMIT_S = 120


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
    if program is None:
        return _timed([*words, "--", *command], runs)
    with tempfile.TemporaryFile() as file:
        file.write(program)
        file.flush()
        words += ["--seccomp", str(file.fileno()), "--", *command]
        return _timed(words, runs, file.fileno())


def run_gvisor(root: Path, command: Sequence[str], *, runs: int = 1, platform: str = "ptrace") -> HostRun:
    """Run `command` in `root` under gVisor; InputError if it is missing."""
    runsc = shutil.which("runsc")
    if runsc is None:
        raise InputError(INSTALL_RUNSC)
    state = tempfile.mkdtemp(prefix="thinbox-runsc-")
    try:
        words = [
            runsc,
            "--root",
            state,
            "--network=none",
            f"--platform={platform}",
            "do",
            "-root",
            str(root),
            "-cwd",
            "/",
        ]
        return _timed([*words, "--", *command], runs)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _timed(words: Sequence[str], runs: int, handle: int | None = None) -> HostRun:
    seconds, done = [], None
    # The first of several warms the caches and does not count.
    for _ in range(runs + (runs > 1)):
        if handle is not None:
            os.lseek(handle, 0, os.SEEK_SET)
        started = time.perf_counter()
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=RUN_LIMIT_S,
                check=False,
                pass_fds=() if handle is None else (handle,),
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{Path(words[0]).name} did not end within {RUN_LIMIT_S} s") from error
        seconds.append(time.perf_counter() - started)
    if done is None:
        raise InputError("at least one run is needed")
    return HostRun(done.returncode, done.stdout, done.stderr, statistics.median(seconds[runs > 1 :]))
