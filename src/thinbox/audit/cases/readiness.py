"""Waiting for descriptors: poll, select, epoll, and the variants with a signal mask."""

import errno
import struct
from collections.abc import Callable

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.audit.files import (
    BAD_ADDRESS,
    BAD_FD,
    O_CLOEXEC,
    O_RDWR,
    filled_pipe,
    interrupted_result,
    open_file,
    open_pair,
    open_pipe,
    open_terminal,
    send_later,
    timespec,
)
from thinbox.harness.process import Steps

POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP, POLLNVAL = 1, 2, 4, 8, 16, 32
EPOLLET, EPOLLONESHOT, EPOLLEXCLUSIVE = 1 << 31, 1 << 30, 1 << 28
ADD, DELETE, MODIFY = 1, 2, 3
MS = 1_000_000
MASK = struct.pack("<Q", 1 << 9)


def pollfd(*wanted: tuple[int, int]) -> bytes:
    """An array of struct pollfd from (descriptor, events)."""
    return b"".join(struct.pack("<ihh", handle, events, 0) for handle, events in wanted)


def fd_set(*handles: int) -> bytes:
    """A set for `select` of descriptors below 64."""
    return struct.pack("<Q", sum(1 << handle for handle in handles))


def event(events: int, data: int = 7) -> bytes:
    """A struct epoll_event (packed on x86-64)."""
    return struct.pack("<IQ", events, data)


# -- every call, on every kind of file -------------------------------------------------------------------
Opens = Callable[[Process], Steps]


def _pipe_filled(process: Process) -> Steps:
    return (yield from filled_pipe(process, b"x"))[0]


def _pipe_writer(process: Process) -> Steps:
    return (yield from open_pipe(process))[1]


