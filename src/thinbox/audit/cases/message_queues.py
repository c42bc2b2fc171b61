"""POSIX message queues."""

import errno
import os
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.harness.process import Steps

_CREATE = os.O_CREAT | os.O_RDWR
_SMALL = struct.pack("<8q", 0, 2, 64, 0, 0, 0, 0, 0)
"""`struct mq_attr`: flags, messages, bytes of a message, messages now."""
_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)
_USR1 = 10
_LONG_PAST, _FAR_FUTURE = abi.timespec(1), abi.timespec(1 << 40)


def _queue(process: Process, flags: int = 0, *texts: tuple[int, bytes]) -> Steps:
    handle = yield from process.must("mq_open", "queue", _CREATE | flags, 0o600, _SMALL)
    for priority, text in texts:
        yield from process.must("mq_timedsend", handle, text, len(text), priority, 0)
    return handle


plain("mq_open", "a new one", ("queue", _CREATE, 0o600, 0), POSITIVE)
plain("mq_open", "a new small one, not blocking", ("queue", _CREATE | os.O_NONBLOCK, 0o600, _SMALL), POSITIVE)
plain("mq_open", "not there", ("queue", os.O_RDWR, 0, 0), fails(errno.ENOENT))
plain("mq_open", "a name with a slash", ("a/b", _CREATE, 0o600, 0), fails(errno.EACCES))
plain("mq_open", "room for no message", ("queue", _CREATE, 0o600, bytes(64)), fails(errno.EINVAL))
plain("mq_unlink", "not there", ("queue",), fails(errno.ENOENT))
for _call, _args in (
    ("mq_timedsend", (77, "x", 1, 0, 0)),
    ("mq_timedreceive", (77, bytes(64), 64, 0, 0)),
    ("mq_notify", (77, 0)),
    ("mq_getsetattr", (77, 0, bytes(64))),
):
    plain(_call, "not a descriptor", _args, fails(errno.EBADF))
plain("mq_notify", "no such way", (0, struct.pack("<Qii", 0, _USR1, 9) + bytes(48)), fails(errno.EINVAL))


@success("mq_open", "one that is there")
def mq_open_again(process: Process) -> Steps:
    yield from _queue(process)
    yield from process.measure("queue", os.O_RDONLY, 0, 0, expect=POSITIVE)


@error("mq_open", "a new one where there is one")
def mq_open_exclusive(process: Process) -> Steps:
    yield from _queue(process)
    yield from process.measure("queue", _CREATE | os.O_EXCL, 0o600, 0, expect=fails(errno.EEXIST))


@success("mq_unlink", "while it is open")
def mq_unlink(process: Process) -> Steps:
    yield from _queue(process)
    yield from process.measure("queue", expect=ZERO)
    gone = yield from process.call("mq_open", "queue", os.O_RDWR, 0, 0)
    process.check(gone == -errno.ENOENT, "the name is gone")


for _size in (0, 1, 64):

    @success("mq_timedsend", f"{_size} bytes")
    def mq_timedsend(process: Process, size: int = _size) -> Steps:
        handle = yield from _queue(process)
        yield from process.measure(handle, "m" * size, size, 5, 0, expect=ZERO)
        text, priority = process.buffer(64), process.buffer(4)
        got = yield from process.must("mq_timedreceive", handle, text, 64, priority, 0)
        process.check(got == size and process.read(text, size) == b"m" * size, "the message")
        process.check(process.read_int(priority) == 5, "its priority")


@success("mq_timedreceive", "the most urgent")
def mq_timedreceive(process: Process) -> Steps:
    handle = yield from _queue(process, 0, (1, b"low"), (9, b"high"))
    text, priority = process.buffer(64), process.buffer(4)
    yield from process.measure(handle, text, 64, priority, 0, expect=exactly(4))
    process.check((process.read(text, 4), process.read_int(priority)) == (b"high", 9), "text and priority")


@success("mq_timedreceive", "one that is sent later")
def mq_timedreceive_later(process: Process) -> Steps:
    handle = yield from _queue(process)

    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", _SLEEP, 0)
        yield from me.must("mq_timedsend", handle, "late", 4, 0, 0)

    pid = yield from process.fork(child)
    text = process.buffer(64)
    yield from process.measure(handle, text, 64, 0, _FAR_FUTURE, expect=exactly(4))
    process.check(process.read(text, 4) == b"late", "the text")
    yield from process.wait(pid)


