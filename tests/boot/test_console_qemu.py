"""What the kernel prints here is what it prints in QEMU, but for the lines listed and explained below."""

import difflib
import re
import selectors
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from thinbox.boot.ready import ReadyGuest
from thinbox.guest.initramfs import build_initramfs, fetch_busybox
from thinbox.image.source import resolve_kernel

QEMU = shutil.which("qemu-system-x86_64")
TIMEOUT_S = 600.0
END = re.compile(r"Run /init as init process")
_STAMP = re.compile(r"^\[ *\d+\.\d+\] ?")


@dataclass(frozen=True, slots=True)
class Allowed:
    """Lines that may be in one console only. `by_chance`: they differ in some runs, or come late."""

    pattern: str
    why: str
    by_chance: bool = False


ALLOWED = (
    # -- firmware: QEMU runs SeaBIOS, thinbox enters the kernel by the 64-bit boot protocol
    Allowed(r"BIOS-e820: \[mem 0x0000000000100000-", "SeaBIOS keeps 128 KiB at the end of RAM for its tables"),
    Allowed(r"BIOS-e820: .* reserved$", "SeaBIOS reserves its own memory and the flash; thinbox has neither"),
    Allowed(r"DMI not present or invalid\.|SMBIOS .* present\.|DMI: QEMU", "SMBIOS tables come from SeaBIOS"),
    Allowed(r"RAMDISK: \[mem", "the loaders put the initramfs at the end of what RAM each of them sees"),
    Allowed(r"random: crng init done", "thinbox passes SETUP_RNG_SEED, which this QEMU does not"),
    Allowed(
        r"extended physical RAM map:|reserve setup_data: \[mem",
        "the kernel reserves the setup_data of thinbox's seed and prints the map once more",
    ),
    # -- what follows from the 128 KiB
    Allowed(r"last_pfn = 0x(20000|1ffe0) max_arch_pfn", "the end of RAM, see the memory map"),
    Allowed(
        r"Faking a node at |NODE_DATA\(0\) allocated|  DMA32    \[mem|  node   0: \[mem 0x0000000000100000-", "the same"
    ),
    Allowed(r"Initmem setup node 0|On node 0, zone DMA32: 32 pages in unavailable|Built 1 zonelists", "the same"),
    Allowed(r"Memory: \d+K/\d+K available", "the same, in the totals"),
    Allowed(r"\[mem 0x20000000-0x\w+\] available for PCI devices", "QEMU has flash below 4 GiB"),
    # -- CPU
    Allowed(
        r"tsc: Detected .* (processor|TSC)",
        "the clock is calibrated against the PIT; thinbox's PIT is off by its own code",
    ),
    Allowed(r"x86/PAT: |CPU MTRRs all blank|^Disabled$", "Unicorn's MTRRs are blank, for no firmware set them up"),
    Allowed(r"Last level [id]TLB entries", "Unicorn's AMD model reports no TLB sizes (CPUID 80000005h, 80000006h)"),
    Allowed(r"process: using AMD E400 aware idle routine", "Unicorn's model is of another family, without erratum 400"),
    Allowed(r"Speculative Store Bypass: Vulnerable", "QEMU 7.2 tells its qemu64 to be unaffected, Unicorn's does not"),
    # -- devices
    Allowed(r"Console: colour ", "thinbox has no graphics card"),
    Allowed(r"i8042: No controller found", "QEMU has a keyboard controller"),
    Allowed(r"rtc_cmos rtc_cmos: setting system clock to", "thinbox's clock stands at a fixed date"),
    # -- time
    Allowed(r"node 0 deferred pages initialised in \d+ms", "a duration", by_chance=True),
    Allowed(r"sched_clock: Marking stable", "durations"),
    Allowed(
        r"Trying to unpack rootfs image as initramfs",
        "printed by a worker, so its place among others varies",
        by_chance=True,
    ),
    Allowed(r"Freeing initrd memory", "printed by a worker, so its place among others varies", by_chance=True),
)
NEVER_SEEN_IS_FINE = (
    # With QEMU on a busy host the second second of uptime may come before user space does.
    Allowed(
        r"tsc: (Fast TSC calibration|Unable to calibrate|No reference|HPET/PMTIMER|using|PIT calibration)",
        "QEMU's PIT runs on host time: on a busy host the fast calibration fails and others are tried",
        by_chance=True,
    ),
    Allowed(r"platform rtc_cmos: registered platform RTC device", "printed by a worker", by_chance=True),
    Allowed(r"clocksource: tsc: mask|clocksource: Switched to clocksource tsc$", "a delayed work", by_chance=True),
)


