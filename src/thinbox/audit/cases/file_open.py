"""Opening and closing: `open`, its relatives, and what they are given."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, fails
from thinbox.audit.files import (
    AF_UNIX,
    AT_FDCWD,
    BAD_ADDRESS,
    BAD_FD,
    O_CLOEXEC,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_NOATIME,
    O_NOCTTY,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    O_RDWR,
    O_SYNC,
    O_TMPFILE,
    O_TRUNC,
    O_WRONLY,
    S_IFDIR,
    S_IFREG,
    SOCK_STREAM,
    open_file,
    open_pair,
    open_pipe,
    open_terminal,
    read_back,
    rest,
)
from thinbox.harness.process import Steps

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16


def _opens(name: str, path: str, flags: int, *, mode: int = 0, kind: int = 0, state: int | None = None) -> None:
    """`open` and `openat` of `path`; `kind`: the file type (S_IF…) the descriptor then has; `state`: its F_GETFL."""

    def check(process: Process, handle: int) -> Steps:
        place = process.buffer(144)
        yield from process.must("fstat", handle, place)
        process.volatile(place + 72, 48)
        found = process.read_int(place + 24)
        process.check(not kind or found & 0o170000 == kind, f"a file of type {kind:o}")
        status = yield from process.must("fcntl", handle, 3, 0)
        process.check(state is None or status == state, f"status flags {state or 0:o} (found {status:o})")
        process.check(process.read_int(place) >= 0, "a device number")

    @success("open", name)
    def body(process: Process) -> Steps:
        handle = yield from process.measure(path, flags, mode, expect=POSITIVE)
        yield from check(process, handle)

    @success("openat", name)
    def body_at(process: Process) -> Steps:
        handle = yield from process.measure(AT_FDCWD, path, flags, mode, expect=POSITIVE)
        yield from check(process, handle)


LARGE = 0o100000
"""O_LARGEFILE, which the kernel adds."""
_opens("regular, read only", "file", O_RDONLY, kind=S_IFREG, state=LARGE)
_opens("regular, read and write", "file", O_RDWR | O_CLOEXEC, kind=S_IFREG, state=LARGE | O_RDWR)
_opens("regular, O_SYNC and O_NOATIME", "file", O_WRONLY | O_SYNC | O_NOATIME, kind=S_IFREG)
_opens("regular, through a link", "link", O_RDONLY, kind=S_IFREG)
_opens("regular, a longer path", "dir/../dir/./inner", O_RDONLY, kind=S_IFREG)
_opens("regular, an absolute path", "/etc/passwd", O_RDONLY, kind=S_IFREG)
_opens("regular, O_TRUNC", "file", O_WRONLY | O_TRUNC, kind=S_IFREG)
_opens("new, O_CREAT", "new", O_CREAT | O_RDWR, mode=0o600, kind=S_IFREG)
_opens("new, O_CREAT and O_EXCL", "dir/new", O_CREAT | O_EXCL | O_WRONLY, mode=0o644, kind=S_IFREG)
_opens("new, through a dangling link", "dangling", O_CREAT | O_WRONLY, mode=0o644, kind=S_IFREG)
_opens("nameless, O_TMPFILE", "dir", O_TMPFILE | O_RDWR, mode=0o600, kind=S_IFREG)
_opens("O_PATH of a file", "file", O_PATH, kind=S_IFREG, state=O_PATH)
_opens("O_PATH of a link itself", "link", O_PATH | O_NOFOLLOW, kind=0o120000)
_opens("directory", "dir", O_DIRECTORY, kind=S_IFDIR)
_opens("the root", "/", O_RDONLY, kind=S_IFDIR)
_opens("fifo, both ends", "fifo", O_RDWR, kind=0o010000)
_opens("fifo, not blocking", "fifo", O_RDONLY | O_NONBLOCK, kind=0o010000, state=LARGE | O_NONBLOCK)
_opens("/dev/null", "/dev/null", O_RDWR, kind=0o020000)
_opens("/dev/zero", "/dev/zero", O_RDONLY, kind=0o020000)
_opens("/dev/urandom", "/dev/urandom", O_RDONLY, kind=0o020000)
_opens("/dev/kmsg", "/dev/kmsg", O_RDONLY, kind=0o020000)
_opens("/dev/mem", "/dev/mem", O_RDONLY, kind=0o020000)
_opens("/dev/ptmx", "/dev/ptmx", O_RDWR | O_NOCTTY, kind=0o020000)
_opens("/dev/tty0", "/dev/tty0", O_RDWR | O_NOCTTY, kind=0o020000)
_opens("/dev/ttyS0", "/dev/ttyS0", O_RDWR | O_NOCTTY | O_NONBLOCK, kind=0o020000)
_opens("/dev/rtc0", "/dev/rtc0", O_RDONLY, kind=0o020000)
_opens("/proc/self/stat", "/proc/self/stat", O_RDONLY, kind=S_IFREG)
_opens("/proc/self/maps", "/proc/self/maps", O_RDONLY, kind=S_IFREG)
_opens("/proc/self/fd/0", "/proc/self/fd/0", O_RDWR | O_NOCTTY, kind=0o020000)
_opens("/proc/self/exe", "/proc/self/exe", O_RDONLY, kind=S_IFREG)
_opens("/proc/1/status", "/proc/1/status", O_RDONLY, kind=S_IFREG)
_opens("/proc/net/tcp", "/proc/net/tcp", O_RDONLY, kind=S_IFREG)
_opens("/proc/sys/kernel/hostname", "/proc/sys/kernel/hostname", O_RDWR, kind=S_IFREG)
_opens("/proc/self/ns/mnt", "/proc/self/ns/mnt", O_RDONLY, kind=S_IFREG)
_opens("/sys/kernel/notes", "/sys/kernel/notes", O_RDONLY, kind=S_IFREG)
_opens("/sys/class/net", "/sys/class/net", O_DIRECTORY, kind=S_IFDIR)
_opens("/sys/class/net/lo/mtu", "/sys/class/net/lo/mtu", O_RDWR, kind=S_IFREG)

for _name, _path, _flags, _number in (
    ("no such file", "nothing", 0, errno.ENOENT),
    ("dangling link", "dangling", 0, errno.ENOENT),
    ("no such directory", "nowhere/new", O_CREAT | O_WRONLY, errno.ENOENT),
    ("a file as a directory", "file/x", 0, errno.ENOTDIR),
    ("O_DIRECTORY of a file", "file", O_DIRECTORY, errno.ENOTDIR),
    ("O_EXCL of what exists", "file", O_CREAT | O_EXCL | O_WRONLY, errno.EEXIST),
    ("directory for writing", "dir", O_WRONLY, errno.EISDIR),
    ("O_NOFOLLOW of a link", "link", O_NOFOLLOW, errno.ELOOP),
    ("fifo for writing without a reader", "fifo", O_WRONLY | O_NONBLOCK, errno.ENXIO),
    ("name of 300 bytes", "n" * 300, 0, errno.ENAMETOOLONG),
    ("path of 4200 bytes", "d/" * 2100, 0, errno.ENAMETOOLONG),
    ("empty path", "", 0, errno.ENOENT),
    ("bad address", BAD_ADDRESS, 0, errno.EFAULT),
    ("/dev/tty without a terminal", "/dev/tty", 0, errno.ENXIO),
    ("running program for writing", "/init", O_WRONLY, errno.ETXTBSY),
    ("proc file for writing", "/proc/version/x", O_WRONLY, errno.ENOTDIR),
):
    plain("open", _name, (_path, _flags, 0o644), fails(_number))
    plain("openat", _name, (AT_FDCWD, _path, _flags, 0o644), fails(_number))

plain("openat", "relative to a closed descriptor", (BAD_FD, "file", 0, 0), fails(errno.EBADF))
plain("openat", "relative to a terminal", (0, "file", 0, 0), fails(errno.ENOTDIR))
plain("creat", "a directory", ("dir", 0o644), fails(errno.EISDIR))
plain("close", "closed descriptor", (BAD_FD,), fails(errno.EBADF))
plain("close", "console", (0,), ZERO)
plain("close_range", "first after last", (9, 3, 0), fails(errno.EINVAL))
plain("close_range", "unknown flag", (100, 200, 1), fails(errno.EINVAL))
plain("close_range", "of none", (100, 200, 0), ZERO)


@success("openat", "relative to a directory")
def openat_directory(process: Process) -> Steps:
    folder = yield from open_file(process, "dir", O_DIRECTORY)
    handle = yield from process.measure(folder, "inner", 0, 0, expect=POSITIVE)
    place = process.buffer(6)
    yield from process.must("read", handle, place, 6)
    process.check(process.read(place, 6) == b"inner\n", "dir/inner")


@success("open", "fifo, sleeps until a child opens the other end")
def open_fifo_sleeps(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from rest(me)
        yield from me.must("open", "fifo", O_WRONLY, 0)

    pid = yield from process.fork(child)
    yield from process.measure("fifo", O_RDONLY, 0, expect=POSITIVE)
    yield from process.wait(pid)


@success("open", "path in a page never touched by this process")
def open_path_fresh(process: Process) -> Steps:
    source = yield from open_file(process, "new", O_CREAT | O_RDWR)
    yield from process.must("write", source, b"file\0", 5)
    path = yield from process.must("mmap", 0, 4096, 1, 2, source, 0)
    yield from process.measure(path, 0, 0, expect=POSITIVE)


@error("open", "no right to")
def open_denied(process: Process) -> Steps:
    yield from process.must("chmod", "file", 0o600)
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure("file", 0, 0, expect=fails(errno.EACCES))


@error("open", "too many open files")
def open_too_many(process: Process) -> Steps:
    yield from process.must("setrlimit", 7, struct.pack("<QQ", 3, 3))
    yield from process.measure("file", 0, 0, expect=fails(errno.EMFILE))


@error("open", "read only mount")
def open_read_only(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 1, 0)
    yield from process.measure("dir/new", O_CREAT | O_WRONLY, 0o644, expect=fails(errno.EROFS))


@error("open", "links in a circle")
def open_circle(process: Process) -> Steps:
    yield from process.must("symlink", "b", "a")
    yield from process.must("symlink", "a", "b")
    yield from process.measure("a", 0, 0, expect=fails(errno.ELOOP))


@success("creat", "a new file")
def creat_new(process: Process) -> Steps:
    yield from process.measure("new", 0o640, expect=POSITIVE)
    place = process.buffer(144)
    yield from process.must("stat", "new", place)
    process.volatile(place + 72, 48)
    process.check(process.read_int(place + 24) == S_IFREG | 0o640, "mode 640")


@success("creat", "over an old one")
def creat_old(process: Process) -> Steps:
    yield from process.measure("file", 0o640, expect=POSITIVE)
    process.check((yield from read_back(process, "file")) == b"", "it is empty")


# -- openat2 -----------------------------------------------------------------------------------------
def _how(flags: int, mode: int = 0, resolve: int = 0) -> bytes:
    return struct.pack("<3Q", flags, mode, resolve)


plain("openat2", "plain", (AT_FDCWD, "file", _how(0), 24), POSITIVE)
plain("openat2", "new", (AT_FDCWD, "new", _how(O_CREAT | O_RDWR, 0o600), 24), POSITIVE)
plain("openat2", "beneath", (AT_FDCWD, "dir/inner", _how(0, 0, RESOLVE_BENEATH), 24), POSITIVE)
plain("openat2", "no links, no other mount", (AT_FDCWD, "dir/inner", _how(0, 0, RESOLVE_NO_XDEV | 4), 24), POSITIVE)
plain("openat2", "beneath, but above", (AT_FDCWD, "../x", _how(0, 0, RESOLVE_BENEATH), 24), fails(errno.EXDEV))
plain("openat2", "no links, but one", (AT_FDCWD, "link", _how(0, 0, RESOLVE_NO_SYMLINKS), 24), fails(errno.ELOOP))
plain("openat2", "no magic links, but one", (AT_FDCWD, "/proc/self/fd/0", _how(0, 0, 2), 24), fails(errno.ELOOP))
plain("openat2", "no other mount, but one", (AT_FDCWD, "/proc/1", _how(0, 0, 1), 24), fails(errno.EXDEV))
plain("openat2", "unknown flag", (AT_FDCWD, "file", _how(1 << 40), 24), fails(errno.EINVAL))
plain("openat2", "structure too short", (AT_FDCWD, "file", _how(0), 8), fails(errno.EINVAL))
plain("openat2", "longer structure, not zero", (AT_FDCWD, "file", _how(0) + b"\1" * 8, 32), fails(errno.E2BIG))


@success("openat2", "a directory as the root")
def openat2_root(process: Process) -> Steps:
    folder = yield from open_file(process, "dir")
    yield from process.measure(folder, "/../inner", _how(0, 0, RESOLVE_IN_ROOT), 24, expect=POSITIVE)


# -- close -------------------------------------------------------------------------------------------
def _closes(name: str, path: str, flags: int = O_RDWR) -> None:
    @success("close", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, flags | O_NOCTTY)
        yield from process.measure(handle, expect=ZERO)
        again = yield from process.call("close", handle)
        process.check(again == -errno.EBADF, "it is closed")


_closes("regular", "file")
_closes("directory", "dir", O_RDONLY)
_closes("fifo", "fifo")
_closes("/dev/null", "/dev/null")
_closes("/proc/self/maps", "/proc/self/maps", O_RDONLY)
_closes("/proc/version", "/proc/version", O_RDONLY)
_closes("/sys/kernel/notes", "/sys/kernel/notes", O_RDONLY)
_closes("O_PATH", "file", O_PATH)
_closes("/dev/ttyS0", "/dev/ttyS0", O_RDWR | O_NONBLOCK)
_closes("nameless file", "dir", O_TMPFILE | O_RDWR)


@success("close", "a file already unlinked")
def close_unlinked(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.must("unlink", "file")
    yield from process.measure(handle, expect=ZERO)


@success("close", "both ends of a pipe")
def close_pipe(process: Process) -> Steps:
    reader, writer = yield from open_pipe(process)
    yield from process.must("write", writer, b"lost", 4)
    yield from process.must("close", writer)
    yield from process.measure(reader, expect=ZERO)


@success("close", "unix socket")
def close_unix(process: Process) -> Steps:
    one, _other = yield from open_pair(process)
    yield from process.measure(one, expect=ZERO)


@success("close", "tcp socket")
def close_tcp(process: Process) -> Steps:
    handle = yield from process.must("socket", 2, SOCK_STREAM, 0)
    yield from process.measure(handle, expect=ZERO)


@success("close", "listening unix socket")
def close_listening(process: Process) -> Steps:
    handle = yield from process.must("socket", AF_UNIX, SOCK_STREAM, 0)
    yield from process.must("bind", handle, struct.pack("<H", AF_UNIX) + b"sock\0", 7)
    yield from process.must("listen", handle, 5)
    yield from process.measure(handle, expect=ZERO)


@success("close", "master of a terminal")
def close_terminal(process: Process) -> Steps:
    master, slave = yield from open_terminal(process)
    yield from process.measure(master, expect=ZERO)
    result = yield from process.call("write", slave, b"x", 1)
    process.check(result == -errno.EIO, "the terminal is gone")


def _closes_made(name: str, call: str, *args: int | str) -> None:
    @success("close", name)
    def body(process: Process) -> Steps:
        handle = yield from process.must(call, *args)
        yield from process.measure(handle, expect=ZERO)


_closes_made("eventfd", "eventfd2", 0, 0)
_closes_made("memfd", "memfd_create", "m", 0)
_closes_made("timerfd", "timerfd_create", 1, 0)
_closes_made("epoll", "epoll_create1", 0)
_closes_made("inotify", "inotify_init1", 0)


@success("close_range", "three descriptors")
def close_range_three(process: Process) -> Steps:
    first = yield from open_file(process)
    yield from open_pipe(process)
    yield from process.measure(first, first + 2, 0, expect=ZERO)
    result = yield from process.call("fcntl", first + 1, 1, 0)
    process.check(result == -errno.EBADF, "they are closed")


@success("close_range", "only marks them close-on-exec")
def close_range_cloexec(process: Process) -> Steps:
    first = yield from open_file(process)
    yield from process.measure(first, 0xFFFFFFFF, 4, expect=ZERO)
    result = yield from process.call("fcntl", first, 1, 0)
    process.check(result == 1, "FD_CLOEXEC is set")


@success("close_range", "in a table of its own")
def close_range_unshare(process: Process) -> Steps:
    first = yield from open_file(process)

    def child(me: Process) -> Steps:
        yield from me.measure(first, first, 2, expect=ZERO)

    pid = yield from process.fork(child, flags=0x400 | 17)  # CLONE_FILES
    yield from process.wait(pid)
    yield from process.must("fcntl", first, 1, 0)
