"""The whole system: what is told of it, its log, restarting it, modules, BPF, performance counters, ports."""

import errno
import os
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.harness.process import Steps

_NOBODY = 65534


def _by_nobody(call: str, *args: int | str | bytes) -> None:
    @error(call, "by nobody")
    def body(process: Process) -> Steps:
        yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
        yield from process.measure(*args, expect=fails(errno.EPERM))


# -- sysinfo, random numbers, file systems ------------------------------------------------------------
_SYSINFO_BYTES = 112
plain(
    "sysinfo",
    "plausible",
    (bytes(_SYSINFO_BYTES),),
    ZERO,
    varies=True,
    holds=lambda data: abi.words(data)[4] > 64 << 20 and abi.words(data)[5] < abi.words(data)[4],
)
plain("sysinfo", "bad address", (1,), fails(errno.EFAULT))
for _size in (1, 16, 256, 257, 5000):
    plain("getrandom", f"{_size} bytes", (bytes(_size), _size, 0), exactly(_size), varies=True,
          holds=lambda data: len(data) < 16 or len(set(data)) > 4)  # fmt: skip
plain("getrandom", "nothing", (bytes(1), 0, 0), ZERO)
for _name, _flags in (("GRND_NONBLOCK", 1), ("GRND_RANDOM", 2), ("GRND_INSECURE", 4)):
    plain("getrandom", _name, (bytes(64), 64, _flags), exactly(64), varies=True, holds=lambda data: len(set(data)) > 4)
plain("getrandom", "unknown flags", (bytes(8), 8, 8), fails(errno.EINVAL))
plain("getrandom", "bad address", (1, 8, 0), fails(errno.EFAULT))


@success("getrandom", "across a page that was never touched")
def getrandom_untouched(process: Process) -> Steps:
    place = yield from process.must("mmap", 0, 2 * abi.PAGE, 3, 0x22, -1, 0)
    yield from process.measure(place + abi.PAGE - 8, 16, 0, expect=exactly(16))


@success("getrandom", "up to the end of what is mapped")
def getrandom_partial(process: Process) -> Steps:
    place = yield from process.must("mmap", 0, 2 * abi.PAGE, 3, 0x22, -1, 0)
    yield from process.must("munmap", place + abi.PAGE, abi.PAGE)
    yield from process.measure(place + abi.PAGE - 256, 512, 0, expect=exactly(256))


plain("sysfs", "number of a file system", (1, "proc"), POSITIVE)
plain("sysfs", "how many", (3,), POSITIVE)
plain("sysfs", "name of a number", (2, 0, bytes(64)), ZERO, holds=lambda data: data.startswith(b"sysfs\0"))
plain("sysfs", "no such file system", (1, "nothing"), fails(errno.EINVAL))
plain("sysfs", "unknown option", (9,), fails(errno.EINVAL))
plain("sysfs", "bad address", (1, 1), fails(errno.EFAULT))


@success("ustat", "of the device of a file")
def ustat(process: Process) -> Steps:
    place = process.buffer(144)
    yield from process.must("stat", "file", place)
    ustat_place = process.buffer(32)
    yield from process.measure(process.read_int(place, 8), ustat_place, expect=ZERO)
    process.check(process.read_int(ustat_place) > 0, "free blocks")


plain("ustat", "no such device", (0xFFFF, bytes(32)), fails(errno.EINVAL))
plain("vhangup", "no terminal", (), ZERO)
_by_nobody("vhangup")


@success("vhangup", "a terminal")
def vhangup_terminal(process: Process) -> Steps:
    yield from process.must("rt_sigaction", 1, abi.sigaction(1), 0, 8)
    yield from process.must("setsid")
    master = yield from process.must("open", "/dev/ptmx", os.O_RDWR | os.O_NOCTTY, 0)
    number = process.buffer(4)
    yield from process.must("ioctl", master, 0x80045430, number)
    yield from process.must("ioctl", master, 0x40045431, bytes(4))
    terminal = yield from process.must("open", f"/dev/pts/{process.read_int(number)}", os.O_RDWR, 0)
    yield from process.measure(expect=ZERO)
    gone = yield from process.call("ioctl", terminal, 0x5401, bytes(64))
    process.check(gone == -errno.EIO, "the terminal was hung up")


