"""Descriptors that are no files: eventfd, signalfd, timerfd, memfd, pidfd."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, fails
from thinbox.audit.files import (
    BAD_ADDRESS,
    BAD_FD,
    MILLISECOND,
    O_CLOEXEC,
    O_NONBLOCK,
    open_file,
    rest,
    timespec,
)
from thinbox.harness.process import Steps

REALTIME, MONOTONIC, BOOTTIME = 0, 1, 7
USR1 = struct.pack("<Q", 1 << 9)


def _reads_number(process: Process, handle: int, expected: int) -> Steps:
    place = process.buffer(8)
    yield from process.must("read", handle, place, 8)
    process.check(process.read_int(place, 8) == expected, f"the counter is {expected}")


# -- eventfd ---------------------------------------------------------------------------------------------
def _event(call: str, name: str, args: tuple[int, ...], expected: int) -> None:
    @success(call, name)
    def body(process: Process) -> Steps:
        handle = yield from process.measure(*args, expect=POSITIVE)
        yield from _reads_number(process, handle, expected)


_event("eventfd", "counter", (5,), 5)
_event("eventfd2", "counter", (5, 0), 5)
_event("eventfd2", "semaphore", (5, 1), 1)
_event("eventfd2", "not blocking, close-on-exec", (7, O_NONBLOCK | O_CLOEXEC), 7)
plain("eventfd2", "unknown flag", (0, 2), fails(errno.EINVAL))


@error("eventfd", "too many open files")
def eventfd_many(process: Process) -> Steps:
    yield from process.must("setrlimit", 7, struct.pack("<QQ", 3, 3))
    yield from process.measure(0, expect=fails(errno.EMFILE))


# -- signalfd --------------------------------------------------------------------------------------------
def _signal(call: str, after: tuple[int, ...]) -> None:
    @success(call, "new, a signal is read")
    def new(process: Process) -> Steps:
        mask = process.buffer(USR1)
        yield from process.must("rt_sigprocmask", 0, mask, 0, 8)
        handle = yield from process.measure(-1, mask, 8, *after, expect=POSITIVE)
        pid = yield from process.must("getpid")
        yield from process.must("kill", pid, 10)
        place = process.buffer(128)
        count = yield from process.must("read", handle, place, 128)
        process.check(count == 128 and process.read_int(place) == 10, "SIGUSR1")

    @success(call, "another mask for an old one")
    def change(process: Process) -> Steps:
        handle = yield from process.must("signalfd4", -1, USR1, 8, 0)
        result = yield from process.measure(handle, struct.pack("<Q", 2), 8, *after, expect=POSITIVE)
        process.check(result == handle, "the same descriptor")

    plain(call, "mask of another size", (-1, USR1, 4, *after), fails(errno.EINVAL))
    plain(call, "closed descriptor", (BAD_FD, USR1, 8, *after), fails(errno.EBADF))
    plain(call, "not a signalfd", (0, USR1, 8, *after), fails(errno.EINVAL))
    plain(call, "bad address", (-1, BAD_ADDRESS, 8, *after), fails(errno.EFAULT, errno.EINVAL))


_signal("signalfd", ())
_signal("signalfd4", (O_NONBLOCK,))
plain("signalfd4", "unknown flag", (-1, USR1, 8, 1), fails(errno.EINVAL))


# -- timerfd ---------------------------------------------------------------------------------------------
for _clock, _name in ((REALTIME, "real time"), (MONOTONIC, "monotonic"), (BOOTTIME, "since boot"), (9, "alarm")):
    plain("timerfd_create", _name, (_clock, O_NONBLOCK | O_CLOEXEC), POSITIVE)
plain("timerfd_create", "unknown clock", (5, 0), fails(errno.EINVAL))
plain("timerfd_create", "unknown flag", (1, 1), fails(errno.EINVAL))


@success("timerfd_settime", "once, relative")
def timerfd_once(process: Process) -> Steps:
    handle = yield from process.must("timerfd_create", MONOTONIC, 0)
    old = process.buffer(b"\xff" * 32)
    new = timespec(0) + timespec(0, 2 * MILLISECOND)
    yield from process.measure(handle, 0, new, old, expect=ZERO)
    process.check(not any(process.read(old, 32)), "it was not set before")
    yield from _reads_number(process, handle, 1)


@success("timerfd_settime", "again and again")
def timerfd_interval(process: Process) -> Steps:
    handle = yield from process.must("timerfd_create", MONOTONIC, 0)
    new = timespec(0, 2 * MILLISECOND) + timespec(0, 2 * MILLISECOND)
    yield from process.measure(handle, 0, new, 0, expect=ZERO)
    yield from rest(process, 5)
    yield from _reads_number(process, handle, 2)


@success("timerfd_settime", "absolute, in the past")
def timerfd_past(process: Process) -> Steps:
    handle = yield from process.must("timerfd_create", REALTIME, 0)
    yield from process.measure(handle, 1, timespec(0) + timespec(1), 0, expect=ZERO)
    yield from _reads_number(process, handle, 1)


@success("timerfd_settime", "disarmed")
def timerfd_disarm(process: Process) -> Steps:
    handle = yield from process.must("timerfd_create", MONOTONIC, O_NONBLOCK)
    yield from process.must("timerfd_settime", handle, 0, timespec(9) + timespec(9), 0)
    yield from process.measure(handle, 0, bytes(32), 0, expect=ZERO)
    result = yield from process.call("read", handle, process.buffer(8), 8)
    process.check(result == -errno.EAGAIN, "it does not expire")


@success("timerfd_gettime", "armed")
def timerfd_get(process: Process) -> Steps:
    handle = yield from process.must("timerfd_create", MONOTONIC, 0)
    yield from process.must("timerfd_settime", handle, 0, timespec(3) + timespec(9), 0)
    place = process.buffer(32)
    process.volatile(place + 16, 16)
    yield from process.measure(handle, place, expect=ZERO)
    process.check(process.read_int(place, 8) == 3 and process.read_int(place + 16, 8) == 8, "interval and rest")


@success("timerfd_gettime", "disarmed")
def timerfd_get_none(process: Process) -> Steps:
    handle = yield from process.must("timerfd_create", BOOTTIME, 0)
    place = process.buffer(b"\xff" * 32)
    yield from process.measure(handle, place, expect=ZERO)
    process.check(not any(process.read(place, 32)), "zeros")


plain("timerfd_settime", "closed descriptor", (BAD_FD, 0, bytes(32), 0), fails(errno.EBADF))
plain("timerfd_settime", "not a timerfd", (0, 0, bytes(32), 0), fails(errno.EINVAL))
plain("timerfd_settime", "bad address", (0, 0, BAD_ADDRESS, 0), fails(errno.EFAULT))
plain("timerfd_gettime", "closed descriptor", (BAD_FD, bytes(32)), fails(errno.EBADF))
plain("timerfd_gettime", "not a timerfd", (0, bytes(32)), fails(errno.EINVAL))

# -- memfd -----------------------------------------------------------------------------------------------
plain("memfd_create", "plain", ("name", 0), POSITIVE)
plain("memfd_create", "sealable, close-on-exec", ("name", 3), POSITIVE)
plain("memfd_create", "huge pages", ("name", 4), POSITIVE)
plain("memfd_create", "unknown flag", ("name", 0x100), fails(errno.EINVAL))
plain("memfd_create", "name too long", ("n" * 300, 0), fails(errno.EINVAL))
plain("memfd_create", "bad address", (BAD_ADDRESS, 0), fails(errno.EFAULT))


@success("memfd_create", "its name")
def memfd_name(process: Process) -> Steps:
    handle = yield from process.measure("audit", 0, expect=POSITIVE)
    place = process.buffer(64)
    count = yield from process.must("readlink", f"/proc/self/fd/{handle}", place, 64)
    process.check(process.read(place, count) == b"/memfd:audit (deleted)", "in proc")


# -- pidfd -----------------------------------------------------------------------------------------------
@success("pidfd_open", "itself")
def pidfd_self(process: Process) -> Steps:
    pid = yield from process.must("getpid")
    handle = yield from process.measure(pid, 0, expect=POSITIVE)
    yield from process.must("pidfd_send_signal", handle, 0, 0, 0)


@success("pidfd_open", "a child that ends, not blocking")
def pidfd_child(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from rest(me)

    pid = yield from process.fork(child)
    handle = yield from process.measure(pid, O_NONBLOCK, expect=POSITIVE)
    place = process.buffer(struct.pack("<ihh", handle, 1, 0))
    ready = yield from process.must("poll", place, 1, 1000)
    process.check(ready == 1, "readable once the child has ended")
    yield from process.wait(pid)


plain("pidfd_open", "the number of no process", (30000, 0), fails(errno.ESRCH))
plain("pidfd_open", "not a pid", (-1, 0), fails(errno.EINVAL))
plain("pidfd_open", "a flag that is none", (1, 1), fails(errno.EINVAL))


@success("pidfd_getfd", "a child's file, read here")
def pidfd_getfd(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        own = yield from open_file(me, "dir/inner")
        yield from me.must("dup2", own, 50)
        yield from rest(me, 20)

    pid = yield from process.fork(child)
    yield from rest(process)
    handle = yield from process.must("pidfd_open", pid, 0)
    taken = yield from process.measure(handle, 50, 0, expect=POSITIVE)
    place = process.buffer(6)
    yield from process.must("read", taken, place, 6)
    process.check(process.read(place, 6) == b"inner\n", "the child's file")
    yield from process.wait(pid)


@error("pidfd_getfd", "closed there")
def pidfd_getfd_closed(process: Process) -> Steps:
    handle = yield from process.must("pidfd_open", (yield from process.must("getpid")), 0)
    yield from process.measure(handle, BAD_FD, 0, expect=fails(errno.EBADF))


plain("pidfd_getfd", "not a pidfd", (0, 0, 0), fails(errno.EBADF))