@success("mq_timedsend", "waits for room")
def mq_timedsend_waits(process: Process) -> Steps:
    handle = yield from _queue(process, 0, (0, b"a"), (0, b"b"))

    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", _SLEEP, 0)
        yield from me.must("mq_timedreceive", handle, me.buffer(64), 64, 0, 0)

    pid = yield from process.fork(child)
    yield from process.measure(handle, "c", 1, 0, 0, expect=ZERO)
    yield from process.wait(pid)


@error("mq_timedsend", "too long")
def mq_timedsend_long(process: Process) -> Steps:
    handle = yield from _queue(process)
    yield from process.measure(handle, "m" * 65, 65, 0, 0, expect=fails(errno.EMSGSIZE))


@error("mq_timedsend", "full, without waiting")
def mq_timedsend_full(process: Process) -> Steps:
    handle = yield from _queue(process, os.O_NONBLOCK, (0, b"a"), (0, b"b"))
    yield from process.measure(handle, "c", 1, 0, 0, expect=fails(errno.EAGAIN))


@error("mq_timedreceive", "empty, without waiting")
def mq_timedreceive_empty(process: Process) -> Steps:
    handle = yield from _queue(process, os.O_NONBLOCK)
    yield from process.measure(handle, process.buffer(64), 64, 0, 0, expect=fails(errno.EAGAIN))


@error("mq_timedreceive", "a time that is past")
def mq_timedreceive_past(process: Process) -> Steps:
    handle = yield from _queue(process)
    yield from process.measure(handle, process.buffer(64), 64, 0, _LONG_PAST, expect=fails(errno.ETIMEDOUT))


@error("mq_timedreceive", "no room for a message")
def mq_timedreceive_short(process: Process) -> Steps:
    handle = yield from _queue(process)
    yield from process.measure(handle, process.buffer(64), 10, 0, 0, expect=fails(errno.EMSGSIZE))


@success("mq_getsetattr", "ask")
def mq_getsetattr(process: Process) -> Steps:
    handle, place = (yield from _queue(process, 0, (0, b"a"))), process.buffer(64)
    yield from process.measure(handle, 0, place, expect=ZERO)
    process.check(process.read(place, 32) == struct.pack("<4q", 0, 2, 64, 1), "the attributes")


@success("mq_getsetattr", "make it not blocking")
def mq_getsetattr_nonblock(process: Process) -> Steps:
    handle, place = (yield from _queue(process)), process.buffer(64)
    yield from process.measure(handle, struct.pack("<8q", os.O_NONBLOCK, *[0] * 7), place, expect=ZERO)
    empty = yield from process.call("mq_timedreceive", handle, process.buffer(64), 64, 0, 0)
    process.check(empty == -errno.EAGAIN, "a receive does not wait")


@success("mq_notify", "by a signal, that comes")
def mq_notify(process: Process) -> Steps:
    handle = yield from _queue(process)
    yield from process.must("rt_sigprocmask", 0, abi.sigset(_USR1), 0, 8)
    yield from process.measure(handle, struct.pack("<Qii", 0x55, _USR1, 0) + bytes(48), expect=ZERO)
    yield from process.must("mq_timedsend", handle, "x", 1, 0, 0)
    info = process.buffer(128)
    yield from process.must("rt_sigtimedwait", abi.sigset(_USR1), info, abi.timespec(1), 8)
    process.check(process.read_int(info + 24, 8) == 0x55, "the value that was registered")


@success("mq_notify", "not at all, and no more")
def mq_notify_remove(process: Process) -> Steps:
    handle = yield from _queue(process)
    yield from process.must("mq_notify", handle, struct.pack("<Qii", 0, 0, 1) + bytes(48))
    yield from process.measure(handle, 0, expect=ZERO)


@error("mq_notify", "a second time")
def mq_notify_busy(process: Process) -> Steps:
    handle = yield from _queue(process)
    yield from process.must("mq_notify", handle, struct.pack("<Qii", 0, 0, 1) + bytes(48))
    yield from process.measure(handle, struct.pack("<Qii", 0, 0, 1) + bytes(48), expect=fails(errno.EBUSY))
