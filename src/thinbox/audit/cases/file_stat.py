"""Asking about files: the stat family, access, and what is known of a file system."""

import errno

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import FILE_BYTES
from thinbox.audit.expect import AT_LEAST_0, ZERO, exactly, fails
from thinbox.audit.files import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    BAD_ADDRESS,
    BAD_FD,
    O_PATH,
    O_RDWR,
    S_IFCHR,
    S_IFDIR,
    S_IFIFO,
    S_IFLNK,
    S_IFREG,
    S_IFSOCK,
    map_pages,
    open_file,
    open_pair,
    open_pipe,
    open_terminal,
)
from thinbox.harness.process import Steps

STAT_BYTES, STATX_BYTES, STATFS_BYTES = 144, 256, 120
STATX_BASIC = 0x7FF
_TIMES = (72, 48)
TMPFS_MAGIC, PROC_MAGIC, SYSFS_MAGIC, DEVPTS_MAGIC, PIPEFS_MAGIC = 0x01021994, 0x9FA0, 0x62656572, 0x1CD1, 0x50495045


def _check_stat(process: Process, place: int, kind: int, size: int | None) -> None:
    """Check type and size of the struct stat at `place`, and leave its times out."""
    process.volatile(place + _TIMES[0], _TIMES[1])
    mode = process.read_int(place + 24)
    process.check(mode & 0o170000 == kind, f"a file of type {kind:o}")
    if size is not None:
        process.check(process.read_int(place + 48, 8) == size, f"{size} bytes")
    process.check(process.read_int(place + 56, 8) > 0, "a block size")


def _stats(name: str, path: str, kind: int, size: int | None = None, *, link: bool = False) -> None:
    """`stat`, `lstat`, `newfstatat` and `statx` of `path`; `link`: the last three do not follow it."""
    flags = AT_SYMLINK_NOFOLLOW if link else 0

    def one(call: str, *before: int) -> None:
        @success(call, name)
        def body(process: Process) -> Steps:
            place = process.buffer(STAT_BYTES)
            after = () if call != "newfstatat" else (flags,)
            yield from process.measure(*before, path, place, *after, expect=ZERO)
            _check_stat(process, place, kind, size)

    if not link:
        one("stat")
    one("lstat")
    one("newfstatat", AT_FDCWD)

    @success("statx", name)
    def extended(process: Process) -> Steps:
        place = process.buffer(STATX_BYTES)
        yield from process.measure(AT_FDCWD, path, flags, STATX_BASIC, place, expect=ZERO)
        process.volatile(place + 64, 64)
        process.check(process.read_int(place) & STATX_BASIC == STATX_BASIC, "everything asked for")
        process.check(int.from_bytes(process.read(place + 28, 2), "little") & 0o170000 == kind, f"type {kind:o}")
        process.check(size is None or process.read_int(place + 40, 8) == size, f"{size} bytes")


_stats("regular", "file", S_IFREG, FILE_BYTES)
_stats("directory", "dir", S_IFDIR)
_stats("the root", "/", S_IFDIR)
_stats("fifo", "fifo", S_IFIFO, 0)
_stats("a link itself", "link", S_IFLNK, 4, link=True)
_stats("a longer path", "dir/.././dir//inner", S_IFREG, 6)
_stats("/dev/null", "/dev/null", S_IFCHR, 0)
_stats("/dev/ttyS0", "/dev/ttyS0", S_IFCHR, 0)
_stats("/proc/self/status", "/proc/self/status", S_IFREG, 0)
_stats("/proc/1", "/proc/1", S_IFDIR)
_stats("/proc/sys/kernel/ostype", "/proc/sys/kernel/ostype", S_IFREG, 0)
_stats("/sys/class/net/lo/mtu", "/sys/class/net/lo/mtu", S_IFREG, 4096)
_stats("/dev/pts", "/dev/pts", S_IFDIR)
_stats("a program in the first file system", "/bin/busybox", S_IFREG)
_stats("magic link itself", "/proc/self/exe", S_IFLNK, 0, link=True)