# -- the kernel's log ---------------------------------------------------------------------------------
for _name, _type in (("close", 0), ("open", 1), ("clear", 5), ("console off", 6), ("console on", 7)):
    plain("syslog", _name, (_type, 0, 0), ZERO)
plain("syslog", "console level", (8, 0, 5), ZERO)
plain("syslog", "unread bytes", (9, 0, 0), POSITIVE)
plain("syslog", "bytes of the buffer", (10, 0, 0), POSITIVE)
plain("syslog", "read", (2, bytes(400), 400), POSITIVE, holds=lambda data: b"Linux version" in data)
plain("syslog", "read the last", (3, bytes(400), 400), POSITIVE, holds=lambda data: data[:1] == b"<")
plain("syslog", "read the last and clear", (4, bytes(5000), 5000), POSITIVE, holds=lambda data: data[:1] == b"<")
plain("syslog", "unknown type", (99, 0, 0), fails(errno.EINVAL))
plain("syslog", "no such console level", (8, 0, 9), fails(errno.EINVAL))
_by_nobody("syslog", 5, 0, 0)

# -- restarting, another kernel -----------------------------------------------------------------------
_MAGIC, _MAGIC_2 = 0xFEE1DEAD, 672274793
plain("reboot", "Ctrl-Alt-Del on", (_MAGIC, _MAGIC_2, 0x89ABCDEF, 0), ZERO)
plain("reboot", "Ctrl-Alt-Del off", (_MAGIC, _MAGIC_2, 0, 0), ZERO)
plain("reboot", "wrong magic", (1, 2, 0, 0), fails(errno.EINVAL))
plain("reboot", "unknown command", (_MAGIC, _MAGIC_2, 0x1111, 0), fails(errno.EINVAL))
_by_nobody("reboot", _MAGIC, _MAGIC_2, 0, 0)


