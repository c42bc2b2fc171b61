"""The measurements of `thinbox bench`.

Why it exists: machines are noisy and differ, so a figure is a ratio of two things timed in turn in one
sitting, each the median of several runs. Host seconds say how fast thinbox is, never what isolation would
cost on hardware.

Rules of this file: what is timed is a whole process wherever a user would wait for one.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from thinbox.bench.figure import Figure
from thinbox.bench.lookups import lookup_figures
from thinbox.bench.tlb import tlb_figure
from thinbox.boot.params import BootParams
from thinbox.boot.ready import ReadyGuest, prepare
from thinbox.errors import MachineError

if TYPE_CHECKING:
    from thinbox.image.companions import KernelSpec

BOOTED = b"Run /init as init process"
_QEMU_LIMIT_S = 180.0
SCRIPT = Path(__file__).parent.parent / "data" / "script.sh"


def measure_all(runs: int, kernel: "str | KernelSpec | None", say: Callable[[str], None]) -> list[Figure]:
    """Measure everything `runs` times; minutes, not seconds."""
    # Peak memory first: Linux counts what the parent holds at fork into the child's figure (ru_maxrss).
    say("peak memory of the 300-line script")
    with SCRIPT.open("rb") as script:
        _seconds, peak = _timed(_command("run", "--", "sh", "-s", kernel=kernel), script)
    guest = prepare(kernel, progress=say)
    figures = [_boot_figure(runs, kernel, guest, say), _start_figure(runs, kernel, say)]
    figures += _script_figures(runs, kernel, say)
    figures += [tlb_figure(runs, say), *lookup_figures(runs, kernel, say)]
    note = "the 300-line script, whole process"
    return [*figures, Figure("peak memory of run", peak / (1 << 20), "MiB", "under 600 MB", note)]


def _command(*words: str, kernel: "str | KernelSpec | None") -> list[str]:
    chosen = ["--kernel", kernel] if isinstance(kernel, str) else kernel.words() if kernel is not None else []
    return [sys.executable, "-m", "thinbox", words[0], "--quiet", *chosen, *words[1:]]


def _timed(command: list[str], stdin: IO[bytes] | None = None) -> tuple[float, int]:
    """Run a whole process; return wall seconds and its peak memory in bytes."""
    started = time.perf_counter()
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(command, stdin=stdin or quiet, stdout=quiet, stderr=quiet)
    _pid, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise MachineError(f"{' '.join(command[:6])} … ended with status {child.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def _boot_figure(runs: int, kernel: "str | KernelSpec | None", guest: ReadyGuest, say: Callable[[str], None]) -> Figure:
    import shutil

    wanted = "at most 1.5, aim below 1"
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        missing = "QEMU is not installed: apt install qemu-system-x86"
        return Figure("boot / QEMU TCG boot", None, "ratio", wanted, missing)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        command = _qemu_command(qemu, kernel, guest.params, Path(folder))
        for number in range(runs):
            say(f"boot against QEMU, {number + 1} of {runs}")
            ours.append(_timed(_command("boot", "--fresh", kernel=kernel))[0])
            theirs.append(_qemu_boot_s(command))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    medians = f"thinbox {statistics.median(ours):.2f} s, QEMU {statistics.median(theirs):.2f} s"
    note = f"whole processes to user space, thinbox's with its snapshot stored; {medians}"
    return Figure("boot / QEMU TCG boot", ratio, "ratio", wanted, note)


_QEMU_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+movbe,+popcnt,+aes,+pclmulqdq,+adx,+abm,+smep,+smap,+fsgsbase,+rdtscp"
"""The guest's CPU (`machine.cpu_model`), as QEMU spells it."""


def _qemu_command(qemu: str, kernel: "str | KernelSpec | None", params: BootParams, folder: Path) -> list[str]:
    from thinbox.guest.initramfs import build_initramfs, fetch_busybox
    from thinbox.image.source import resolve_kernel

    initramfs = folder / "initramfs"
    initramfs.write_bytes(build_initramfs(fetch_busybox()))
    words = ["-M", "pc,accel=tcg", "-cpu", _QEMU_CPU, "-m", str(params.memory_mib), "-display", "none", "-no-reboot"]
    words += ["-serial", "stdio", "-kernel", str(resolve_kernel(kernel).path), "-initrd", str(initramfs)]
    return [qemu, *words, "-append", params.full_command_line]


def _qemu_boot_s(command: list[str]) -> float:
    started = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        if child.stdout is None:
            raise MachineError("QEMU has no output")
        for line in child.stdout:
            if BOOTED in line:
                return time.perf_counter() - started
            if time.perf_counter() - started > _QEMU_LIMIT_S:
                break
        raise MachineError("QEMU did not boot this kernel to user space")
    finally:
        child.kill()
        child.wait()


def _start_figure(runs: int, kernel: "str | KernelSpec | None", say: Callable[[str], None]) -> Figure:
    seconds = []
    for number in range(runs + 1):
        say(f"restore and `run -- true`, {number} of {runs}")
        seconds.append(_timed(_command("run", "--", "true", kernel=kernel))[0])
    value = statistics.median(seconds[1:])
    return Figure("run -- true", value, "s", "at most 2 s, aim for 1", "whole process, warm cache")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _script_figures(runs: int, kernel: "str | KernelSpec | None", say: Callable[[str], None]) -> list[Figure]:
    """The 300-line script, isolated and not in turn; the cost of a fault is the difference by their number."""
    from thinbox.session.session import RunOptions, run

    guest = prepare(kernel)
    command = ["sh", "-c", SCRIPT.read_text()]
    ratios, costs, covered = [], [], []
    for number in range(runs):
        say(f"the 300-line script isolated and not, {number + 1} of {runs}")
        began = time.perf_counter()
        isolated = run(guest, command).record
        wall = time.perf_counter() - began
        plain = run(guest, command, RunOptions(isolate="none")).record
        covered.append(_seconds(lambda: run(guest, command, RunOptions(coverage=True))) / wall)
        totals = isolated.totals
        ratios.append(isolated.wall_s / plain.wall_s)
        costs.append((isolated.wall_s - plain.wall_s) * 1e6 / (totals["code_faults"] + totals["data_faults"]))
    return [
        Figure(
            "script isolated / not", statistics.median(ratios), "ratio", "at most 4, aim for 2", "wall time of the run"
        ),
        Figure(
            "cost of one granted fault",
            statistics.median(costs),
            "us",
            "at most 20 us, aim for 5",
            "wall time isolated less not, by the pages granted; host time in the emulator",
        ),
        Figure(
            "script with coverage / without",
            statistics.median(covered),
            "ratio",
            "at most 1.5",
            "both isolated; restore, run, and looking everything up in the symbols",
        ),
    ]
