"""Asynchronous input and output, the old way: io_setup, io_submit and what belongs to them."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import file_content
from thinbox.audit.expect import ZERO, exactly, fails
from thinbox.audit.files import (
    BAD_ADDRESS,
    BAD_FD,
    O_RDWR,
    filled_pipe,
    iovec,
    open_file,
    open_pipe,
    read_back,
    rest,
    send_later,
    timespec,
)
from thinbox.harness.process import Steps

PREAD, PWRITE, FSYNC, FDSYNC, POLL, PREADV, PWRITEV = 0, 1, 2, 3, 5, 7, 8
MS = 1_000_000


def iocb(operation: int, handle: int, place: int = 0, size: int = 0, offset: int = 0, *, told: int = -1) -> bytes:
    """A struct iocb with data 0x77; `told`: an eventfd that counts its end."""
    flags = 0 if told < 0 else 1
    return struct.pack("<QIIHhIQQqQII", 0x77, 0, 0, operation, 0, handle, place, size, offset, 0, flags, max(told, 0))


def _context(process: Process, events: int = 8) -> Steps:
    """Its value: a context."""
    place = process.buffer(8)
    yield from process.must("io_setup", events, place)
    return process.read_int(place, 8)


def _submitted(process: Process, content: bytes) -> Steps:
    """Its value: a context to which one block was handed over, and the block's address."""
    context = yield from _context(process)
    block = process.buffer(content)
    yield from process.must("io_submit", context, 1, process.buffer(struct.pack("<Q", block)))
    return context, block


def _poll_pipe(process: Process) -> Steps:
    """Its value: a context in which a wait for a pipe's bytes is under way, the block's address, and both ends."""
    reader, writer = yield from open_pipe(process)
    context, block = yield from _submitted(process, iocb(POLL, reader, 1))
    return context, block, reader, writer


# -- contexts --------------------------------------------------------------------------------------------
@success("io_setup", "8 events")
def io_setup(process: Process) -> Steps:
    place = process.buffer(8)
    yield from process.measure(8, place, expect=ZERO)
    context = process.read_int(place, 8)
    process.check(context > 0, "a context")
    yield from process.must("io_destroy", context)


plain("io_setup", "no events", (0, bytes(8)), fails(errno.EINVAL))
plain("io_setup", "more than the limit", (1 << 20, bytes(8)), fails(errno.EAGAIN))
plain("io_setup", "an old context", (1, b"\1" * 8), fails(errno.EINVAL))
plain("io_setup", "bad address", (1, BAD_ADDRESS), fails(errno.EFAULT))
plain("io_destroy", "no context", (0x1000,), fails(errno.EINVAL))


@success("io_destroy", "at rest")
def io_destroy(process: Process) -> Steps:
    context = yield from _context(process)
    yield from process.measure(context, expect=ZERO)
    process.check((yield from process.call("io_destroy", context)) == -errno.EINVAL, "it is gone")


@success("io_destroy", "with something under way")
def io_destroy_busy(process: Process) -> Steps:
    context, *_ = yield from _poll_pipe(process)
    yield from process.measure(context, expect=ZERO)


# -- handing over ----------------------------------------------------------------------------------------
def _result(process: Process, context: int) -> Steps:
    """Its value: the result of the one block that ends."""
    place = process.buffer(32)
    yield from process.must("io_getevents", context, 1, 1, place, 0)
    data, _block, result, _more = struct.unpack("<QQqq", process.read(place, 32))
    process.check(data == 0x77, "the block's data")
    return result


def _submits(process: Process, content: bytes, result: int) -> Steps:
    context = yield from _context(process)
    blocks = struct.pack("<Q", process.buffer(content))
    yield from process.measure(context, 1, blocks, expect=exactly(1))
    found = yield from _result(process, context)
    process.check(found == result, f"it ends with {result} (found {found})")


@success("io_submit", "read")
def submit_read(process: Process) -> Steps:
    handle, place = (yield from open_file(process)), process.buffer(5000)
    yield from _submits(process, iocb(PREAD, handle, place, 5000, 100), 5000)
    process.check(process.read(place, 5000) == file_content()[100:5100], "the file's bytes")


@success("io_submit", "write")
def submit_write(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_RDWR)
    yield from _submits(process, iocb(PWRITE, handle, process.buffer(b"written"), 7, 50), 7)
    process.check((yield from read_back(process, "file", 7, 50)) == b"written", "the bytes")


@success("io_submit", "read in pieces")
def submit_readv(process: Process) -> Steps:
    handle, place = (yield from open_file(process)), process.buffer(64)
    vector = process.buffer(iovec((place, 5), (place + 32, 6)))
    yield from _submits(process, iocb(PREADV, handle, vector, 2), 11)


@success("io_submit", "write in pieces")
def submit_writev(process: Process) -> Steps:
    handle, place = (yield from open_file(process, "file", O_RDWR)), process.buffer(b"one two ")
    vector = process.buffer(iovec((place, 4), (place + 4, 4)))
    yield from _submits(process, iocb(PWRITEV, handle, vector, 2), 8)


@success("io_submit", "fsync")
def submit_fsync(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_RDWR)
    yield from _submits(process, iocb(FSYNC, handle), 0)


