"""Moving bytes inside the kernel: sendfile, splice, tee, vmsplice, copy_file_range."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import FILE_BYTES, file_content
from thinbox.audit.expect import ZERO, either, exactly, fails
from thinbox.audit.files import (
    BAD_ADDRESS,
    BAD_FD,
    O_APPEND,
    O_CREAT,
    O_NONBLOCK,
    O_RDWR,
    O_WRONLY,
    PAGE,
    filled_pipe,
    iovec,
    open_file,
    open_pair,
    open_pipe,
    read_back,
    rest,
)
from thinbox.harness.process import Steps

CONTENT = file_content()
MOVE, NONBLOCK, MORE, GIFT = 1, 2, 4, 8


def _arrived(process: Process, handle: int, expected: bytes) -> Steps:
    """Check that `expected` can be read of `handle`."""
    place = process.buffer(len(expected) + 64)
    count = yield from process.must("read", handle, place, len(expected) + 64)
    process.check(process.read(place, count) == expected, f"{len(expected)} bytes arrived")


def _new_file(process: Process) -> Steps:
    return (yield from open_file(process, "new", O_CREAT | O_RDWR))


# -- sendfile --------------------------------------------------------------------------------------------
@success("sendfile", "regular to regular")
def sendfile_file(process: Process) -> Steps:
    source, target = (yield from open_file(process)), (yield from _new_file(process))
    yield from process.measure(target, source, 0, 2 * FILE_BYTES, expect=exactly(FILE_BYTES))
    process.check((yield from read_back(process, "new", FILE_BYTES)) == CONTENT, "the same bytes")


@success("sendfile", "regular to pipe, from an offset")
def sendfile_pipe(process: Process) -> Steps:
    source = yield from open_file(process)
    reader, writer = yield from open_pipe(process)
    offset = process.buffer(struct.pack("<q", 4000))
    yield from process.measure(writer, source, offset, 200, expect=exactly(200))
    process.check(process.read_int(offset, 8) == 4200, "the offset went on")
    yield from _arrived(process, reader, CONTENT[4000:4200])


@success("sendfile", "regular to unix socket")
def sendfile_socket(process: Process) -> Steps:
    source = yield from open_file(process)
    one, other = yield from open_pair(process)
    yield from process.measure(one, source, 0, 5000, expect=exactly(5000))
    yield from _arrived(process, other, CONTENT[:5000])


@error("sendfile", "pipe to regular")
def sendfile_from_pipe(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"piped")
    target = yield from _new_file(process)
    yield from process.measure(target, reader, 0, 100, expect=fails(errno.EINVAL))


@error("sendfile", "/dev/zero to regular")
def sendfile_zero(process: Process) -> Steps:
    source, target = (yield from open_file(process, "/dev/zero")), (yield from _new_file(process))
    yield from process.measure(
        target, source, 0, PAGE + 5, expect=either(fails(errno.EINVAL), exactly(PAGE + 5))
    )  # 6.6: it is read


@success("sendfile", "proc to regular")
def sendfile_proc(process: Process) -> Steps:
    source, target = (yield from open_file(process, "/proc/sys/kernel/ostype")), (yield from _new_file(process))
    yield from process.measure(target, source, 0, 100, expect=exactly(6))
    process.check((yield from read_back(process, "new")) == b"Linux\n", "Linux")


@success("sendfile", "at the end")
def sendfile_end(process: Process) -> Steps:
    source, target = (yield from open_file(process)), (yield from _new_file(process))
    yield from process.must("lseek", source, 0, 2)
    yield from process.measure(target, source, 0, 100, expect=ZERO)


plain("sendfile", "closed descriptor", (1, BAD_FD, 0, 1), fails(errno.EBADF))


@error("sendfile", "to what is only read")
def sendfile_reader(process: Process) -> Steps:
    source, target = (yield from open_file(process)), (yield from open_file(process, "dir/inner"))
    yield from process.measure(target, source, 0, 1, expect=fails(errno.EBADF))


@error("sendfile", "bad address of the offset")
def sendfile_offset(process: Process) -> Steps:
    source, target = (yield from open_file(process)), (yield from _new_file(process))
    yield from process.measure(target, source, BAD_ADDRESS, 1, expect=fails(errno.EFAULT))


@error("sendfile", "to what is appended")
def sendfile_append(process: Process) -> Steps:
    source, target = (yield from open_file(process)), (yield from open_file(process, "new", O_CREAT | O_APPEND | 1))
    yield from process.measure(target, source, 0, 1, expect=fails(errno.EINVAL))


# -- splice ----------------------------------------------------------------------------------------------
@success("splice", "regular to pipe")
def splice_from_file(process: Process) -> Steps:
    source = yield from open_file(process)
    reader, writer = yield from open_pipe(process)
    offset = process.buffer(struct.pack("<q", 100))
    yield from process.measure(source, offset, writer, 0, 5000, 0, expect=exactly(5000))
    yield from _arrived(process, reader, CONTENT[100:5100])


@success("splice", "pipe to regular")
def splice_to_file(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, CONTENT[:5000])
    target = yield from _new_file(process)
    offset = process.buffer(struct.pack("<q", 10))
    yield from process.measure(reader, 0, target, offset, 9999, 0, expect=exactly(5000))
    process.check((yield from read_back(process, "new", 9000, 10)) == CONTENT[:5000], "the bytes at 10")


@success("splice", "pipe to pipe")
def splice_pipes(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"from one to the other")
    end, writer = yield from open_pipe(process)
    yield from process.measure(reader, 0, writer, 0, 8, MOVE, expect=exactly(8))
    yield from _arrived(process, end, b"from one")


@success("splice", "pipe to unix socket")
def splice_to_socket(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"socket")
    one, other = yield from open_pair(process)
    yield from process.measure(reader, 0, one, 0, 64, MORE, expect=exactly(6))
    yield from _arrived(process, other, b"socket")


@success("splice", "unix socket to pipe")
def splice_from_socket(process: Process) -> Steps:
    one, other = yield from open_pair(process)
    yield from process.must("write", one, b"socket", 6)
    reader, writer = yield from open_pipe(process)
    yield from process.measure(other, 0, writer, 0, 64, 0, expect=exactly(6))
    yield from _arrived(process, reader, b"socket")


@success("splice", "pipe to /dev/null")
def splice_null(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"gone")
    target = yield from open_file(process, "/dev/null", O_WRONLY)
    yield from process.measure(reader, 0, target, 0, 64, 0, expect=exactly(4))


@success("splice", "empty pipe, sleeps until a child writes")
def splice_sleeps(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    end, target = yield from open_pipe(process)

    def child(me: Process) -> Steps:
        yield from rest(me)
        yield from me.must("write", writer, b"late", 4)

    pid = yield from process.fork(child)
    yield from process.measure(reader, 0, target, 0, 64, 0, expect=exactly(4))
    yield from process.wait(pid)
    yield from _arrived(process, end, b"late")


@error("splice", "empty pipe, not blocking")
def splice_empty(process: Process) -> Steps:
    reader, _ = yield from open_pipe(process)
    _, target = yield from open_pipe(process)
    yield from process.measure(reader, 0, target, 0, 64, NONBLOCK, expect=fails(errno.EAGAIN))


@error("splice", "neither is a pipe")
def splice_files(process: Process) -> Steps:
    source, target = (yield from open_file(process)), (yield from _new_file(process))
    yield from process.measure(source, 0, target, 0, 64, 0, expect=fails(errno.EINVAL))


@error("splice", "an offset into a pipe")
def splice_offset(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    source = yield from open_file(process)
    yield from process.measure(source, 0, writer, bytes(8), 64, 0, expect=fails(errno.ESPIPE))
    process.check(reader > 0, "a reader")


plain("splice", "closed descriptor", (BAD_FD, 0, 1, 0, 1, 0), fails(errno.EBADF))
plain("splice", "unknown flag", (0, 0, 1, 0, 1, 0x80), fails(errno.EINVAL))


# -- tee and vmsplice ------------------------------------------------------------------------------------
@success("tee", "a part, and it stays")
def tee(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"doubled")
    end, writer = yield from open_pipe(process)
    yield from process.measure(reader, writer, 6, 0, expect=exactly(6))
    yield from _arrived(process, end, b"double")
    yield from _arrived(process, reader, b"doubled")


@success("tee", "two pages")
def tee_pages(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, CONTENT[: 2 * PAGE])
    end, writer = yield from open_pipe(process)
    yield from process.measure(reader, writer, 4 * PAGE, 0, expect=exactly(2 * PAGE))
    yield from _arrived(process, end, CONTENT[: 2 * PAGE])


@error("tee", "empty, not blocking")
def tee_empty(process: Process) -> Steps:
    reader, _ = yield from open_pipe(process)
    _, writer = yield from open_pipe(process)
    yield from process.measure(reader, writer, 6, NONBLOCK, expect=fails(errno.EAGAIN))


@error("tee", "not a pipe")
def tee_file(process: Process) -> Steps:
    _, writer = yield from open_pipe(process)
    source = yield from open_file(process)
    yield from process.measure(source, writer, 6, 0, expect=fails(errno.EINVAL))


plain("tee", "closed descriptor", (BAD_FD, BAD_FD, 1, 0), fails(errno.EBADF))


@success("vmsplice", "memory into a pipe")
def vmsplice(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    one, two = process.buffer(b"memory"), process.buffer(CONTENT[:5000])
    yield from process.measure(writer, iovec((one, 6), (two, 5000)), 2, 0, expect=exactly(5006))
    yield from _arrived(process, reader, b"memory" + CONTENT[:5000])


@success("vmsplice", "pipe into memory")
def vmsplice_out(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"to memory")
    place = process.buffer(64)
    yield from process.measure(reader, iovec((place, 64)), 1, 0, expect=exactly(9))
    process.check(process.read(place, 9) == b"to memory", "the bytes")


@error("vmsplice", "not a pipe")
def vmsplice_file(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, iovec((process.buffer(8), 8)), 1, 0, expect=fails(errno.EBADF))


@error("vmsplice", "bad address")
def vmsplice_bad(process: Process) -> Steps:
    _, writer = yield from open_pipe(process)
    yield from process.measure(writer, iovec((BAD_ADDRESS, 8)), 1, 0, expect=fails(errno.EFAULT))


@error("vmsplice", "full pipe, not blocking")
def vmsplice_full(process: Process) -> Steps:
    _, writer = yield from open_pipe(process, O_NONBLOCK)
    yield from process.must("fcntl", writer, 1031, PAGE)
    yield from process.must("write", writer, process.buffer(PAGE), PAGE)
    yield from process.measure(writer, iovec((process.buffer(8), 8)), 1, NONBLOCK, expect=fails(errno.EAGAIN))


# -- copy_file_range -------------------------------------------------------------------------------------
@success("copy_file_range", "all of it")
def copy_all(process: Process) -> Steps:
    source, target = (yield from open_file(process)), (yield from _new_file(process))
    yield from process.measure(source, 0, target, 0, 1 << 20, 0, expect=exactly(FILE_BYTES))
    process.check((yield from read_back(process, "new", FILE_BYTES)) == CONTENT, "the same bytes")


@success("copy_file_range", "between offsets of one file")
def copy_within(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_RDWR)
    start, end = process.buffer(struct.pack("<q", 11)), process.buffer(struct.pack("<q", 5000))
    yield from process.measure(handle, start, handle, end, 22, 0, expect=exactly(22))
    process.check((yield from read_back(process, "file", 22, 5000)) == CONTENT[11:33], "the bytes at 5000")
    process.check((process.read_int(start, 8), process.read_int(end, 8)) == (33, 5022), "the offsets went on")


plain("copy_file_range", "closed descriptor", (BAD_FD, 0, BAD_FD, 0, 1, 0), fails(errno.EBADF))


def _copy_error(name: str, source: str, target: str, flags: int, number: int) -> None:
    @error("copy_file_range", name)
    def body(process: Process) -> Steps:
        first = yield from open_file(process, source, 2 if source == "fifo" else 0)
        second = yield from open_file(process, target, O_CREAT | O_RDWR)
        yield from process.measure(first, 0, second, 0, 10, flags, expect=fails(number))


_copy_error("unknown flag", "file", "new", 1, errno.EINVAL)
_copy_error("directory", "dir", "new", 0, errno.EISDIR)
_copy_error("fifo", "fifo", "new", 0, errno.EINVAL)
_copy_error("another kind of file system", "/proc/version", "new", 0, errno.EXDEV)


@error("copy_file_range", "overlapping")
def copy_overlap(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_RDWR)
    start, end = struct.pack("<q", 0), struct.pack("<q", 5)
    yield from process.measure(handle, start, handle, end, 22, 0, expect=fails(errno.EINVAL))