plain("stat", "through a link", ("link", bytes(STAT_BYTES)), ZERO)

for _name, _path, _number in (
    ("no such file", "nothing", errno.ENOENT),
    ("no such directory", "nowhere/x", errno.ENOENT),
    ("a file as a directory", "file/x", errno.ENOTDIR),
    ("name too long", "n" * 256, errno.ENAMETOOLONG),
    ("bad address of the path", BAD_ADDRESS, errno.EFAULT),
):
    plain("stat", _name, (_path, bytes(STAT_BYTES)), fails(_number))
    plain("lstat", _name, (_path, bytes(STAT_BYTES)), fails(_number))
    plain("newfstatat", _name, (AT_FDCWD, _path, bytes(STAT_BYTES), 0), fails(_number))
    plain("statx", _name, (AT_FDCWD, _path, 0, STATX_BASIC, bytes(STATX_BYTES)), fails(_number))
    plain("access", _name, (_path, 0), fails(_number))
    plain("faccessat", _name, (AT_FDCWD, _path, 0), fails(_number))
    plain("faccessat2", _name, (AT_FDCWD, _path, 0, 0), fails(_number))
    plain("statfs", _name, (_path, bytes(STATFS_BYTES)), fails(_number))
plain("stat", "dangling link", ("dangling", bytes(STAT_BYTES)), fails(errno.ENOENT))
plain("lstat", "dangling link", ("dangling", bytes(STAT_BYTES)), ZERO)
plain("stat", "bad address of the result", ("file", BAD_ADDRESS), fails(errno.EFAULT))
plain("lstat", "bad address of the result", ("file", BAD_ADDRESS), fails(errno.EFAULT))
plain("fstat", "bad address of the result", (0, BAD_ADDRESS), fails(errno.EFAULT))
plain("fstat", "closed descriptor", (BAD_FD, bytes(STAT_BYTES)), fails(errno.EBADF))
plain("newfstatat", "closed descriptor", (BAD_FD, "x", bytes(STAT_BYTES), 0), fails(errno.EBADF))
plain("newfstatat", "unknown flag", (AT_FDCWD, "file", bytes(STAT_BYTES), 0x200), fails(errno.EINVAL))
plain("statx", "reserved mask", (AT_FDCWD, "file", 0, 0x80000000, bytes(STATX_BYTES)), fails(errno.EINVAL))
plain("statx", "contradicting flags", (AT_FDCWD, "file", 0x6000, STATX_BASIC, bytes(STATX_BYTES)), fails(errno.EINVAL))
plain("fstatfs", "closed descriptor", (BAD_FD, bytes(STATFS_BYTES)), fails(errno.EBADF))


@error("stat", "no right to search")
def stat_denied(process: Process) -> Steps:
    yield from process.must("chmod", "dir", 0o700)
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure("dir/inner", bytes(STAT_BYTES), expect=fails(errno.EACCES))


@success("stat", "into a page never touched")
def stat_untouched(process: Process) -> Steps:
    place = yield from map_pages(process)
    yield from process.measure("file", place, expect=ZERO)
    process.check(process.read_int(place + 48, 8) == FILE_BYTES, "the file's size")


@success("stat", "mount point")
def stat_mount(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 0, "mode=711")
    place = process.buffer(STAT_BYTES)
    yield from process.measure("dir", place, expect=ZERO)
    _check_stat(process, place, S_IFDIR, None)
    process.check(process.read_int(place + 24) & 0o777 == 0o711, "the mounted root's mode")


@success("newfstatat", "of a descriptor")
def newfstatat_empty(process: Process) -> Steps:
    handle = yield from open_file(process, "dir/inner")
    place = process.buffer(STAT_BYTES)
    yield from process.measure(handle, "", place, AT_EMPTY_PATH, expect=ZERO)
    _check_stat(process, place, S_IFREG, 6)


