"""Asynchronous input and output, the new way: io_uring."""

import errno
import struct

from thinbox.audit import io_ring as ring_of
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import file_content
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.audit.files import (
    AT_FDCWD,
    BAD_ADDRESS,
    BAD_FD,
    O_RDWR,
    filled_pipe,
    iovec,
    open_file,
    open_pair,
    open_pipe,
    read_back,
    send_later,
    timespec,
)
from thinbox.audit.io_ring import GETEVENTS, PARAMS_BYTES, Ring, open_ring
from thinbox.harness.process import Steps

CONTENT = file_content()
SETUP_CQSIZE, SETUP_CLAMP, SETUP_DISABLED, SINGLE_ISSUER = 8, 16, 64, 1 << 12
BUFFERS, NO_BUFFERS, FILES, NO_FILES, EVENTFD, PROBE, ENABLE = 0, 1, 2, 3, 4, 8, 12


def _params(flags: int = 0, ends: int = 0) -> bytes:
    return struct.pack("<III", 0, ends, flags) + bytes(PARAMS_BYTES - 12)


# -- io_uring_setup --------------------------------------------------------------------------------------
@success("io_uring_setup", "6 entries become 8")
def setup(process: Process) -> Steps:
    params = process.buffer(_params())
    yield from process.measure(6, params, expect=POSITIVE)
    process.check((process.read_int(params), process.read_int(params + 4)) == (8, 16), "8 entries, 16 ends")


@success("io_uring_setup", "room for 64 ends, one issuer")
def setup_ends(process: Process) -> Steps:
    params = process.buffer(_params(SETUP_CQSIZE | SINGLE_ISSUER, 64))
    yield from process.measure(8, params, expect=POSITIVE)
    process.check(process.read_int(params + 4) == 64, "64 ends")


plain("io_uring_setup", "more than the limit, cut", (1 << 20, _params(SETUP_CLAMP)), POSITIVE)
plain("io_uring_setup", "more than the limit", (1 << 20, _params()), fails(errno.EINVAL))
plain("io_uring_setup", "no entries", (0, _params()), fails(errno.EINVAL))
plain("io_uring_setup", "unknown flag", (8, _params(1 << 30)), fails(errno.EINVAL))
plain("io_uring_setup", "bad address", (8, BAD_ADDRESS), fails(errno.EFAULT))


# -- io_uring_enter --------------------------------------------------------------------------------------
def _enter(process: Process, ring: Ring, *results: int) -> Steps:
    """Hand over what was added and wait for as many ends, in any order."""
    count = ring.take()
    yield from process.measure(ring.handle, count, len(results), GETEVENTS, 0, 0, expect=exactly(count))
    found = ring.results()
    process.check(sorted(end[1] for end in found) == sorted(results), f"results {results} (found {found})")


def _used_ring(process: Process) -> Steps:
    """Its value: a ring that has done something before, so that the kernel keeps requests ready for it."""
    ring = yield from open_ring(process)
    ring.add(ring_of.NOP)
    yield from process.must("io_uring_enter", ring.handle, ring.take(), 1, GETEVENTS, 0, 0)
    ring.results()
    return ring


@success("io_uring_enter", "nothing to do")
def enter_nop(process: Process) -> Steps:
    ring = yield from open_ring(process)
    ring.add(ring_of.NOP)
    yield from _enter(process, ring, 0)


@success("io_uring_enter", "eight at once")
def enter_eight(process: Process) -> Steps:
    ring = yield from open_ring(process)
    for number in range(8):
        ring.add(ring_of.NOP, data=number)
    yield from _enter(process, ring, *[0] * 8)


@success("io_uring_enter", "read")
def enter_read(process: Process) -> Steps:
    ring, handle = (yield from open_ring(process)), (yield from open_file(process))
    place = process.buffer(5000)
    ring.add(ring_of.READ, handle, place, 5000, 100)
    yield from _enter(process, ring, 5000)
    process.check(process.read(place, 5000) == CONTENT[100:5100], "the file's bytes")


@success("io_uring_enter", "nothing to do, again")
def enter_nop_again(process: Process) -> Steps:
    ring = yield from _used_ring(process)
    ring.add(ring_of.NOP)
    yield from _enter(process, ring, 0)


