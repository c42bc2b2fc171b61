"""Writing: `write` and its relatives, to every kind of file."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import FILE_BYTES, file_content
from thinbox.audit.expect import exactly, fails
from thinbox.audit.files import (
    BAD_ADDRESS,
    BAD_FD,
    O_APPEND,
    O_CREAT,
    O_DSYNC,
    O_NONBLOCK,
    O_PATH,
    O_RDWR,
    O_TRUNC,
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
    read_back,
    rest,
)
from thinbox.harness.process import Steps

CONTENT = file_content()
SIGPIPE = 13

plain("write", "closed descriptor", (BAD_FD, BAD_ADDRESS, 1), fails(errno.EBADF))
plain("pwrite64", "closed descriptor", (BAD_FD, BAD_ADDRESS, 1, 0), fails(errno.EBADF))
plain("pwrite64", "negative position", (1, BAD_ADDRESS, 1, -1), fails(errno.EINVAL))
plain("writev", "closed descriptor", (BAD_FD, iovec((PAGE, 1)), 1), fails(errno.EBADF))
plain("writev", "more than 1024 pieces", (1, bytes(16), 1025), fails(errno.EINVAL))
plain("pwritev", "terminal", (1, iovec((PAGE, 1)), 1, 0, 0), fails(errno.ESPIPE))
plain("pwritev2", "closed descriptor", (BAD_FD, iovec((PAGE, 1)), 1, 0, 0, 0), fails(errno.EBADF))
plain("write", "console, a line", (1, b"a line\n", 7), exactly(7))


def _writes_regular(
    name: str, data: bytes, *, flags: int = 0, seek: int = 0, at: int = 0, expected: bytes | None = None
) -> None:
    """`write` of `data` at position `seek`, from `at` bytes into a page; `expected` is what the file then holds from
    `seek` (the data, if not said)."""

    @success("write", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, "file", O_WRONLY | flags)
        yield from process.must("lseek", handle, seek, 0)
        place = -(-process.buffer(len(data) + 2 * PAGE) // PAGE) * PAGE + at
        process.write(place, data)
        yield from process.measure(handle, place, len(data), expect=exactly(len(data)))
        wanted = data if expected is None else expected
        found = yield from read_back(process, "file", len(wanted), seek)
        process.check(found == wanted, "the file holds the bytes")


LINES = CONTENT[::-1]
_writes_regular("regular, 1 byte", b"!", expected=b"!" + CONTENT[1:20])
_writes_regular("regular, 0 bytes", b"", expected=CONTENT[:20])
_writes_regular("regular, a page over a page", LINES[:PAGE])
_writes_regular("regular, across two pages of the buffer", LINES[:200], at=PAGE - 100)
_writes_regular("regular, across two pages of the file", LINES[:200], seek=PAGE - 100)
_writes_regular("regular, longer than it was", LINES, seek=3)
_writes_regular("regular, behind a new hole", b"far", seek=50_000)
_writes_regular("regular, truncated before", b"new", flags=O_TRUNC)
_writes_regular("regular, O_DSYNC", b"sync", flags=O_DSYNC, expected=b"sync" + CONTENT[4:20])


@success("write", "regular, O_APPEND")
def write_append(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_WRONLY | O_APPEND)
    yield from process.measure(handle, b"end", 3, expect=exactly(3))
    found = yield from read_back(process, "file", 10, FILE_BYTES - 2)
    process.check(found == CONTENT[-2:] + b"end", "the bytes are at the end")


@success("write", "new file, from pages never touched")
def write_untouched(process: Process) -> Steps:
    handle = yield from open_file(process, "new", O_CREAT | O_RDWR)
    place = yield from map_pages(process, 3)
    yield from process.measure(handle, place, 2 * PAGE + 1, expect=exactly(2 * PAGE + 1))
    found = yield from read_back(process, "new", 3 * PAGE)
    process.check(found == bytes(2 * PAGE + 1), "zeros")


def _writes_path(name: str, path: str, data: bytes, *, flags: int = 0) -> None:
    @success("write", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, O_WRONLY | flags)
        yield from process.measure(handle, data, len(data), expect=exactly(len(data)))


_writes_path("/dev/null", "/dev/null", b"gone")
_writes_path("/dev/null, two pages", "/dev/null", bytes(2 * PAGE))
_writes_path("/dev/zero", "/dev/zero", b"gone")
_writes_path("/dev/urandom, 64 bytes", "/dev/urandom", bytes(range(64)))
_writes_path("/dev/kmsg", "/dev/kmsg", b"<6>the audit writes\n")
_writes_path("/dev/ttyS0", "/dev/ttyS0", b"to the line\r\n")
_writes_path("/dev/tty0", "/dev/tty0", b"to the screen\n\x1b[31mred\x1b[0m\n")
_writes_path("/proc/self/oom_score_adj", "/proc/self/oom_score_adj", b"500")
_writes_path("/proc/self/coredump_filter", "/proc/self/coredump_filter", b"0x33")
_writes_path("/proc/self/clear_refs", "/proc/self/clear_refs", b"1")
_writes_path("/proc/sys/vm/drop_caches", "/proc/sys/vm/drop_caches", b"2\n")


def _sets(path: str, data: bytes, found: bytes) -> None:
    """`write` to a setting that then reads as `found`."""

    @success("write", path)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, O_WRONLY)
        yield from process.measure(handle, data, len(data), expect=exactly(len(data)))
        process.check((yield from read_back(process, path)) == found, f"{path} reads {found!r}")


_sets("/proc/self/comm", b"renamed", b"renamed\n")
_sets("/proc/sys/kernel/hostname", b"other", b"other\n")
_sets("/proc/sys/vm/swappiness", b"33\n", b"33\n")
_sets("/sys/kernel/mm/transparent_hugepage/enabled", b"never", b"always madvise [never]\n")


def _write_error(name: str, path: str, flags: int, data: bytes, number: int) -> None:
    @error("write", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, flags)
        yield from process.measure(handle, data, len(data), expect=fails(number))


_write_error("/dev/full", "/dev/full", O_WRONLY, b"x", errno.ENOSPC)
_write_error("opened for reading", "file", 0, b"x", errno.EBADF)
_write_error("O_PATH descriptor", "file", O_PATH, b"x", errno.EBADF)
_write_error("a setting out of range", "/proc/sys/vm/swappiness", O_WRONLY, b"999", errno.EINVAL)


@error("write", "bad address")
def write_bad(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_WRONLY)
    yield from process.measure(handle, BAD_ADDRESS, 8, expect=fails(errno.EFAULT))


@error("write", "beyond the file size limit")
def write_limit(process: Process) -> Steps:
    yield from process.must("rt_sigaction", 25, struct.pack("<4Q", 1, 0, 0, 0), 0, 8)  # SIGXFSZ ignored
    yield from process.must("setrlimit", 1, struct.pack("<QQ", 100, 100))
    handle = yield from open_file(process, "file", O_WRONLY)
    yield from process.must("lseek", handle, 100, 0)
    yield from process.measure(handle, b"x", 1, expect=fails(errno.EFBIG))


@error("write", "memfd sealed against it")
def write_sealed(process: Process) -> Steps:
    handle = yield from process.must("memfd_create", "m", 2)
    yield from process.must("fcntl", handle, 1033, 8)  # F_ADD_SEALS, F_SEAL_WRITE
    yield from process.measure(handle, b"x", 1, expect=fails(errno.EPERM))


# -- pipes, sockets, terminals, counters -------------------------------------------------------------
def _write_and_read(process: Process, writer: int, reader: int, data: bytes, expected: bytes | None = None) -> Steps:
    wanted = data if expected is None else expected
    place = process.buffer(len(wanted) + 64)
    yield from process.measure(writer, process.buffer(data), len(data), expect=exactly(len(data)))
    count = yield from process.must("read", reader, place, len(wanted) + 64)
    process.check(process.read(place, count) == wanted, f"{wanted[:50]!r} arrived")


@success("write", "pipe")
def write_pipe(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    yield from _write_and_read(process, writer, reader, b"through")


@success("write", "pipe, appended to a page that is not full")
def write_pipe_append(process: Process) -> Steps:
    reader, writer = yield from filled_pipe(process, b"first ")
    yield from _write_and_read(process, writer, reader, b"second", b"first second")


@success("write", "pipe, three pages")
def write_pipe_pages(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    yield from _write_and_read(process, writer, reader, CONTENT[: 2 * PAGE + 1])


@success("write", "full pipe, sleeps until a child reads")
def write_pipe_sleeps(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    yield from process.must("fcntl", writer, 1031, PAGE)  # F_SETPIPE_SZ
    yield from process.must("write", writer, process.buffer(PAGE), PAGE)

    def child(me: Process) -> Steps:
        yield from rest(me)
        yield from me.must("read", reader, me.buffer(PAGE), PAGE)

    pid = yield from process.fork(child)
    yield from process.measure(writer, b"waits", 5, expect=exactly(5))
    yield from process.wait(pid)


@error("write", "full pipe, not blocking")
def write_pipe_full(process: Process) -> Steps:
    _, writer = yield from open_pipe(process, O_NONBLOCK)
    yield from process.must("fcntl", writer, 1031, PAGE)
    yield from process.must("write", writer, process.buffer(PAGE), PAGE)
    yield from process.measure(writer, b"x", 1, expect=fails(errno.EAGAIN))


@error("write", "pipe without a reader")
def write_pipe_broken(process: Process) -> Steps:
    yield from process.must("rt_sigaction", SIGPIPE, struct.pack("<4Q", 1, 0, 0, 0), 0, 8)
    reader, writer = yield from open_pipe(process)
    yield from process.must("close", reader)
    yield from process.measure(writer, b"x", 1, expect=fails(errno.EPIPE))


@success("write", "fifo")
def write_fifo(process: Process) -> Steps:
    handle = yield from open_file(process, "fifo", O_RDWR)
    yield from _write_and_read(process, handle, handle, b"in a fifo")


@success("write", "unix stream socket")
def write_unix_stream(process: Process) -> Steps:
    one, other = yield from open_pair(process, SOCK_STREAM)
    yield from _write_and_read(process, one, other, CONTENT[: PAGE + 7])


@success("write", "unix datagram socket")
def write_unix_datagram(process: Process) -> Steps:
    one, other = yield from open_pair(process, SOCK_DGRAM)
    yield from _write_and_read(process, one, other, b"datagram")


@success("write", "terminal, translated")
def write_terminal(process: Process) -> Steps:
    master, slave = yield from open_terminal(process)
    yield from _write_and_read(process, slave, master, b"a\nb\tc\n", b"a\r\nb\tc\r\n")


@success("write", "terminal, raw")
def write_terminal_raw(process: Process) -> Steps:
    master, slave = yield from open_terminal(process, raw=True)
    yield from _write_and_read(process, slave, master, b"a\nb\n")


@success("write", "terminal's master, edited and echoed")
def write_terminal_master(process: Process) -> Steps:
    master, slave = yield from open_terminal(process)
    yield from _write_and_read(process, master, slave, b"ax\x7fb\x15whole\n", b"whole\n")


@success("write", "eventfd")
def write_eventfd(process: Process) -> Steps:
    handle = yield from process.must("eventfd2", 1, 0)
    yield from _write_and_read(process, handle, handle, struct.pack("<Q", 41), struct.pack("<Q", 42))


@error("write", "eventfd, the value that is not allowed")
def write_eventfd_most(process: Process) -> Steps:
    handle = yield from process.must("eventfd2", 1, 0)
    yield from process.measure(handle, b"\xff" * 8, 8, expect=fails(errno.EINVAL))


@success("write", "memfd")
def write_memfd(process: Process) -> Steps:
    handle = yield from process.must("memfd_create", "m", 0)
    yield from process.measure(handle, b"memory", 6, expect=exactly(6))
    process.check((yield from read_back(process, f"/proc/self/fd/{handle}")) == b"memory", "the bytes")


# -- the relatives -----------------------------------------------------------------------------------
def _writes_vector(call: str, name: str, rest_args: tuple[int, ...], start: int) -> None:
    """A vectored write of `one`, nothing and `two!`, `rest_args` being the arguments after the vector."""

    @success(call, name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, "file", O_RDWR)
        vector = iovec((process.buffer(b"one"), 3), (0, 0), (process.buffer(b"two!"), 4))
        yield from process.measure(handle, vector, 3, *rest_args, expect=exactly(7))
        process.check((yield from read_back(process, "file", 7, start)) == b"onetwo!", "both pieces")


_writes_vector("writev", "regular, three pieces", (), 0)
_writes_vector("pwritev", "regular, across two pages", (PAGE - 4, 0), PAGE - 4)
_writes_vector("pwritev2", "regular, at a position", (50, 0, 0), 50)
_writes_vector("pwritev2", "regular, where it stands", (-1, -1, 0), 0)
_writes_vector("pwritev2", "regular, RWF_APPEND", (0, 0, 0x10), FILE_BYTES)
_writes_vector("pwritev2", "regular, RWF_DSYNC", (0, 0, 2), 0)


@success("writev", "pipe, two pieces")
def writev_pipe(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    vector = iovec((process.buffer(b"one"), 3), (process.buffer(CONTENT[:PAGE]), PAGE))
    yield from process.measure(writer, vector, 2, expect=exactly(PAGE + 3))
    place = process.buffer(PAGE + 3)
    yield from process.must("read", reader, place, PAGE + 3)
    process.check(process.read(place, PAGE + 3) == b"one" + CONTENT[:PAGE], "both pieces")


@success("writev", "unix stream socket")
def writev_socket(process: Process) -> Steps:
    one, other = yield from open_pair(process)
    vector = iovec((process.buffer(b"one"), 3), (process.buffer(b"two"), 3))
    yield from process.measure(one, vector, 2, expect=exactly(6))
    place = process.buffer(6)
    yield from process.must("read", other, place, 6)
    process.check(process.read(place, 6) == b"onetwo", "both pieces")


@error("writev", "a piece at a bad address")
def writev_bad(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_WRONLY)
    yield from process.measure(handle, iovec((BAD_ADDRESS, 4)), 1, expect=fails(errno.EFAULT))


@error("pwritev2", "unknown flag")
def pwritev2_flag(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_WRONLY)
    vector = iovec((process.buffer(8), 8))
    yield from process.measure(handle, vector, 1, 0, 0, 0x80, expect=fails(errno.EOPNOTSUPP))


def _writes_at(name: str, path: str, data: bytes, offset: int) -> None:
    @success("pwrite64", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, O_WRONLY | O_CREAT)
        yield from process.measure(handle, process.buffer(data), len(data), offset, expect=exactly(len(data)))
        position = yield from process.must("lseek", handle, 0, 1)
        process.check(position == 0, "the position as it was")
        if not path.startswith("/dev"):
            found = yield from read_back(process, path, len(data), offset)
            process.check(found == data, "the bytes there")


_writes_at("regular, 1 byte", "file", b"!", 9)
_writes_at("regular, two pages at an odd place", "file", LINES[: 2 * PAGE], 50)
_writes_at("new file, far behind its end", "new", b"far", 1 << 32)
_writes_at("/dev/null", "/dev/null", b"gone", 5)