def _pipe_ended(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    yield from process.must("close", writer)
    return reader


def _socket_filled(process: Process) -> Steps:
    one, other = yield from open_pair(process)
    yield from process.must("write", other, b"x", 1)
    return one


def _terminal_typed(process: Process) -> Steps:
    master, slave = yield from open_terminal(process)
    yield from process.must("write", master, b"line\n", 5)
    return slave


def _event_counter(process: Process) -> Steps:
    return (yield from process.must("eventfd2", 1, 0))


def _timer_expired(process: Process) -> Steps:
    handle = yield from process.must("timerfd_create", 1, 0)
    yield from process.must("timerfd_settime", handle, 1, bytes(16) + timespec(0, 1), 0)
    return handle


def _signal_pending(process: Process) -> Steps:
    mask = process.buffer(MASK)
    yield from process.must("rt_sigprocmask", 0, mask, 0, 8)
    yield from process.must("kill", (yield from process.must("getpid")), 10)
    return (yield from process.must("signalfd4", -1, mask, 8, 0))


def _inotify_event(process: Process) -> Steps:
    handle = yield from process.must("inotify_init1", 0)
    yield from process.must("inotify_add_watch", handle, "dir", 0x100)
    yield from process.must("mkdir", "dir/new", 0o755)
    return handle


def _epoll_ready(process: Process) -> Steps:
    reader = yield from _pipe_filled(process)
    handle = yield from process.must("epoll_create1", 0)
    yield from process.must("epoll_ctl", handle, ADD, reader, process.buffer(event(POLLIN)))
    return handle


def _mounts(process: Process) -> Steps:
    return (yield from open_file(process, "/proc/mounts"))


def _fifo(process: Process) -> Steps:
    handle = yield from open_file(process, "fifo", O_RDWR)
    yield from process.must("write", handle, b"x", 1)
    return handle


_ready: tuple[tuple[str, Opens, int, int, bool], ...] = (
    # name, how it is opened, wanted events, events found, whether epoll takes it
    ("pipe with bytes", _pipe_filled, POLLIN, POLLIN, True),
    ("pipe with room", _pipe_writer, POLLOUT, POLLOUT, True),
    ("fifo", _fifo, POLLIN | POLLOUT, POLLIN | POLLOUT, True),
    ("pipe without a writer", _pipe_ended, POLLIN, POLLHUP, True),
    ("unix socket", _socket_filled, POLLIN | POLLOUT, POLLIN | POLLOUT, True),
    ("terminal with a line", _terminal_typed, POLLIN, POLLIN, True),
    ("eventfd", _event_counter, POLLIN, POLLIN, True),
    ("timerfd", _timer_expired, POLLIN, POLLIN, True),
    ("signalfd", _signal_pending, POLLIN, POLLIN, True),
    ("inotify", _inotify_event, POLLIN, POLLIN, True),
    ("epoll in it", _epoll_ready, POLLIN, POLLIN, True),
    ("/proc/mounts", _mounts, POLLIN, POLLIN, True),
    ("regular", open_file, POLLIN | POLLOUT, POLLIN | POLLOUT, False),
)


def _polls(name: str, opens: Opens, wanted: int, found: int) -> None:
    for call in ("poll", "ppoll"):

        @success(call, name)
        def body(process: Process, call: str = call) -> Steps:
            handle = yield from opens(process)
            place = process.buffer(pollfd((handle, wanted)))
            last: tuple[int | bytes, ...] = (1000,) if call == "poll" else (_limit(process, long=True), MASK, 8)
            yield from process.measure(place, 1, *last, expect=exactly(1))
            process.check(process.read_int(place + 6, 2) == found, f"events {found:#x}")


def _selects(name: str, opens: Opens, wanted: int, found: int) -> None:
    for call in ("select", "pselect6"):

        @success(call, name)
        def body(process: Process, call: str = call) -> Steps:
            handle = yield from opens(process)
            reading, writing = process.buffer(fd_set(handle)), process.buffer(fd_set(handle))
            limit = _limit(process, long=True)
            last = () if call == "select" else (0,)
            first, second = reading if wanted & POLLIN else 0, writing if wanted & POLLOUT else 0
            count = bool(first) + bool(second)
            yield from process.measure(handle + 1, first, second, 0, limit, *last, expect=exactly(count))
            process.check(process.read(reading, 8) == fd_set(handle), "the bit stays set")


def _epolls(name: str, opens: Opens, wanted: int, found: int) -> None:
    for call in ("epoll_wait", "epoll_pwait", "epoll_pwait2"):

        @success(call, name)
        def body(process: Process, call: str = call) -> Steps:
            handle = yield from opens(process)
            group = yield from process.must("epoll_create1", 0)
            yield from process.must("epoll_ctl", group, ADD, handle, process.buffer(event(wanted, 0x1234567890)))
            place = process.buffer(64)
            last: tuple[int | bytes, ...] = (1000,) if call != "epoll_pwait2" else (timespec(1),)
            yield from process.measure(
                group, place, 4, *last, *((MASK, 8) if call != "epoll_wait" else ()), expect=exactly(1)
            )
            process.check(process.read(place, 12) == event(found, 0x1234567890), f"events {found:#x}")


for _name, _opens, _wanted, _found, _takes in _ready:
    _polls(_name, _opens, _wanted, _found)
    _selects(_name, _opens, _wanted, _found)
    if _takes:
        _epolls(_name, _opens, _wanted, _found)


# -- sleeping, with and without success ------------------------------------------------------------------
def _sleeps(call: str, arguments: Callable[[Process, int, bool], tuple[int | bytes, ...]]) -> None:
    """`arguments(process, descriptor, long)` waits for it to be readable: long, or 5 ms."""

    @success(call, "sleeps until a child writes")
    def until(process: Process) -> Steps:
        reader, writer = yield from open_pipe(process)
        group = yield from _group(process, call, reader)
        pid = yield from process.fork(send_later(writer, b"late"))
        yield from process.measure(*arguments(process, group, True), expect=exactly(1))
        yield from process.wait(pid)

    @success(call, "sleeps until the time is over")
    def over(process: Process) -> Steps:
        reader, _ = yield from open_pipe(process)
        group = yield from _group(process, call, reader)
        yield from process.measure(*arguments(process, group, False), expect=ZERO)

    @error(call, "a signal comes")
    def signal(process: Process) -> Steps:
        reader, _ = yield from open_pipe(process)
        group = yield from _group(process, call, reader)
        handler = struct.pack("<4Q", process.agent_loop, 0x04000000, process.agent_loop, 0)  # SA_RESTORER
        yield from process.must("rt_sigaction", 14, handler, 0, 8)
        interval = bytes(16) + struct.pack("<qq", 0, 3000)
        yield from process.must("setitimer", 0, interval, 0)
        yield from process.measure(*arguments(process, group, True), expect=ZERO)  # the handler's first "result"
        process.check(interrupted_result(process) == -errno.EINTR, "the call ended with EINTR")


def _group(process: Process, call: str, reader: int) -> Steps:
    if not call.startswith("epoll"):
        return reader
    group = yield from process.must("epoll_create1", 0)
    yield from process.must("epoll_ctl", group, ADD, reader, process.buffer(event(POLLIN)))
    return group


def _limit(process: Process, *, long: bool, unit: int = 1) -> int:
    """The address of a time limit, over which the call writes the time left; `unit`: nanoseconds in a timeval's."""
    place = process.buffer(timespec(1) if long else timespec(0, 5 * MS // unit))
    process.volatile(place, 16)
    return place


_sleeps("poll", lambda p, fd, long: (p.buffer(pollfd((fd, POLLIN))), 1, 1000 if long else 5))
_sleeps("ppoll", lambda p, fd, long: (p.buffer(pollfd((fd, POLLIN))), 1, _limit(p, long=long), 0, 8))
_sleeps("select", lambda p, fd, long: (fd + 1, p.buffer(fd_set(fd)), 0, 0, _limit(p, long=long, unit=1000)))
_sleeps("pselect6", lambda p, fd, long: (fd + 1, p.buffer(fd_set(fd)), 0, 0, _limit(p, long=long), 0))
_sleeps("epoll_wait", lambda p, fd, long: (fd, p.buffer(64), 4, 1000 if long else 5))
_sleeps("epoll_pwait", lambda p, fd, long: (fd, p.buffer(64), 4, 1000 if long else 5, MASK, 8))
_sleeps("epoll_pwait2", lambda p, fd, long: (fd, p.buffer(64), 4, _limit(p, long=long), 0, 8))

plain("poll", "nothing, 3 ms", (0, 0, 3), ZERO)
plain("select", "nothing, 3 ms", (0, 0, 0, 0, struct.pack("<qq", 0, 3000)), ZERO)
plain("poll", "bad address", (BAD_ADDRESS, 1, 0), fails(errno.EFAULT))
plain("ppoll", "bad address", (BAD_ADDRESS, 1, timespec(0), 0, 8), fails(errno.EFAULT))
plain("ppoll", "mask of another size", (0, 0, timespec(0), MASK, 4), fails(errno.EINVAL))
plain("poll", "more than the limit", (0, 99_999, 0), fails(errno.EINVAL))
plain("select", "closed descriptor", (64, fd_set(60), 0, 0, timespec(0)), fails(errno.EBADF))
plain("select", "negative number", (-1, 0, 0, 0, timespec(0)), fails(errno.EINVAL))
plain("select", "bad address", (4, BAD_ADDRESS, 0, 0, timespec(0)), fails(errno.EFAULT))
plain("pselect6", "closed descriptor", (64, fd_set(60), 0, 0, timespec(0), 0), fails(errno.EBADF))
plain("pselect6", "a time that is none", (0, 0, 0, 0, timespec(-1), 0), fails(errno.EINVAL))


@success("poll", "a closed descriptor and one passed over")
def poll_closed(process: Process) -> Steps:
    place = process.buffer(pollfd((BAD_FD, POLLIN), (-1, POLLIN)))
    yield from process.measure(place, 2, 0, expect=exactly(1))
    process.check(process.read_int(place + 6, 2) == POLLNVAL, "POLLNVAL")


@success("poll", "700 descriptors")
def poll_many(process: Process) -> Steps:
    reader, _writer = yield from filled_pipe(process, b"x")
    place = process.buffer(pollfd(*((reader, POLLIN) for _ in range(700))))
    yield from process.measure(place, 700, 0, expect=exactly(700))


@success("pselect6", "with a signal mask")
def pselect_mask(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"x")
    mask = struct.pack("<QQ", process.buffer(MASK), 8)
    yield from process.measure(reader + 1, fd_set(reader), 0, 0, 0, mask, expect=exactly(1))


# -- epoll -----------------------------------------------------------------------------------------------
plain("epoll_create", "plain", (1,), POSITIVE)
plain("epoll_create", "of nothing", (0,), fails(errno.EINVAL))
plain("epoll_create1", "close-on-exec", (O_CLOEXEC,), POSITIVE)
plain("epoll_create1", "unknown flag", (1,), fails(errno.EINVAL))
plain("epoll_ctl", "closed descriptor", (BAD_FD, ADD, 0, event(POLLIN)), fails(errno.EBADF))
for _call, _last in (("epoll_wait", (0,)), ("epoll_pwait", (0, 0, 8)), ("epoll_pwait2", (0, 0, 8))):
    plain(_call, "closed descriptor", (BAD_FD, bytes(64), 4, *_last), fails(errno.EBADF))
    plain(_call, "not an epoll", (0, bytes(64), 4, *_last), fails(errno.EINVAL))
    plain(_call, "room for none", (0, bytes(64), 0, *_last), fails(errno.EINVAL))


def _epoll_control(name: str, operation: int, content: int | bytes, *, added: bool, number: int = 0) -> None:
    @(error if number else success)("epoll_ctl", name)
    def body(process: Process) -> Steps:
        reader = yield from _pipe_filled(process)
        group = yield from process.must("epoll_create1", 0)
        if added:
            yield from process.must("epoll_ctl", group, ADD, reader, process.buffer(event(POLLOUT)))
        yield from process.measure(group, operation, reader, content, expect=fails(number) if number else ZERO)
        if not number:
            ready = yield from process.must("epoll_wait", group, process.buffer(64), 4, 0)
            process.check(ready == (operation != DELETE), "as many are ready")


_epoll_control("added", ADD, event(POLLIN), added=False)
_epoll_control("added, edge triggered, once", ADD, event(POLLIN | EPOLLET | EPOLLONESHOT), added=False)
_epoll_control("added, exclusive", ADD, event(POLLIN | EPOLLEXCLUSIVE), added=False)
_epoll_control("modified", MODIFY, event(POLLIN), added=True)
_epoll_control("deleted", DELETE, 0, added=True)
_epoll_control("added twice", ADD, event(POLLIN), added=True, number=errno.EEXIST)
_epoll_control("modified, not there", MODIFY, event(POLLIN), added=False, number=errno.ENOENT)
_epoll_control("deleted, not there", DELETE, 0, added=False, number=errno.ENOENT)
_epoll_control("unknown operation", 9, event(POLLIN), added=False, number=errno.EINVAL)
_epoll_control("bad address", ADD, BAD_ADDRESS, added=False, number=errno.EFAULT)


@error("epoll_ctl", "a regular file")
def epoll_regular(process: Process) -> Steps:
    handle = yield from open_file(process)
    group = yield from process.must("epoll_create1", 0)
    yield from process.measure(group, ADD, handle, event(POLLIN), expect=fails(errno.EPERM))


@error("epoll_ctl", "itself")
def epoll_itself(process: Process) -> Steps:
    group = yield from process.must("epoll_create1", 0)
    yield from process.measure(group, ADD, group, event(POLLIN), expect=fails(errno.EINVAL))


@success("epoll_ctl", "another epoll")
def epoll_nested(process: Process) -> Steps:
    inner, outer = (yield from process.must("epoll_create1", 0)), (yield from process.must("epoll_create1", 0))
    yield from process.measure(outer, ADD, inner, event(POLLIN), expect=ZERO)