@success("io_uring_enter", "read, later")
def enter_read_again(process: Process) -> Steps:
    ring, handle = (yield from _used_ring(process)), (yield from open_file(process))
    place = process.buffer(64)
    ring.add(ring_of.READ, handle, place, 64, 11)
    yield from _enter(process, ring, 64)
    process.check(process.read(place, 64) == CONTENT[11:75], "the file's bytes")


@success("io_uring_enter", "write, later, by a worker")
def enter_write_again(process: Process) -> Steps:
    ring, handle = (yield from _used_ring(process)), (yield from open_file(process, "file", O_RDWR))
    ring.add(ring_of.WRITE, handle, process.buffer(b"written"), 7, 50, flags=ring_of.FORCE_ASYNC)
    yield from _enter(process, ring, 7)
    process.check((yield from read_back(process, "file", 7, 50)) == b"written", "the bytes")


@success("io_uring_enter", "read of a pipe, later, sleeps")
def enter_sleeps_again(process: Process) -> Steps:
    ring = yield from _used_ring(process)
    reader, writer = yield from open_pipe(process)
    place = process.buffer(16)
    ring.add(ring_of.READ, reader, place, 16)
    pid = yield from process.fork(send_later(writer, b"late"))
    yield from _enter(process, ring, 4)
    process.check(process.read(place, 4) == b"late", "the child's bytes")
    yield from process.wait(pid)


@success("io_uring_enter", "read by a worker")
def enter_read_worker(process: Process) -> Steps:
    ring, handle = (yield from open_ring(process)), (yield from open_file(process))
    place = process.buffer(64)
    ring.add(ring_of.READ, handle, place, 64, 0, flags=ring_of.FORCE_ASYNC)
    yield from _enter(process, ring, 64)
    process.check(process.read(place, 64) == CONTENT[:64], "the file's bytes")


@success("io_uring_enter", "read in pieces")
def enter_readv(process: Process) -> Steps:
    ring, handle = (yield from open_ring(process)), (yield from open_file(process))
    place = process.buffer(64)
    ring.add(ring_of.READV, handle, process.buffer(iovec((place, 5), (place + 32, 6))), 2)
    yield from _enter(process, ring, 11)
    process.check(process.read(place, 5) + process.read(place + 32, 6) == CONTENT[:11], "the file's bytes")


@success("io_uring_enter", "write, then fsync, linked")
def enter_write(process: Process) -> Steps:
    ring, handle = (yield from open_ring(process)), (yield from open_file(process, "file", O_RDWR))
    ring.add(ring_of.WRITE, handle, process.buffer(b"written"), 7, 50, flags=ring_of.LINK)
    ring.add(ring_of.FSYNC, handle)
    yield from _enter(process, ring, 7, 0)
    process.check((yield from read_back(process, "file", 7, 50)) == b"written", "the bytes")


@success("io_uring_enter", "write in pieces to a pipe")
def enter_writev(process: Process) -> Steps:
    ring = yield from open_ring(process)
    reader, writer = yield from open_pipe(process)
    place = process.buffer(b"one two ")
    ring.add(ring_of.WRITEV, writer, process.buffer(iovec((place, 4), (place + 4, 4))), 2)
    yield from _enter(process, ring, 8)
    yield from process.must("read", reader, process.buffer(8), 8)


@success("io_uring_enter", "read of a pipe, sleeps until a child writes")
def enter_sleeps(process: Process) -> Steps:
    ring = yield from open_ring(process)
    reader, writer = yield from open_pipe(process)
    place = process.buffer(16)
    ring.add(ring_of.READ, reader, place, 16)
    pid = yield from process.fork(send_later(writer, b"late"))
    yield from _enter(process, ring, 4)
    process.check(process.read(place, 4) == b"late", "the child's bytes")
    yield from process.wait(pid)