def console_lines(text: str) -> list[str]:
    """Lines up to the start of user space, without time stamps."""
    lines = []
    for line in text.replace("\r", "").splitlines():
        line = _STAMP.sub("", line).rstrip()
        if line:
            lines.append(line)
        if END.search(line):
            return lines
    raise AssertionError("the console does not reach user space:\n" + "\n".join(lines[-5:]))


def boot_in_qemu(initramfs: Path, memory_mib: int, command_line: str) -> str:
    """Boot until user space starts; return the console."""
    process = subprocess.Popen(
        [
            str(QEMU), "-M", "pc,accel=tcg", "-cpu", "qemu64", "-m", str(memory_mib), "-nodefaults", "-no-reboot",
            "-display", "none", "-monitor", "none", "-serial", "stdio", "-serial", "null",
            "-kernel", str(resolve_kernel(None).path), "-initrd", str(initramfs), "-append", command_line,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout
    seen, limit = b"", time.monotonic() + TIMEOUT_S
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not re.search(END.pattern.encode() + rb"[^\n]*\n", seen):
                assert time.monotonic() < limit, seen[-500:]
                if selector.select(1.0):
                    data = process.stdout.read1(65536)  # type: ignore[attr-defined]
                    assert data, seen[-500:]
                    seen += data
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return seen.decode(errors="replace")


def differing_lines(ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
    """Return (side, line) of the lines not common to both in order."""
    out = []
    for line in difflib.ndiff(ours, theirs, linejunk=None, charjunk=None):
        if line[:2] in ("- ", "+ "):
            out.append(("thinbox" if line[0] == "-" else "qemu", line[2:]))
    return out


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed: apt install qemu-system-x86")
def test_the_console_differs_from_qemus_only_in_the_lines_listed(guest: ReadyGuest, tmp_path: Path) -> None:
    initramfs = tmp_path / "initramfs"
    initramfs.write_bytes(build_initramfs(fetch_busybox()))
    command_line = guest.params.full_command_line
    ours = console_lines(guest.console)
    theirs = console_lines(boot_in_qemu(initramfs, guest.params.memory_mib, command_line))
    assert len(ours) > 150
    differences = differing_lines(ours, theirs)
    unexplained = [
        f"{side}: {line}"
        for side, line in differences
        if not any(re.search(entry.pattern, line) for entry in ALLOWED + NEVER_SEEN_IS_FINE)
    ]
    assert not unexplained, "\n".join(unexplained)
    differing = [line for _side, line in differences]
    unused = [
        entry.pattern
        for entry in ALLOWED
        if not any(re.search(entry.pattern, line) for line in (ours + theirs if entry.by_chance else differing))
    ]
    assert unused == [], "these entries explain nothing any more"


def test_every_entry_says_why() -> None:
    assert all(entry.why for entry in ALLOWED)


def test_two_boots_print_the_same_to_the_byte(guest: ReadyGuest) -> None:
    from thinbox.boot.ready import prepare

    again = prepare(None, guest.params, rebuild=True)
    assert not again.from_cache
    assert again.console == guest.console
    assert again.snapshot.devices == guest.snapshot.devices
    assert (again.snapshot.numbers == guest.snapshot.numbers).all()
    assert (again.snapshot.pages == guest.snapshot.pages).all()
    assert again.snapshot.cpu == guest.snapshot.cpu