@success("newfstatat", "relative to a directory")
def newfstatat_directory(process: Process) -> Steps:
    handle = yield from open_file(process, "dir")
    place = process.buffer(STAT_BYTES)
    yield from process.measure(handle, "inner", place, 0, expect=ZERO)
    _check_stat(process, place, S_IFREG, 6)


@success("statx", "of a descriptor, with its birth")
def statx_empty(process: Process) -> Steps:
    handle = yield from open_file(process)
    place = process.buffer(STATX_BYTES)
    yield from process.measure(handle, "", AT_EMPTY_PATH, STATX_BASIC | 0x1800, place, expect=ZERO)
    process.volatile(place + 64, 64)
    process.check(process.read_int(place) & 0x800, "STATX_BTIME is known")
    process.check(process.read_int(place + 144, 8) > 0, "STATX_MNT_ID")


# -- fstat -------------------------------------------------------------------------------------------
def _fstat(process: Process, handle: int, kind: int, size: int | None = None) -> Steps:
    place = process.buffer(STAT_BYTES)
    yield from process.measure(handle, place, expect=ZERO)
    process.volatile(place + _TIMES[0], _TIMES[1])
    found = process.read_int(place + 24) & 0o170000
    process.check(found == kind, f"a file of type {kind:o}, found {found:o}")
    process.check(size is None or process.read_int(place + 48, 8) == size, f"{size} bytes")


def _fstats_path(name: str, path: str, kind: int, size: int | None = None, flags: int = 0) -> None:
    @success("fstat", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, flags)
        yield from _fstat(process, handle, kind, size)


_fstats_path("regular", "file", S_IFREG, FILE_BYTES)
_fstats_path("directory", "dir", S_IFDIR)
_fstats_path("fifo", "fifo", S_IFIFO, 0, O_RDWR)
_fstats_path("/dev/zero", "/dev/zero", S_IFCHR, 0)
_fstats_path("/proc/self/maps", "/proc/self/maps", S_IFREG, 0)
_fstats_path("/sys/kernel/notes", "/sys/kernel/notes", S_IFREG)
_fstats_path("O_PATH", "file", S_IFREG, FILE_BYTES, O_PATH)


@success("fstat", "console")
def fstat_console(process: Process) -> Steps:
    yield from _fstat(process, 0, S_IFCHR)


@success("fstat", "pipe")
def fstat_pipe(process: Process) -> Steps:
    reader, _ = yield from open_pipe(process)
    yield from _fstat(process, reader, S_IFIFO, 0)


@success("fstat", "unix socket")
def fstat_socket(process: Process) -> Steps:
    one, _ = yield from open_pair(process)
    yield from _fstat(process, one, S_IFSOCK, 0)


@success("fstat", "terminal")
def fstat_terminal(process: Process) -> Steps:
    _master, slave = yield from open_terminal(process)
    yield from _fstat(process, slave, S_IFCHR)


@success("fstat", "eventfd")
def fstat_eventfd(process: Process) -> Steps:
    handle = yield from process.must("eventfd2", 0, 0)
    yield from _fstat(process, handle, 0)


@success("fstat", "memfd")
def fstat_memfd(process: Process) -> Steps:
    handle = yield from process.must("memfd_create", "m", 0)
    yield from process.must("ftruncate", handle, 12345)
    yield from _fstat(process, handle, S_IFREG, 12345)


# -- access ------------------------------------------------------------------------------------------
for _name, _path, _mode in (
    ("exists", "file", 0),
    ("may read and write", "file", 6),
    ("may execute", "/bin/busybox", 1),
    ("directory, everything", "dir", 7),
    ("through a link", "link", 4),
    ("/dev/null", "/dev/null", 6),
    ("/proc/self/mem", "/proc/self/mem", 4),
    ("/sys", "/sys/kernel", 4),
):
    plain("access", _name, (_path, _mode), ZERO)
    plain("faccessat", _name, (AT_FDCWD, _path, _mode), ZERO)
    plain("faccessat2", _name, (AT_FDCWD, _path, _mode, 0), ZERO)