@success("io_uring_enter", "poll of a pipe, sleeps")
def enter_poll(process: Process) -> Steps:
    ring = yield from open_ring(process)
    reader, writer = yield from open_pipe(process)
    ring.add(ring_of.POLL_ADD, reader, operation_flags=1)
    pid = yield from process.fork(send_later(writer, b"late"))
    yield from _enter(process, ring, 1)
    yield from process.wait(pid)


@success("io_uring_enter", "a time limit, sleeps")
def enter_timeout(process: Process) -> Steps:
    ring = yield from open_ring(process)
    ring.add(ring_of.TIMEOUT, -1, process.buffer(timespec(0, 3_000_000)), 1)
    yield from _enter(process, ring, -errno.ETIME)


@success("io_uring_enter", "open")
def enter_open(process: Process) -> Steps:
    ring = yield from open_ring(process)
    ring.add(ring_of.OPENAT, AT_FDCWD, process.string("dir/inner"), 0)
    yield from _enter(process, ring, ring.handle + 1)
    place = process.buffer(6)
    yield from process.must("read", ring.handle + 1, place, 6)
    process.check(process.read(place, 6) == b"inner\n", "dir/inner")


@success("io_uring_enter", "close")
def enter_close(process: Process) -> Steps:
    ring, handle = (yield from open_ring(process)), (yield from open_file(process))
    ring.add(ring_of.CLOSE, handle)
    yield from _enter(process, ring, 0)
    process.check((yield from process.call("close", handle)) == -errno.EBADF, "it is closed")


@success("io_uring_enter", "statx")
def enter_statx(process: Process) -> Steps:
    ring, place = (yield from open_ring(process)), process.buffer(256)
    ring.add(ring_of.STATX, AT_FDCWD, process.string("file"), 0x7FF, place)
    process.volatile(place + 64, 64)
    yield from _enter(process, ring, 0)
    process.check(process.read_int(place + 40, 8) == len(CONTENT), "the file's size")


@success("io_uring_enter", "mkdir, rename, unlink, linked")
def enter_names(process: Process) -> Steps:
    ring = yield from open_ring(process)
    ring.add(ring_of.MKDIRAT, AT_FDCWD, process.string("new"), 0o755, flags=ring_of.LINK)
    second = process.string("newer")
    ring.add(ring_of.RENAMEAT, AT_FDCWD, process.string("new"), AT_FDCWD & 0xFFFFFFFF, second, flags=ring_of.LINK)
    ring.add(ring_of.UNLINKAT, AT_FDCWD, process.string("file"))
    yield from _enter(process, ring, 0, 0, 0)
    yield from process.must("rmdir", "newer")


@success("io_uring_enter", "send and receive")
def enter_socket(process: Process) -> Steps:
    ring = yield from open_ring(process)
    one, other = yield from open_pair(process)
    place = process.buffer(16)
    ring.add(ring_of.SEND, one, process.buffer(b"sent"), 4, flags=ring_of.LINK)
    ring.add(ring_of.RECV, other, place, 16)
    yield from _enter(process, ring, 4, 4)
    process.check(process.read(place, 4) == b"sent", "the bytes")


@success("io_uring_enter", "a read that is cancelled")
def enter_cancel(process: Process) -> Steps:
    ring = yield from open_ring(process)
    reader, _ = yield from open_pipe(process)
    ring.add(ring_of.READ, reader, process.buffer(8), 8, data=1)
    ring.add(ring_of.ASYNC_CANCEL, -1, 1)
    yield from _enter(process, ring, -errno.ECANCELED, 0)


@success("io_uring_enter", "an operation that fails")
def enter_fails(process: Process) -> Steps:
    ring = yield from open_ring(process)
    ring.add(ring_of.READ, BAD_FD, process.buffer(8), 8)
    yield from _enter(process, ring, -errno.EBADF)


@success("io_uring_enter", "read of a registered file into a registered buffer")
def enter_fixed(process: Process) -> Steps:
    ring, handle, place = (yield from open_ring(process)), (yield from open_file(process)), process.buffer(64)
    yield from process.must("io_uring_register", ring.handle, BUFFERS, iovec((place, 64)), 1)
    yield from process.must("io_uring_register", ring.handle, FILES, struct.pack("<i", handle), 1)
    ring.add(ring_of.READ_FIXED, 0, place, 64, 0, flags=1)  # IOSQE_FIXED_FILE
    yield from _enter(process, ring, 64)
    process.check(process.read(place, 64) == CONTENT[:64], "the file's bytes")