@success("reboot", "in a process namespace: its process 1 ends")
def reboot_namespace(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.measure_last(_MAGIC, _MAGIC_2, 0x01234567, 0)

    pid = yield from process.fork(child, flags=17 | 0x20000000)
    yield from process.wait(pid, 1)


_X86_64 = 62 << 16
plain("kexec_load", "unload, there is none", (0, 0, 0, _X86_64), ZERO)
plain("kexec_load", "another architecture", (0, 0, 0, 40 << 16), fails(errno.EINVAL))
plain("kexec_load", "unknown flags", (0, 0, 0, _X86_64 | 0x100), fails(errno.EINVAL))
plain(
    "kexec_load",
    "memory that is not there",
    (0, 1, struct.pack("<4Q", 0, 0, 1 << 50, 4096), _X86_64),
    fails(errno.EADDRNOTAVAIL),
)
plain("kexec_file_load", "unload, there is none", (-1, -1, 0, 0, 1), ZERO)
plain("kexec_file_load", "not a descriptor", (77, -1, 0, 0, 4), fails(errno.EBADF))
plain("kexec_file_load", "unknown flags", (-1, -1, 0, 0, 0x100), fails(errno.EINVAL))
_by_nobody("kexec_load", 0, 0, 0, _X86_64)
_by_nobody("kexec_file_load", -1, -1, 0, 0, 1)


@success("kexec_load", "one page")
def kexec_load(process: Process) -> Steps:
    page = process.buffer(abi.PAGE)
    segment = struct.pack("<4Q", page, abi.PAGE, 64 << 20, abi.PAGE)
    yield from process.measure(64 << 20, 1, segment, _X86_64, expect=ZERO)
    handle, place = (yield from process.must("open", "/sys/kernel/kexec_loaded", os.O_RDONLY, 0)), process.buffer(8)
    yield from process.must("read", handle, place, 8)
    process.check(process.read(place, 1) == b"1", "a kernel is loaded")


@error("kexec_file_load", "a file that is no kernel")
def kexec_file_load_text(process: Process) -> Steps:
    handle = yield from process.must("open", "file", os.O_RDONLY, 0)
    yield from process.measure(handle, -1, 0, 0, 4, expect=fails(errno.ENOEXEC))


# -- ports --------------------------------------------------------------------------------------------
plain("ioperm", "on", (0x80, 1, 1), ZERO)
plain("ioperm", "off, none were on", (0x80, 1, 0), ZERO)
plain("ioperm", "too many", (0xFFFF, 2, 1), fails(errno.EINVAL))
_by_nobody("ioperm", 0x80, 1, 1)
for _level in (0, 1, 3):
    plain("iopl", f"level {_level}", (_level,), ZERO)
plain("iopl", "no such level", (4,), fails(errno.EINVAL))
_by_nobody("iopl", 3)


@success("ioperm", "off again")
def ioperm_off(process: Process) -> Steps:
    yield from process.must("ioperm", 0, 65536, 1)
    yield from process.measure(0, 65536, 0, expect=ZERO)


# -- performance counters: struct perf_event_attr is type, size, config, ... --------------------------
def _perf(kind: int, config: int, *, flags: int = 0, period: int = 0) -> bytes:
    return struct.pack("<IIQQQQQ", kind, 120, config, period, 0, 0, flags).ljust(120, b"\0")


_DISABLE = 0x2401
for _name, _config in (
    ("CPU_CLOCK", 0),
    ("TASK_CLOCK", 1),
    ("PAGE_FAULTS", 2),
    ("CONTEXT_SWITCHES", 3),
    ("CPU_MIGRATIONS", 4),
    ("DUMMY", 9),
):
    plain("perf_event_open", f"PERF_COUNT_SW_{_name}", (_perf(1, _config), 0, -1, -1, 0), POSITIVE)
plain("perf_event_open", "of a CPU", (_perf(1, 0), -1, 0, -1, 8), POSITIVE)
plain("perf_event_open", "no counters of this CPU", (_perf(0, 0), 0, -1, -1, 0), fails(errno.ENOENT))
plain("perf_event_open", "unknown flags", (_perf(1, 0), 0, -1, -1, 1 << 20), fails(errno.EINVAL))
plain("perf_event_open", "no such process", (_perf(1, 0), 30000, -1, -1, 0), fails(errno.ESRCH))
plain("perf_event_open", "bad address", (1, 0, -1, -1, 0), fails(errno.EFAULT))
plain(
    "perf_event_open",
    "a size of another kernel",
    (struct.pack("<II", 1, 9999).ljust(120, b"\0"), 0, -1, -1, 0),
    fails(errno.E2BIG),
)


@success("perf_event_open", "counts context switches")
def perf_counts(process: Process) -> Steps:
    counter = yield from process.measure(_perf(1, 3), 0, -1, -1, 0, expect=POSITIVE)
    for _ in range(3):
        yield from process.must("nanosleep", abi.timespec(0, abi.MILLISECOND), 0)
    place = process.buffer(8)
    yield from process.must("read", counter, place, 8)
    process.check(process.read_int(place, 8) == 3, "three switches")


@success("perf_event_open", "samples into a ring")
def perf_samples(process: Process) -> Steps:
    counter = yield from process.measure(_perf(1, 0, period=10_000), 0, -1, -1, 0, expect=POSITIVE)
    ring = yield from process.must("mmap", 0, 2 * abi.PAGE, 3, 1, counter, 0)
    place = process.buffer(60_000)
    process.volatile(place, 60_000)
    yield from process.must("getrandom", place, 60_000, 0)
    yield from process.must("ioctl", counter, _DISABLE, 0)
    ends, head = process.buffer(8), process.buffer(8)
    process.volatile(head, 8)
    yield from process.must("pipe", ends)
    yield from process.must("write", process.read_int(ends + 4), ring + 1024, 8)
    yield from process.must("read", process.read_int(ends), head, 8)
    process.check(process.read_int(head, 8) > 0, "data_head of the ring: there are samples")
