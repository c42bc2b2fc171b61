"""Length, position and storage of a file: seek, truncate, allocate, flush, advise."""

import errno

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import FILE_BYTES, file_content
from thinbox.audit.expect import ZERO, exactly, fails
from thinbox.audit.files import (
    BAD_ADDRESS,
    BAD_FD,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    PAGE,
    open_file,
    open_pipe,
    read_back,
)
from thinbox.harness.process import Steps

CONTENT = file_content()
SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE = range(5)
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE = 1, 2, 8, 16


def size_of(process: Process, handle: int) -> Steps:
    """Its value: the file's length."""
    return (yield from process.must("lseek", handle, 0, SEEK_END))


# -- position --------------------------------------------------------------------------------------------
def _seeks(name: str, path: str, offset: int, whence: int, result: int, *, before: int = 0) -> None:
    @success("lseek", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path)
        if before:
            yield from process.must("lseek", handle, before, SEEK_SET)
        yield from process.measure(handle, offset, whence, expect=exactly(result))


_seeks("from the start", "file", 77, SEEK_SET, 77)
_seeks("from here", "file", -7, SEEK_CUR, 93, before=100)
_seeks("from the end", "file", -1, SEEK_END, FILE_BYTES - 1)
_seeks("behind the end", "file", 1 << 40, SEEK_SET, 1 << 40)
_seeks("to data", "file", 5, SEEK_DATA, 5)
_seeks("to a hole", "file", 5, SEEK_HOLE, FILE_BYTES)
_seeks("directory", "dir", 0, SEEK_SET, 0)
_seeks("/dev/zero", "/dev/zero", 5, SEEK_SET, 0)
_seeks("/proc/version", "/proc/version", 5, SEEK_SET, 5)
_seeks("/proc/self/maps", "/proc/self/maps", 0x20, SEEK_SET, 0x20)
_seeks("/sys/kernel/notes", "/sys/kernel/notes", 4, SEEK_SET, 4)
plain("lseek", "closed descriptor", (BAD_FD, 0, 0), fails(errno.EBADF))
plain("lseek", "terminal", (0, 0, 0), fails(errno.ESPIPE))


def _seek_error(name: str, offset: int, whence: int, number: int) -> None:
    @error("lseek", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process)
        yield from process.measure(handle, offset, whence, expect=fails(number))


_seek_error("before the start", -1, SEEK_SET, errno.EINVAL)
_seek_error("unknown origin", 0, 9, errno.EINVAL)
_seek_error("to data behind the end", FILE_BYTES, SEEK_DATA, errno.ENXIO)


@error("lseek", "pipe")
def lseek_pipe(process: Process) -> Steps:
    reader, _ = yield from open_pipe(process)
    yield from process.measure(reader, 0, SEEK_SET, expect=fails(errno.ESPIPE))


# -- length ----------------------------------------------------------------------------------------------
def _truncates(name: str, size: int) -> None:
    @success("truncate", name)
    def by_name(process: Process) -> Steps:
        yield from process.measure("file", size, expect=ZERO)
        found = yield from read_back(process, "file", 5 * PAGE)
        process.check(found == (CONTENT + bytes(5 * PAGE))[: min(size, 5 * PAGE)], "as long, zeros behind the old end")

    @success("ftruncate", name)
    def by_descriptor(process: Process) -> Steps:
        handle = yield from open_file(process, "file", O_RDWR)
        yield from process.measure(handle, size, expect=ZERO)
        process.check((yield from size_of(process, handle)) == size, f"{size} bytes")


_truncates("to nothing", 0)
_truncates("inside a page", 5000)
_truncates("to a page", PAGE)
_truncates("longer", FILE_BYTES + 5000)
_truncates("as long as it is", FILE_BYTES)
plain("truncate", "no such file", ("nothing", 0), fails(errno.ENOENT))
plain("truncate", "directory", ("dir", 0), fails(errno.EISDIR))
plain("truncate", "fifo", ("fifo", 0), fails(errno.EINVAL))
plain("truncate", "negative", ("file", -1), fails(errno.EINVAL))
plain("truncate", "bad address", (BAD_ADDRESS, 0), fails(errno.EFAULT))
plain("ftruncate", "closed descriptor", (BAD_FD, 0), fails(errno.EBADF))


@error("ftruncate", "opened for reading")
def ftruncate_reader(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_RDONLY)
    yield from process.measure(handle, 0, expect=fails(errno.EINVAL))


@success("ftruncate", "memfd, shorter while it is mapped")
def ftruncate_mapped(process: Process) -> Steps:
    handle = yield from process.must("memfd_create", "m", 0)
    yield from process.must("ftruncate", handle, 3 * PAGE)
    place = yield from process.must("mmap", 0, 3 * PAGE, 3, 0x8001, handle, 0)  # MAP_SHARED, MAP_POPULATE
    yield from process.measure(handle, PAGE, expect=ZERO)
    process.watch(place, 16)


@error("ftruncate", "sealed memfd")
def ftruncate_sealed(process: Process) -> Steps:
    handle = yield from process.must("memfd_create", "m", 2)
    yield from process.must("fcntl", handle, 1033, 4)  # F_SEAL_GROW
    yield from process.measure(handle, PAGE, expect=fails(errno.EPERM))