@success("io_submit", "fdatasync")
def submit_fdatasync(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_RDWR)
    yield from _submits(process, iocb(FDSYNC, handle), 0)


@success("io_submit", "poll of a pipe that is ready")
def submit_poll(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"x")
    yield from _submits(process, iocb(POLL, reader, 1), 1)


@success("io_submit", "two, their ends counted")
def submit_two(process: Process) -> Steps:
    handle, counter = (yield from open_file(process)), (yield from process.must("eventfd2", 0, 0))
    context = yield from _context(process)
    one, two = (process.buffer(iocb(PREAD, handle, process.buffer(16), 16, at, told=counter)) for at in (0, 16))
    yield from process.measure(context, 2, struct.pack("<QQ", one, two), expect=exactly(2))
    place = process.buffer(8)
    yield from process.must("read", counter, place, 8)
    process.check(process.read_int(place, 8) == 2, "two have ended")


plain("io_submit", "no context", (0x1000, 1, bytes(8)), fails(errno.EINVAL))


def _submit_error(name: str, number: int, operation: int, handle: int, place: int = 0, size: int = 0) -> None:
    @error("io_submit", name)
    def body(process: Process) -> Steps:
        context = yield from _context(process)
        source = handle or (yield from open_file(process))
        block = process.buffer(iocb(operation, source, place, size))
        yield from process.measure(context, 1, struct.pack("<Q", block), expect=fails(number))


_submit_error("closed descriptor", errno.EBADF, PREAD, BAD_FD)
_submit_error("unknown operation", errno.EINVAL, 77, 0)
_submit_error("write, opened for reading", errno.EBADF, PWRITE, 0, 4096, 1)


@error("io_submit", "bad address")
def submit_bad(process: Process) -> Steps:
    context = yield from _context(process)
    yield from process.measure(context, 1, struct.pack("<Q", BAD_ADDRESS), expect=fails(errno.EFAULT))


# -- their ends ------------------------------------------------------------------------------------------
for _call, _last in (("io_getevents", ()), ("io_pgetevents", (0,))):

    @success(_call, "one that has ended")
    def ended(process: Process, last: tuple[int, ...] = _last) -> Steps:
        handle = yield from open_file(process)
        context, block = yield from _submitted(process, iocb(PREAD, handle, process.buffer(64), 64))
        place = process.buffer(64)
        yield from process.measure(context, 1, 2, place, 0, *last, expect=exactly(1))
        process.check(struct.unpack("<QQqq", process.read(place, 32)) == (0x77, block, 64, 0), "its end")

    @success(_call, "sleeps until a child writes")
    def sleeps(process: Process, last: tuple[int, ...] = _last) -> Steps:
        context, block, _reader, writer = yield from _poll_pipe(process)
        pid = yield from process.fork(send_later(writer, b"late"))
        place = process.buffer(64)
        yield from process.measure(context, 1, 2, place, 0, *last, expect=exactly(1))
        process.check(struct.unpack("<QQqq", process.read(place, 32)) == (0x77, block, 0x41, 0), "POLLIN, POLLRDNORM")
        yield from process.wait(pid)

    @success(_call, "sleeps until the time is over")
    def over(process: Process, last: tuple[int, ...] = _last) -> Steps:
        context = yield from _context(process)
        yield from process.measure(context, 1, 2, process.buffer(64), timespec(0, 5 * MS), *last, expect=ZERO)

    plain(_call, "no context", (0x1000, 1, 1, bytes(32), 0, *_last), fails(errno.EINVAL))

    @error(_call, "more wanted than there is room")
    def room(process: Process, last: tuple[int, ...] = _last) -> Steps:
        context = yield from _context(process)
        yield from process.measure(context, 2, 1, process.buffer(64), 0, *last, expect=fails(errno.EINVAL))


@success("io_pgetevents", "with a signal mask")
def ended_masked(process: Process) -> Steps:
    handle = yield from open_file(process)
    context, _ = yield from _submitted(process, iocb(PREAD, handle, process.buffer(64), 64))
    mask = struct.pack("<QQ", process.buffer(struct.pack("<Q", 1 << 9)), 8)
    yield from process.measure(context, 1, 2, process.buffer(64), 0, mask, expect=exactly(1))


@success("io_cancel", "a wait for a pipe")
def io_cancel(process: Process) -> Steps:
    context, block, *_ = yield from _poll_pipe(process)
    # It is cancelled; that its end is told by an event is what EINPROGRESS says (fs/aio.c).
    yield from process.measure(context, block, process.buffer(32), expect=fails(errno.EINPROGRESS))
    yield from rest(process, 1)
    yield from process.must("io_getevents", context, 1, 1, process.buffer(32), 0)


@error("io_cancel", "one that has ended")
def io_cancel_ended(process: Process) -> Steps:
    handle = yield from open_file(process)
    context, block = yield from _submitted(process, iocb(PREAD, handle, process.buffer(64), 64))
    yield from process.measure(context, block, process.buffer(32), expect=fails(errno.EINVAL))


plain("io_cancel", "no context", (0x1000, bytes(64), bytes(32)), fails(errno.EINVAL))
