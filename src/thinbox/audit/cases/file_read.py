"""Reading: `read` and its relatives, from every kind of file."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import FILE_BYTES, file_content
from thinbox.audit.expect import POSITIVE, ZERO, Expect, either, exactly, fails
from thinbox.audit.files import (
    AF_UNIX,
    BAD_ADDRESS,
    BAD_FD,
    O_DIRECT,
    O_NONBLOCK,
    O_PATH,
    O_RDWR,
    O_WRONLY,
    PAGE,
    SOCK_DGRAM,
    SOCK_STREAM,
    filled_pipe,
    iovec,
    map_pages,
    open_file,
    open_pair,
    open_pipe,
    open_terminal,
    send_later,
    timespec,
)
from thinbox.harness.process import Steps

CONTENT = file_content()

plain("read", "closed descriptor", (BAD_FD, BAD_ADDRESS, 1), fails(errno.EBADF))


def _reads_regular(name: str, size: int, *, seek: int = 0, at: int = 0) -> None:
    """`read` of `size` bytes at file position `seek` into a buffer that begins `at` bytes into a page."""

    @success("read", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process)
        yield from process.must("lseek", handle, seek, 0)
        place = -(-process.buffer(size + 2 * PAGE) // PAGE) * PAGE + at
        expected = CONTENT[seek : seek + size]
        yield from process.measure(handle, place, size, expect=exactly(len(expected)))
        process.check(process.read(place, len(expected)) == expected, "the file's bytes")


_reads_regular("regular, 1 byte", 1)
_reads_regular("regular, 100 bytes from the middle", 100, seek=5000)
_reads_regular("regular, 0 bytes", 0)
_reads_regular("regular, a page", PAGE)
_reads_regular("regular, across two pages of the buffer", 200, at=PAGE - 100)
_reads_regular("regular, across two pages of the file", 200, seek=PAGE - 100)
_reads_regular("regular, all of it", FILE_BYTES)
_reads_regular("regular, more than there is", 16384, seek=9000)
_reads_regular("regular, at the end", 10, seek=FILE_BYTES)


@success("read", "regular, into pages never touched")
def read_untouched(process: Process) -> Steps:
    handle = yield from open_file(process)
    place = yield from map_pages(process, 3)
    yield from process.measure(handle, place, FILE_BYTES, expect=exactly(FILE_BYTES))
    process.check(process.read(place, FILE_BYTES) == CONTENT, "the file's bytes")
    process.watch(place, FILE_BYTES)


def _reads_path(name: str, path: str, size: int, expect: Expect, *, flags: int = 0, starts: bytes = b"") -> None:
    """`read` of a file whose content begins with `starts`."""

    @success("read", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, flags)
        place = process.buffer(size)
        yield from process.measure(handle, place, size, expect=expect)
        process.check(process.read(place, len(starts)) == starts, f"what {path} begins with")


_reads_path("/dev/null", "/dev/null", 100, ZERO)
_reads_path("/dev/full", "/dev/full", 100, exactly(100))
_reads_path("/proc/version", "/proc/version", 400, POSITIVE, starts=b"Linux version ")
_reads_path("/proc/self/maps", "/proc/self/maps", PAGE, POSITIVE, starts=b"00400000-00401000 r-xp ")
_reads_path("/proc/self/cmdline", "/proc/self/cmdline", 100, POSITIVE, starts=b"/init")
_reads_path("/proc/mounts", "/proc/mounts", PAGE, POSITIVE, starts=b"rootfs / rootfs rw")
_reads_path("/proc/filesystems", "/proc/filesystems", PAGE, POSITIVE, starts=b"nodev\tsysfs\n")
_reads_path("/proc/sys/kernel/ostype", "/proc/sys/kernel/ostype", 100, exactly(6), starts=b"Linux\n")
_reads_path("/proc/kallsyms", "/proc/kallsyms", PAGE, POSITIVE, starts=b"")
_reads_path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
            "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", 100, exactly(8), starts=b"2097152\n")  # fmt: skip
_reads_path("/sys, binary", "/sys/kernel/notes", 32, exactly(32))
_reads_path("/dev/kmsg", "/dev/kmsg", 512, POSITIVE, flags=O_NONBLOCK)
_reads_path("/dev/mem, the real mode vectors", "/dev/mem", 64, exactly(64))


@success("read", "/dev/zero, three pages over old bytes")
def read_zero(process: Process) -> Steps:
    handle = yield from open_file(process, "/dev/zero")
    place = process.buffer(b"x" * (3 * PAGE))
    yield from process.measure(handle, place, 3 * PAGE, expect=exactly(3 * PAGE))
    process.check(not any(process.read(place, 3 * PAGE)), "zeros")


def _reads_varying(name: str, path: str, size: int, expect: Expect, *, flags: int = 0) -> None:
    @success("read", name, varies=True)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, flags)
        place = process.buffer(size)
        process.volatile(place, size)
        yield from process.measure(handle, place, size, expect=expect)
        process.check(any(process.read(place, size)), "not all zeros")


_reads_varying("/dev/urandom, 16 bytes", "/dev/urandom", 16, exactly(16))
_reads_varying("/dev/urandom, two pages", "/dev/urandom", 2 * PAGE, exactly(2 * PAGE))
_reads_varying("/dev/random", "/dev/random", 32, exactly(32), flags=O_NONBLOCK)
_reads_varying("/proc/meminfo", "/proc/meminfo", PAGE, POSITIVE)
_reads_varying("/proc/self/stat", "/proc/self/stat", PAGE, POSITIVE)
_reads_varying("/proc/stat", "/proc/stat", PAGE, POSITIVE)
_reads_varying("/proc/interrupts", "/proc/interrupts", PAGE, POSITIVE)
_reads_varying("/proc/uptime", "/proc/uptime", 100, POSITIVE)
_reads_varying("/proc/slabinfo", "/proc/slabinfo", PAGE, POSITIVE)


def _read_and_check(process: Process, handle: int, expected: bytes, size: int = 100) -> Steps:
    place = process.buffer(size)
    yield from process.measure(handle, place, size, expect=exactly(len(expected)))
    process.check(process.read(place, len(expected)) == expected, f"{expected!r}")


@success("read", "pipe")
def read_pipe(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"through a pipe")
    yield from _read_and_check(process, reader, b"through a pipe")


@success("read", "pipe, two pages")
def read_pipe_pages(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, CONTENT[: 2 * PAGE])
    yield from _read_and_check(process, reader, CONTENT[: 2 * PAGE], 3 * PAGE)


@success("read", "pipe without a writer")
def read_pipe_end(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    yield from process.must("close", writer)
    yield from _read_and_check(process, reader, b"")


@success("read", "pipe, sleeps until a child writes")
def read_pipe_sleeps(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    pid = yield from process.fork(send_later(writer, b"late"))
    yield from _read_and_check(process, reader, b"late")
    yield from process.wait(pid)


@error("read", "empty pipe, not blocking")
def read_pipe_empty(process: Process) -> Steps:
    reader, _ = yield from open_pipe(process, O_NONBLOCK)
    yield from process.measure(reader, process.buffer(8), 8, expect=fails(errno.EAGAIN))


@success("read", "fifo")
def read_fifo(process: Process) -> Steps:
    handle = yield from open_file(process, "fifo", O_RDWR)
    yield from process.must("write", handle, b"in a fifo", 9)
    yield from _read_and_check(process, handle, b"in a fifo")


@success("read", "unix stream socket")
def read_unix_stream(process: Process) -> Steps:
    one, other = yield from open_pair(process, SOCK_STREAM)
    yield from process.must("write", other, b"stream", 6)
    yield from _read_and_check(process, one, b"stream")


@success("read", "unix datagram socket, cut short")
def read_unix_datagram(process: Process) -> Steps:
    one, other = yield from open_pair(process, SOCK_DGRAM)
    yield from process.must("write", other, b"datagram", 8)
    yield from _read_and_check(process, one, b"data", 4)


@success("read", "unix stream socket, sleeps")
def read_unix_sleeps(process: Process) -> Steps:
    one, other = yield from open_pair(process, SOCK_STREAM)
    pid = yield from process.fork(send_later(other, b"later"))
    yield from _read_and_check(process, one, b"later")
    yield from process.wait(pid)


@error("read", "unconnected socket")
def read_unconnected(process: Process) -> Steps:
    handle = yield from process.must("socket", AF_UNIX, SOCK_STREAM, 0)
    yield from process.measure(handle, process.buffer(8), 8, expect=fails(errno.EINVAL))


@success("read", "terminal, a line")
def read_terminal(process: Process) -> Steps:
    master, slave = yield from open_terminal(process)
    yield from process.must("write", master, b"typed\nmore", 10)
    yield from _read_and_check(process, slave, b"typed\n")


@success("read", "terminal, raw")
def read_terminal_raw(process: Process) -> Steps:
    master, slave = yield from open_terminal(process, raw=True)
    yield from process.must("write", master, b"\x03raw", 4)
    yield from _read_and_check(process, slave, b"\x03raw")


@success("read", "terminal's master, what was echoed")
def read_terminal_master(process: Process) -> Steps:
    master, _slave = yield from open_terminal(process)
    yield from process.must("write", master, b"ab\n", 3)
    yield from _read_and_check(process, master, b"ab\r\n")


@success("read", "eventfd")
def read_eventfd(process: Process) -> Steps:
    handle = yield from process.must("eventfd2", 7, 0)
    yield from _read_and_check(process, handle, struct.pack("<Q", 7), 8)


@error("read", "eventfd, fewer than 8 bytes")
def read_eventfd_short(process: Process) -> Steps:
    handle = yield from process.must("eventfd2", 7, 0)
    yield from process.measure(handle, process.buffer(8), 4, expect=fails(errno.EINVAL))


@success("read", "timerfd, sleeps until it expires")
def read_timerfd(process: Process) -> Steps:
    handle = yield from process.must("timerfd_create", 1, 0)
    yield from process.must("timerfd_settime", handle, 0, timespec(0) + timespec(0, 3_000_000), 0)
    yield from _read_and_check(process, handle, struct.pack("<Q", 1), 8)


@success("read", "signalfd")
def read_signalfd(process: Process) -> Steps:
    mask = process.buffer(struct.pack("<Q", 1 << 9))  # SIGUSR1
    yield from process.must("rt_sigprocmask", 0, mask, 0, 8)
    handle = yield from process.must("signalfd4", -1, mask, 8, 0)
    pid = yield from process.must("getpid")
    yield from process.must("kill", pid, 10)
    place = process.buffer(128)
    yield from process.measure(handle, place, 128, expect=exactly(128))
    process.check(process.read_int(place) == 10 and process.read_int(place + 12) == pid, "SIGUSR1 from itself")


@success("read", "inotify")
def read_inotify(process: Process) -> Steps:
    handle = yield from process.must("inotify_init1", 0)
    watch = yield from process.must("inotify_add_watch", handle, "dir", 0x100)  # IN_CREATE
    yield from process.must("mkdir", "dir/new", 0o755)
    expected = struct.pack("<iIII16s", watch, 0x40000100, 0, 16, b"new")
    yield from _read_and_check(process, handle, expected)


@success("read", "memfd")
def read_memfd(process: Process) -> Steps:
    handle = yield from process.must("memfd_create", "m", 0)
    yield from process.must("pwrite64", handle, b"memory", 6, PAGE - 3)
    place = process.buffer(PAGE + 16)
    yield from process.measure(handle, place, PAGE + 16, expect=exactly(PAGE + 3))
    process.check(process.read(place + PAGE - 5, 8) == b"\0\0memory", "a hole and the bytes")


@success("read", "pidfd's fdinfo")
def read_fdinfo(process: Process) -> Steps:
    yield from process.must("dup2", (yield from open_file(process)), 20)
    handle = yield from open_file(process, "/proc/self/fdinfo/20")
    place = process.buffer(256)
    yield from process.measure(handle, place, 256)
    process.check(process.read(place, 19) == b"pos:\t0\nflags:\t01000", "position and flags")


@error("read", "directory")
def read_directory(process: Process) -> Steps:
    handle = yield from open_file(process, "dir")
    yield from process.measure(handle, process.buffer(8), 8, expect=fails(errno.EISDIR))


@error("read", "O_PATH descriptor")
def read_path(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_PATH)
    yield from process.measure(handle, process.buffer(8), 8, expect=fails(errno.EBADF))


@error("read", "opened for writing")
def read_writer(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_WRONLY)
    yield from process.measure(handle, process.buffer(8), 8, expect=fails(errno.EBADF))


@error("read", "/dev/hwrng without hardware")
def read_hwrng(process: Process) -> Steps:
    handle = yield from open_file(process, "/dev/hwrng")
    yield from process.measure(handle, process.buffer(8), 8, expect=fails(errno.ENODEV))


@error("read", "bad address")
def read_bad(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, BAD_ADDRESS, 8, expect=fails(errno.EFAULT))


@error("read", "kernel address")
def read_kernel_address(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, 0xFFFFFFFF81000000, 8, expect=fails(errno.EFAULT))


@error("open", "O_DIRECT on tmpfs")
def open_direct(process: Process) -> Steps:
    yield from process.measure("file", O_DIRECT, 0, expect=either(fails(errno.EINVAL), POSITIVE))  # 6.6: allowed


# -- the relatives ----------------------------------------------------------------------------------
def _reads_vector(call: str, name: str, rest: tuple[int, ...], start: int) -> None:
    """A vectored read of 5, 0 and 4100 bytes, `rest` being the arguments after the vector."""

    @success(call, name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process)
        one, two = process.buffer(64), process.buffer(2 * PAGE)
        vector = iovec((one, 5), (0, 0), (two, PAGE + 4))
        yield from process.measure(handle, vector, 3, *rest, expect=exactly(PAGE + 9))
        found = process.read(one, 5) + process.read(two, PAGE + 4)
        process.check(found == CONTENT[start : start + PAGE + 9], "the file's bytes in two pieces")


_reads_vector("readv", "regular, three pieces", (), 0)
_reads_vector("preadv", "regular, three pieces", (777, 0), 777)
_reads_vector("preadv2", "regular, at a position", (777, 0, 0), 777)
_reads_vector("preadv2", "regular, where it stands", (-1, -1, 0), 0)
_reads_vector("preadv2", "regular, RWF_HIPRI", (PAGE, 0, 1), PAGE)
plain("readv", "closed descriptor", (BAD_FD, iovec((4096, 1)), 1), fails(errno.EBADF))
plain("readv", "more than 1024 pieces", (0, bytes(16), 1025), fails(errno.EINVAL))
plain("preadv", "negative position", (0, bytes(16), 1, -1, 0), fails(errno.EINVAL))
plain("preadv", "terminal", (0, iovec((4096, 1)), 1, 0, 0), fails(errno.ESPIPE))
plain("preadv2", "closed descriptor", (BAD_FD, iovec((4096, 1)), 1, 0, 0, 0), fails(errno.EBADF))
plain("pread64", "closed descriptor", (BAD_FD, BAD_ADDRESS, 1, 0), fails(errno.EBADF))
plain("pread64", "terminal", (0, BAD_ADDRESS, 1, 0), fails(errno.ESPIPE))


@error("preadv2", "unknown flag")
def preadv2_flag(process: Process) -> Steps:
    handle = yield from open_file(process)
    vector = iovec((process.buffer(8), 8))
    yield from process.measure(handle, vector, 1, 0, 0, 0x80, expect=fails(errno.EOPNOTSUPP))


@success("readv", "pipe, two pieces")
def readv_pipe(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"onetwo")
    one, two = process.buffer(8), process.buffer(8)
    yield from process.measure(reader, iovec((one, 3), (two, 8)), 2, expect=exactly(6))
    process.check((process.read(one, 3), process.read(two, 3)) == (b"one", b"two"), "two pieces")


@success("readv", "/dev/zero")
def readv_zero(process: Process) -> Steps:
    handle = yield from open_file(process, "/dev/zero")
    place = process.buffer(b"old")
    yield from process.measure(handle, iovec((place, 2)), 1, expect=exactly(2))
    process.check(process.read(place, 3) == b"\0\0d", "two zeros")


def _reads_at(name: str, path: str, size: int, offset: int, expected: bytes) -> None:
    @success("pread64", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path)
        place = process.buffer(max(size, 1))
        yield from process.measure(handle, place, size, offset, expect=exactly(len(expected)))
        process.check(process.read(place, len(expected)) == expected, "the bytes there")
        position = yield from process.must("lseek", handle, 0, 1)
        process.check(position == 0, "the position as it was")


_reads_at("regular, 1 byte", "file", 1, 9, CONTENT[9:10])
_reads_at("regular, two pages and more", "file", 9000, 50, CONTENT[50:9050])
_reads_at("regular, behind the end", "file", 10, 1 << 40, b"")
_reads_at("/proc/sys/kernel/ostype", "/proc/sys/kernel/ostype", 10, 2, b"nux\n")
_reads_at("/proc/version", "/proc/version", 5, 6, b"versi")
_reads_at("/dev/zero", "/dev/zero", 5, 1 << 33, bytes(5))