# -- storage ---------------------------------------------------------------------------------------------
def _allocates(name: str, mode: int, offset: int, size: int, length: int, zeros: tuple[int, int] | None = None) -> None:
    """`fallocate`; then the file has `length` bytes, and zeros from zeros[0] to zeros[1]."""

    @success("fallocate", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, "file", O_RDWR)
        yield from process.measure(handle, mode, offset, size, expect=ZERO)
        process.check((yield from size_of(process, handle)) == length, f"{length} bytes")
        wanted = bytearray(CONTENT)
        if zeros:
            wanted[zeros[0] : zeros[1]] = bytes(zeros[1] - zeros[0])
        process.check((yield from read_back(process, "file", FILE_BYTES)) == bytes(wanted), "the bytes")


_allocates("longer", 0, 0, 5 * PAGE, 5 * PAGE)
_allocates("behind the end, the size kept", KEEP_SIZE, 4 * PAGE, PAGE, FILE_BYTES)
_allocates("a hole of a page", KEEP_SIZE | PUNCH_HOLE, PAGE, PAGE, FILE_BYTES, (PAGE, 2 * PAGE))
_allocates("a hole inside a page", KEEP_SIZE | PUNCH_HOLE, 100, 200, FILE_BYTES, (100, 300))
plain("fallocate", "closed descriptor", (BAD_FD, 0, 0, PAGE), fails(errno.EBADF))


def _allocate_error(name: str, flags: int, mode: int, offset: int, size: int, number: int) -> None:
    @error("fallocate", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, "file", flags)
        yield from process.measure(handle, mode, offset, size, expect=fails(number))


_allocate_error("opened for reading", O_RDONLY, 0, 0, PAGE, errno.EBADF)
_allocate_error("of nothing", O_WRONLY, 0, 0, 0, errno.EINVAL)
_allocate_error("tmpfs collapses no range", O_WRONLY, COLLAPSE, 0, PAGE, errno.EOPNOTSUPP)
_allocate_error("a hole without keeping the size", O_WRONLY, PUNCH_HOLE, 0, PAGE, errno.EOPNOTSUPP)
_allocate_error("more than there is", O_WRONLY, 0, 0, 1 << 45, errno.ENOSPC)


@error("fallocate", "pipe")
def fallocate_pipe(process: Process) -> Steps:
    _, writer = yield from open_pipe(process)
    yield from process.measure(writer, 0, 0, PAGE, expect=fails(errno.ESPIPE))


# -- flushing and advice ---------------------------------------------------------------------------------
def _flushes(call: str, name: str, path: str, *args: int, flags: int = O_RDWR) -> None:
    """A call on `path` after a byte of it was written."""

    @success(call, name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, flags)
        if flags == O_RDWR:
            yield from process.must("write", handle, b"!", 1)
        yield from process.measure(handle, *args, expect=ZERO)


for _call in ("fsync", "fdatasync", "syncfs"):
    _flushes(_call, "regular", "file")
    _flushes(_call, "directory", "dir", flags=O_RDONLY)
    _flushes(_call, "the first file system", "/etc/passwd")
    plain(_call, "closed descriptor", (BAD_FD,), fails(errno.EBADF))
plain("fsync", "terminal", (0,), fails(errno.EINVAL))
plain("fdatasync", "terminal", (0,), fails(errno.EINVAL))
_flushes("syncfs", "proc", "/proc/version", flags=O_RDONLY)
_flushes("sync_file_range", "regular", "file", 0, PAGE, 7)
_flushes("sync_file_range", "regular, only begun", "file", 0, 0, 2)
_flushes("readahead", "regular", "file", 0, 2 * PAGE)
_flushes("readahead", "a program", "/bin/busybox", 0, 8 * PAGE, flags=O_RDONLY)
for _advice, _name in enumerate(("normal", "random", "sequential", "will need", "do not need", "no reuse")):
    _flushes("fadvise64", _name, "file", 0, 0, _advice)


@success("fsync", "memfd")
def fsync_memfd(process: Process) -> Steps:
    handle = yield from process.must("memfd_create", "m", 0)
    yield from process.must("write", handle, b"x", 1)
    yield from process.measure(handle, expect=ZERO)


@success("sync", "after a write")
def sync(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_RDWR)
    yield from process.must("write", handle, b"!", 1)
    yield from process.measure(expect=ZERO)


@success("sync", "every file system mounted")
def sync_all(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "ramfs", 0, 0)
    yield from process.measure(expect=ZERO)


plain("sync_file_range", "closed descriptor", (BAD_FD, 0, 0, 0), fails(errno.EBADF))
plain("sync_file_range", "unknown flag", (0, 0, 0, 8), fails(errno.EINVAL))
plain("sync_file_range", "terminal", (0, 0, 0, 0), fails(errno.ESPIPE))
plain("readahead", "closed descriptor", (BAD_FD, 0, PAGE), fails(errno.EBADF))
plain("readahead", "terminal", (0, 0, PAGE), fails(errno.EINVAL))
plain("fadvise64", "closed descriptor", (BAD_FD, 0, 0, 0), fails(errno.EBADF))


@error("fadvise64", "unknown advice")
def fadvise_unknown(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, 0, 0, 99, expect=fails(errno.EINVAL))


@error("fadvise64", "pipe")
def fadvise_pipe(process: Process) -> Steps:
    reader, _ = yield from open_pipe(process)
    yield from process.measure(reader, 0, 0, 0, expect=fails(errno.ESPIPE))


@error("readahead", "opened for writing")
def readahead_writer(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_WRONLY)
    yield from process.measure(handle, 0, PAGE, expect=fails(errno.EBADF))
