"""Descriptors: duplicated, controlled, locked."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, Expect, either, exactly, fails
from thinbox.audit.files import (
    BAD_ADDRESS,
    BAD_FD,
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_DIRECT,
    O_NONBLOCK,
    O_RDWR,
    O_WRONLY,
    PAGE,
    open_file,
    open_pair,
    open_pipe,
    open_terminal,
    rest,
)
from thinbox.harness.process import Steps

F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_SETOWN, F_GETOWN = range(10)
F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX = 10, 11, 15, 16
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
F_SETLEASE, F_GETLEASE, F_NOTIFY, F_DUPFD_CLOEXEC = 1024, 1025, 1026, 1030
F_SETPIPE_SZ, F_GETPIPE_SZ, F_ADD_SEALS, F_GET_SEALS = 1031, 1032, 1033, 1034
F_GET_RW_HINT, F_SET_RW_HINT = 1035, 1036
F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8

# -- dup -------------------------------------------------------------------------------------------------
plain("dup", "closed descriptor", (BAD_FD,), fails(errno.EBADF))
plain("dup", "console", (0,), POSITIVE)
plain("dup2", "closed descriptor", (BAD_FD, 5), fails(errno.EBADF))
plain("dup2", "beyond the limit", (0, 1 << 20), fails(errno.EBADF))
plain("dup2", "console, to a new number", (0, 77), exactly(77))
plain("dup2", "onto itself", (1, 1), exactly(1))
plain("dup3", "close-on-exec", (0, 77, O_CLOEXEC), exactly(77))
plain("dup3", "onto itself", (1, 1, 0), fails(errno.EINVAL))
plain("dup3", "unknown flag", (0, 77, 1), fails(errno.EINVAL))
plain("dup3", "closed descriptor", (BAD_FD, 77, 0), fails(errno.EBADF))


@success("dup", "shares the position")
def dup_position(process: Process) -> Steps:
    handle = yield from open_file(process)
    twin = yield from process.measure(handle, expect=POSITIVE)
    yield from process.must("lseek", twin, 55, 0)
    position = yield from process.must("lseek", handle, 0, 1)
    process.check(position == 55, "one position for both")


@success("dup2", "over an open pipe")
def dup2_over(process: Process) -> Steps:
    handle = yield from open_file(process)
    reader, _writer = yield from open_pipe(process)
    yield from process.measure(handle, reader, expect=exactly(reader))
    place = process.buffer(8)
    yield from process.must("read", reader, place, 4)
    process.check(process.read(place, 4) == b"line", "it is the file now")


@success("dup2", "grows the table")
def dup2_grows(process: Process) -> Steps:
    yield from process.measure(0, 900, expect=exactly(900))


@error("dup", "too many")
def dup_too_many(process: Process) -> Steps:
    yield from process.must("setrlimit", 7, struct.pack("<QQ", 3, 3))
    yield from process.measure(0, expect=fails(errno.EMFILE))


# -- fcntl -----------------------------------------------------------------------------------------------
def _controls(
    name: str, command: int, argument: int, expect: Expect, *, kind: str = "file", flags: int = O_RDWR
) -> None:
    """`fcntl` of a file of this kind: a path, or pipe (its writing end), socket, memfd, terminal."""

    @(error if expect.is_error else success)("fcntl", name)
    def body(process: Process) -> Steps:
        if kind == "pipe":
            _, handle = yield from open_pipe(process)
        elif kind == "socket":
            handle, _ = yield from open_pair(process)
        elif kind == "terminal":
            _, handle = yield from open_terminal(process)
        elif kind == "memfd":
            handle = yield from process.must("memfd_create", "m", 2)
        else:
            handle = yield from open_file(process, kind, flags)
        yield from process.measure(handle, command, argument, expect=expect)


_controls("F_DUPFD", F_DUPFD, 50, exactly(50))
_controls("F_DUPFD_CLOEXEC", F_DUPFD_CLOEXEC, 50, exactly(50), kind="pipe")
_controls("F_GETFD", F_GETFD, 0, ZERO)
_controls("F_GETFD, close-on-exec", F_GETFD, 0, exactly(1), flags=O_CLOEXEC)
_controls("F_SETFD", F_SETFD, 1, ZERO)
_controls("F_GETFL", F_GETFL, 0, exactly(0o100002))
_controls("F_GETFL, pipe", F_GETFL, 0, exactly(O_WRONLY), kind="pipe")
_controls("F_SETFL, not blocking", F_SETFL, O_NONBLOCK, ZERO, kind="pipe")
_controls("F_SETFL, appending", F_SETFL, O_APPEND, ZERO)
_controls("F_SETFL, signals, socket", F_SETFL, 0o20000, ZERO, kind="socket")
_controls("F_SETFL, signals, terminal", F_SETFL, 0o20000, ZERO, kind="terminal")
_controls("F_SETFL, direct, tmpfs cannot", F_SETFL, O_DIRECT, either(fails(errno.EINVAL), ZERO))
_controls("F_GETOWN", F_GETOWN, 0, ZERO, kind="socket")
_controls("F_SETOWN", F_SETOWN, 1, ZERO, kind="socket")
_controls("F_SETSIG", F_SETSIG, 12, ZERO, kind="pipe")
_controls("F_GETSIG", F_GETSIG, 0, ZERO, kind="pipe")
_controls("F_SETSIG, no such signal", F_SETSIG, 99, fails(errno.EINVAL), kind="pipe")
_controls("F_GETPIPE_SZ", F_GETPIPE_SZ, 0, exactly(65536), kind="pipe")
_controls("F_SETPIPE_SZ, smaller", F_SETPIPE_SZ, PAGE, exactly(PAGE), kind="pipe")
_controls("F_SETPIPE_SZ, larger", F_SETPIPE_SZ, 1 << 18, exactly(1 << 18), kind="pipe")
_controls("F_SETPIPE_SZ, beyond reason", F_SETPIPE_SZ, (1 << 31) + 1, fails(errno.EINVAL), kind="pipe")
_controls("F_ADD_SEALS", F_ADD_SEALS, 2, ZERO, kind="memfd")
_controls("F_ADD_SEALS, a file of tmpfs", F_ADD_SEALS, 2, fails(errno.EPERM))
_controls("F_GET_SEALS", F_GET_SEALS, 0, ZERO, kind="memfd")
_controls("F_GETLEASE", F_GETLEASE, 0, exactly(F_UNLCK))
_controls("F_SETLEASE, reading", F_SETLEASE, F_RDLCK, ZERO, flags=0)
_controls("F_SETLEASE, writing", F_SETLEASE, F_WRLCK, ZERO)
_controls("F_SETLEASE, reading, a writer is there", F_SETLEASE, F_RDLCK, fails(errno.EAGAIN))
_controls("F_NOTIFY", F_NOTIFY, 0x80000004, ZERO, kind="dir", flags=0)
_controls("unknown command", 77, 0, fails(errno.EINVAL))
plain("fcntl", "closed descriptor", (BAD_FD, F_GETFD, 0), fails(errno.EBADF))


@success("fcntl", "F_SETOWN_EX")
def set_owner(process: Process) -> Steps:
    handle, _ = yield from open_pair(process)
    pid = yield from process.must("getpid")
    yield from process.measure(handle, F_SETOWN_EX, struct.pack("<ii", 1, pid), expect=ZERO)
    process.check((yield from process.must("fcntl", handle, F_GETOWN, 0)) == pid, "it is the owner")


@success("fcntl", "F_GETOWN_EX")
def get_owner(process: Process) -> Steps:
    handle, _ = yield from open_pair(process)
    place = process.buffer(b"\xff" * 8)
    yield from process.measure(handle, F_GETOWN_EX, place, expect=ZERO)
    process.check(process.read_int(place + 4) == 0, "nobody")


@success("fcntl", "F_SET_RW_HINT")
def set_hint(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, F_SET_RW_HINT, struct.pack("<Q", 3), expect=ZERO)


@success("fcntl", "F_GET_RW_HINT")
def get_hint(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, F_GET_RW_HINT, process.buffer(b"\xff" * 8), expect=ZERO)


# -- record locks ----------------------------------------------------------------------------------------
def _lock(kind: int, start: int = 0, length: int = 0) -> bytes:
    """A struct flock."""
    return struct.pack("<hh4xqqi4x", kind, 0, start, length, 0)


def _locks(name: str, command: int, kind: int, *, held: int | None = None, number: int = 0) -> None:
    """A lock on bytes 10 to 20 of `file`, on which a child `held` another since before."""

    @(error if number else success)("fcntl", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, "file", O_RDWR)
        pid = 0
        if held is not None:

            def child(me: Process) -> Steps:
                own = yield from open_file(me, "file", O_RDWR)
                yield from me.must("fcntl", own, F_OFD_SETLK if command >= F_OFD_GETLK else F_SETLK, _lock(held, 0, 15))
                yield from rest(me, 20)

            pid = yield from process.fork(child)
            yield from rest(process, 5)
        place = process.buffer(_lock(kind, 10, 10))
        yield from process.measure(handle, command, place, expect=fails(number) if number else ZERO)
        if command == F_GETLK:
            found = struct.unpack("<hh4xqqi4x", process.read(place, 32))
            wanted = (F_UNLCK, 0, 10, 10, 0) if held is None else (held, 0, 0, 15, pid)
            process.check(found == wanted, f"{wanted} (found {found})")
        if pid:
            yield from process.wait(pid)


_locks("F_SETLK", F_SETLK, F_WRLCK)
_locks("F_SETLK, reading", F_SETLK, F_RDLCK)
_locks("F_SETLK, unlock of nothing", F_SETLK, F_UNLCK)
_locks("F_SETLK, another's", F_SETLK, F_WRLCK, held=F_WRLCK, number=errno.EAGAIN)
_locks("F_SETLKW, sleeps until another ends", F_SETLKW, F_WRLCK, held=F_WRLCK)
_locks("F_GETLK, free", F_GETLK, F_WRLCK)
_locks("F_GETLK, another's", F_GETLK, F_WRLCK, held=F_RDLCK)
_locks("F_OFD_SETLK", F_OFD_SETLK, F_WRLCK)
_locks("F_OFD_SETLK, another's", F_OFD_SETLK, F_WRLCK, held=F_RDLCK, number=errno.EAGAIN)
_locks("F_OFD_SETLKW, sleeps until another ends", F_OFD_SETLKW, F_WRLCK, held=F_WRLCK)


@success("fcntl", "F_SETLK, a part of what is held is let go")
def lock_split(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_RDWR)
    yield from process.must("fcntl", handle, F_SETLK, _lock(F_WRLCK, 0, 100))
    yield from process.measure(handle, F_SETLK, _lock(F_UNLCK, 40, 10), expect=ZERO)


@error("fcntl", "F_SETLK, opened for reading")
def lock_reader(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, F_SETLK, _lock(F_WRLCK), expect=fails(errno.EBADF))


@error("fcntl", "F_SETLK, bad address")
def lock_bad(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, F_SETLK, BAD_ADDRESS, expect=fails(errno.EFAULT))


# -- flock -----------------------------------------------------------------------------------------------
def _flocks(name: str, operation: int, *, held: int | None = None, number: int = 0) -> None:
    @(error if number else success)("flock", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process)
        pid = 0
        if held is not None:

            def child(me: Process) -> Steps:
                own = yield from open_file(me)
                yield from me.must("flock", own, held)
                yield from rest(me, 20)

            pid = yield from process.fork(child)
            yield from rest(process, 5)
        yield from process.measure(handle, operation, expect=fails(number) if number else ZERO)
        if pid:
            yield from process.wait(pid)


_flocks("exclusive", LOCK_EX)
_flocks("shared with another", LOCK_SH, held=LOCK_SH)
_flocks("unlock", LOCK_UN)
_flocks("sleeps until another ends", LOCK_EX, held=LOCK_EX)
_flocks("held by another", LOCK_EX | LOCK_NB, held=LOCK_SH, number=errno.EAGAIN)
_flocks("unknown operation", 77, number=errno.EINVAL)
plain("flock", "closed descriptor", (BAD_FD, LOCK_EX), fails(errno.EBADF))


# -- pipes -----------------------------------------------------------------------------------------------
def _pipes(call: str, name: str, *args: int, state: int = 0, marked: int = 0) -> None:
    @success(call, name)
    def body(process: Process) -> Steps:
        place = process.buffer(8)
        yield from process.measure(place, *args, expect=ZERO)
        reader, writer = process.read_int(place), process.read_int(place + 4)
        found = (
            (yield from process.must("fcntl", reader, F_GETFL, 0)),
            (yield from process.must("fcntl", writer, F_GETFL, 0)),
            (yield from process.must("fcntl", reader, F_GETFD, 0)),
        )
        process.check(found == (state & ~O_DIRECT, O_WRONLY | state, marked), "two ends with these flags")


_pipes("pipe", "plain")
_pipes("pipe2", "plain", 0)
_pipes("pipe2", "not blocking, close-on-exec", O_NONBLOCK | O_CLOEXEC, state=O_NONBLOCK, marked=1)
_pipes("pipe2", "packets", O_DIRECT, state=O_DIRECT)
plain("pipe", "bad address", (BAD_ADDRESS,), fails(errno.EFAULT))
plain("pipe2", "bad address", (BAD_ADDRESS, 0), fails(errno.EFAULT))
plain("pipe2", "unknown flag", (bytes(8), O_CREAT), fails(errno.EINVAL))


@error("pipe", "too many open files")
def pipe_too_many(process: Process) -> Steps:
    yield from process.must("setrlimit", 7, struct.pack("<QQ", 4, 4))
    yield from process.measure(bytes(8), expect=fails(errno.EMFILE))