plain("access", "may not execute", ("file", 1), fails(errno.EACCES))
plain("access", "unknown mode", ("file", 8), fails(errno.EINVAL))
plain("faccessat", "may not execute", (AT_FDCWD, "file", 1), fails(errno.EACCES))
plain("faccessat", "closed descriptor", (BAD_FD, "file", 0), fails(errno.EBADF))
plain("faccessat2", "dangling link itself", (AT_FDCWD, "dangling", 0, AT_SYMLINK_NOFOLLOW), ZERO)
plain("faccessat2", "effective ids", (AT_FDCWD, "file", 6, 0x200), ZERO)
plain("faccessat2", "unknown flag", (AT_FDCWD, "file", 0, 0x800000), fails(errno.EINVAL))


@error("access", "another user, and the real ids count")
def access_real(process: Process) -> Steps:
    yield from process.must("chmod", "file", 0o600)
    yield from process.must("setresuid", 1000, 0, 0)
    yield from process.measure("file", 4, expect=fails(errno.EACCES))


@error("access", "read only mount")
def access_read_only(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 1, 0)
    yield from process.measure("dir", 2, expect=fails(errno.EROFS))


# -- file systems ------------------------------------------------------------------------------------
def _statfs(name: str, path: str, magic: int) -> None:
    def check(process: Process, place: int) -> None:
        process.volatile(place + 24, 32)  # free blocks and inodes
        process.check(process.read_int(place, 8) == magic, f"file system type {magic:#x}")
        process.check(process.read_int(place + 8, 8) == 4096 or magic == DEVPTS_MAGIC, "its block size")

    @success("statfs", name)
    def body(process: Process) -> Steps:
        place = process.buffer(STATFS_BYTES)
        yield from process.measure(path, place, expect=ZERO)
        check(process, place)

    @success("fstatfs", name)
    def body_of_descriptor(process: Process) -> Steps:
        handle = yield from open_file(process, path)
        place = process.buffer(STATFS_BYTES)
        yield from process.measure(handle, place, expect=ZERO)
        check(process, place)


_statfs("tmpfs", "file", TMPFS_MAGIC)
_statfs("the first file system", "/", TMPFS_MAGIC)
_statfs("proc", "/proc", PROC_MAGIC)
_statfs("sysfs", "/sys", SYSFS_MAGIC)
_statfs("devpts", "/dev/pts", DEVPTS_MAGIC)


@success("fstatfs", "pipe")
def fstatfs_pipe(process: Process) -> Steps:
    reader, _ = yield from open_pipe(process)
    place = process.buffer(STATFS_BYTES)
    yield from process.measure(reader, place, expect=ZERO)
    process.check(process.read_int(place, 8) == PIPEFS_MAGIC, "pipefs")


@success("ustat", "tmpfs")
def ustat(process: Process) -> Steps:
    about, place = process.buffer(STAT_BYTES), process.buffer(32)
    yield from process.must("stat", "file", about)
    process.volatile(about + _TIMES[0], _TIMES[1])
    process.volatile(place, 32)
    device = process.read_int(about, 8)
    yield from process.measure(device, place, expect=ZERO)
    process.check(process.read_int(place + 8, 8) > 0, "free inodes")


plain("ustat", "a device of no file system", (0xFF01, bytes(32)), fails(errno.EINVAL))
plain("sysfs", "index of tmpfs", (1, "tmpfs", 0), exactly(1))
plain("sysfs", "the number of file systems", (3, 0, 0), AT_LEAST_0)
plain("sysfs", "index of none", (1, "nothing", 0), fails(errno.EINVAL))
plain("sysfs", "an option that is none", (9, 0, 0), fails(errno.EINVAL))


@success("sysfs", "name of the first")
def sysfs_name(process: Process) -> Steps:
    place = process.buffer(32)
    yield from process.measure(2, 0, place, expect=ZERO)
    process.check(process.read(place, 6) == b"sysfs\0", "sysfs")