plain("io_uring_enter", "closed descriptor", (BAD_FD, 1, 0, 0, 0, 0), fails(errno.EBADF))
plain("io_uring_enter", "not a ring", (0, 1, 0, 0, 0, 0), fails(errno.EOPNOTSUPP))
plain("io_uring_enter", "unknown flag", (0, 1, 0, 0x100, 0, 0), fails(errno.EINVAL))


@error("io_uring_enter", "not yet enabled")
def enter_disabled(process: Process) -> Steps:
    ring = yield from open_ring(process, SETUP_DISABLED)
    yield from process.measure(ring.handle, 1, 0, 0, 0, 0, expect=fails(errno.EBADFD))


# -- io_uring_register -----------------------------------------------------------------------------------
def _registers(name: str, operation: int, content: bytes, count: int, *, flags: int = 0, number: int = 0) -> None:
    @(error if number else success)("io_uring_register", name)
    def body(process: Process) -> Steps:
        ring = yield from open_ring(process, flags)
        place = process.buffer(content) if content else 0
        expect = fails(number) if number else ZERO
        yield from process.measure(ring.handle, operation, place, count, expect=expect)
        if operation == PROBE and not number:
            process.check(process.read_int(place, 1) >= 40, "at least the operations of 5.19")


_registers("files", FILES, struct.pack("<ii", 0, -1), 2)
_registers("closed file", FILES, struct.pack("<i", BAD_FD), 1, number=errno.EBADF)
_registers("no files there", NO_FILES, b"", 0, number=errno.ENXIO)
_registers("no buffers there", NO_BUFFERS, b"", 0, number=errno.ENXIO)
_registers("buffer at a bad address", BUFFERS, iovec((BAD_ADDRESS, 64)), 1, number=errno.EFAULT)
_registers("what it can do", PROBE, bytes(16 + 8 * 60), 60)
_registers("enabled", ENABLE, b"", 0, flags=SETUP_DISABLED)
_registers("enabled twice", ENABLE, b"", 0, number=errno.EBADFD)
_registers("unknown operation", 99, b"", 0, number=errno.EINVAL)
plain("io_uring_register", "closed descriptor", (BAD_FD, FILES, 0, 0), fails(errno.EBADF))


@success("io_uring_register", "buffers")
def register_buffers(process: Process) -> Steps:
    ring = yield from open_ring(process)
    vector = iovec((process.buffer(100), 100), (process.buffer(9000), 9000))
    yield from process.measure(ring.handle, BUFFERS, vector, 2, expect=ZERO)


@success("io_uring_register", "buffers, no longer")
def unregister_buffers(process: Process) -> Steps:
    ring = yield from open_ring(process)
    yield from process.must("io_uring_register", ring.handle, BUFFERS, iovec((process.buffer(100), 100)), 1)
    yield from process.measure(ring.handle, NO_BUFFERS, 0, 0, expect=ZERO)


@success("io_uring_register", "an eventfd that counts the ends")
def register_eventfd(process: Process) -> Steps:
    ring, counter = (yield from open_ring(process)), (yield from process.must("eventfd2", 0, 0))
    yield from process.measure(ring.handle, EVENTFD, struct.pack("<i", counter), 1, expect=ZERO)
    ring.add(ring_of.NOP)
    yield from process.must("io_uring_enter", ring.handle, 1, 1, GETEVENTS, 0, 0)
    place = process.buffer(8)
    yield from process.must("read", counter, place, 8)
    process.check(process.read_int(place, 8) == 1, "one has ended")


@success("close", "io_uring with a read under way")
def close_ring(process: Process) -> Steps:
    ring = yield from open_ring(process)
    reader, _ = yield from filled_pipe(process, b"")
    ring.add(ring_of.READ, reader, process.buffer(8), 8)
    yield from process.must("io_uring_enter", ring.handle, 1, 0, 0, 0, 0)
    yield from process.measure(ring.handle, expect=ZERO)
