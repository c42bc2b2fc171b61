"""Names: directories, links, renaming, nodes, and where a process stands."""

import errno

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import FOLDER, file_content
from thinbox.audit.expect import ZERO, exactly, fails
from thinbox.audit.files import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_REMOVEDIR,
    AT_SYMLINK_FOLLOW,
    BAD_ADDRESS,
    BAD_FD,
    O_NOFOLLOW,
    O_PATH,
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFIFO,
    S_IFLNK,
    S_IFREG,
    S_IFSOCK,
    make_file,
    map_pages,
    open_file,
    read_back,
)
from thinbox.harness.process import Steps

EXISTS = {"file", "dir", "link", "dangling", "fifo"}


def mode_of(process: Process, path: str) -> Steps:
    """Its value: st_mode of `path` itself, or 0 if there is nothing of that name."""
    place = process.buffer(144)
    result = yield from process.call("lstat", path, place)
    process.volatile(place, 144)
    return 0 if result < 0 else process.read_int(place + 24)


def _makes(call: str, name: str, args: tuple[int | str, ...], path: str, kind: int) -> None:
    """A call that makes `path`, then of mode `kind`."""

    @success(call, name)
    def body(process: Process) -> Steps:
        yield from process.measure(*args, expect=ZERO)
        found = yield from mode_of(process, path)
        process.check(found == kind, f"{path} has mode {kind:o} (found {found:o})")


def _removes(call: str, name: str, args: tuple[int | str, ...], path: str, make: str = "") -> None:
    """A call that removes `path`; `make`: what to call with it before (mkdir, symlink)."""

    @success(call, name)
    def body(process: Process) -> Steps:
        if make == "mkdir":
            yield from process.must("mkdir", path, 0o755)
        yield from process.measure(*args, expect=ZERO)
        found = yield from mode_of(process, path)
        process.check(not found, f"{path} is gone")


# -- making directories and nodes ----------------------------------------------------------------------
DEV = 0x103
"""Device 1:3, /dev/null's."""
_makes("mkdir", "plain", ("new", 0o755), "new", S_IFDIR | 0o755)
_makes("mkdir", "with the sticky bit", ("new", 0o1777), "new", S_IFDIR | 0o1777 & ~0o022)
_makes("mkdir", "deeper, with a slash", ("dir/new/", 0o700), "dir/new", S_IFDIR | 0o700)
_makes("mkdir", "in the first file system", ("/home/new", 0o700), "/home/new", S_IFDIR | 0o700)
_makes("mkdirat", "plain", (AT_FDCWD, "new", 0o755), "new", S_IFDIR | 0o755)
_makes("mknod", "fifo", ("new", S_IFIFO | 0o600, 0), "new", S_IFIFO | 0o600)
_makes("mknod", "regular", ("new", S_IFREG | 0o600, 0), "new", S_IFREG | 0o600)
_makes("mknod", "character device", ("new", S_IFCHR | 0o600, DEV), "new", S_IFCHR | 0o600)
_makes("mknod", "block device", ("new", S_IFBLK | 0o600, DEV), "new", S_IFBLK | 0o600)
_makes("mknod", "socket", ("new", S_IFSOCK | 0o600, 0), "new", S_IFSOCK | 0o600)
_makes("mknod", "in devtmpfs", ("/dev/new", S_IFCHR | 0o600, DEV), "/dev/new", S_IFCHR | 0o600)
_makes("mknodat", "fifo", (AT_FDCWD, "new", S_IFIFO | 0o600, 0), "new", S_IFIFO | 0o600)
_makes("mknodat", "character device", (AT_FDCWD, "new", S_IFCHR | 0o600, DEV), "new", S_IFCHR | 0o600)

for _name, _path, _number in (
    ("exists", "file", errno.EEXIST),
    ("exists, dangling", "dangling", errno.EEXIST),
    ("no such directory", "nowhere/new", errno.ENOENT),
    ("in a file", "file/new", errno.ENOTDIR),
    ("bad address", BAD_ADDRESS, errno.EFAULT),
    ("name too long", "n" * 256, errno.ENAMETOOLONG),
):
    plain("mkdir", _name, (_path, 0o755), fails(_number))
    plain("mkdirat", _name, (AT_FDCWD, _path, 0o755), fails(_number))
    plain("mknod", _name, (_path, S_IFIFO | 0o600, 0), fails(_number))
    plain("mknodat", _name, (AT_FDCWD, _path, S_IFIFO | 0o600, 0), fails(_number))
    plain("symlink", _name, ("to", _path), fails(_number))
    plain("symlinkat", _name, ("to", AT_FDCWD, _path), fails(_number))
    plain("link", _name, ("file", _path), fails(_number))
    plain("linkat", _name, (AT_FDCWD, "file", AT_FDCWD, _path, 0), fails(_number))
plain("mkdir", "in proc", ("/proc/new", 0o755), fails(errno.ENOENT))
plain("mkdir", "in sysfs", ("/sys/new", 0o755), fails(errno.EPERM))
plain("mknod", "a directory", ("new", S_IFDIR | 0o600, 0), fails(errno.EPERM))
plain("mknod", "unknown type", ("new", 0o030000, 0), fails(errno.EINVAL))
plain("mkdirat", "closed descriptor", (BAD_FD, "new", 0o755), fails(errno.EBADF))


@success("mkdirat", "relative to a directory")
def mkdirat_relative(process: Process) -> Steps:
    handle = yield from open_file(process, "dir")
    yield from process.measure(handle, "new", 0o750, expect=ZERO)
    process.check((yield from mode_of(process, "dir/new")) == S_IFDIR | 0o750, "dir/new is there")


# -- links -----------------------------------------------------------------------------------------------
_makes("symlink", "short", ("file", "new"), "new", S_IFLNK | 0o777)
_makes("symlink", "long", ("x" * 300, "new"), "new", S_IFLNK | 0o777)
_makes("symlinkat", "short", ("file", AT_FDCWD, "new"), "new", S_IFLNK | 0o777)
_makes("link", "plain", ("file", "new"), "new", S_IFREG | 0o644)
_makes("link", "of a link", ("link", "new"), "new", S_IFLNK | 0o777)
_makes("linkat", "plain", (AT_FDCWD, "file", AT_FDCWD, "dir/new", 0), "dir/new", S_IFREG | 0o644)
_makes("linkat", "what a link leads to", (AT_FDCWD, "link", AT_FDCWD, "n", AT_SYMLINK_FOLLOW), "n", S_IFREG | 0o644)
plain("symlink", "to nothing", ("", "new"), fails(errno.ENOENT))
plain("link", "of a directory", ("dir", "new"), fails(errno.EPERM))
plain("link", "of nothing", ("nothing", "new"), fails(errno.ENOENT))
plain("link", "into another file system", ("file", "/run/new"), fails(errno.EXDEV))
plain("linkat", "unknown flag", (AT_FDCWD, "file", AT_FDCWD, "new", 1), fails(errno.EINVAL))


@success("linkat", "a nameless file")
def linkat_nameless(process: Process) -> Steps:
    handle = yield from open_file(process, ".", 0o20200000 | 2, 0o600)  # O_TMPFILE, O_RDWR
    yield from process.must("write", handle, b"named", 5)
    yield from process.measure(handle, "", AT_FDCWD, "new", AT_EMPTY_PATH, expect=ZERO)
    process.check((yield from read_back(process, "new")) == b"named", "its bytes")


def _reads_link(name: str, path: str, size: int, expected: bytes) -> None:
    for call, before in (("readlink", ()), ("readlinkat", (AT_FDCWD,))):

        @success(call, name)
        def body(process: Process, before: tuple[int, ...] = before) -> Steps:
            place = process.buffer(b"?" * size)
            yield from process.measure(*before, path, place, size, expect=exactly(len(expected)))
            process.check(process.read(place, len(expected)) == expected, f"{expected!r}")


_reads_link("short", "link", 64, b"file")
_reads_link("cut short", "dangling", 3, b"not")
_reads_link("/proc/self/exe", "/proc/self/exe", 64, b"/init")
_reads_link("/proc/self/cwd", "/proc/self/cwd", 64, FOLDER.encode())
_reads_link("/proc/self/fd/0", "/proc/self/fd/0", 64, b"/dev/console")
_reads_link("/proc/mounts", "/proc/mounts", 64, b"self/mounts")
_reads_link("/dev/fd", "/dev/fd", 64, b"/proc/self/fd")
_reads_link("/sys", "/sys/class/net/lo", 64, b"../../devices/virtual/net/lo")
for _name, _path, _size, _number in (
    ("not a link", "file", 64, errno.EINVAL),
    ("no such file", "nothing", 64, errno.ENOENT),
    ("room for nothing", "link", 0, errno.EINVAL),
    ("bad address", BAD_ADDRESS, 64, errno.EFAULT),
):
    plain("readlink", _name, (_path, bytes(64), _size), fails(_number))
    plain("readlinkat", _name, (AT_FDCWD, _path, bytes(64), _size), fails(_number))


@success("readlink", "/proc/self")
def readlink_self(process: Process) -> Steps:
    place = process.buffer(16)
    length = yield from process.measure("/proc/self", place, 16)
    pid = yield from process.must("getpid")
    process.check(process.read(place, length) == b"%d" % pid, "its pid")


@success("readlink", "long, into a page never touched")
def readlink_long(process: Process) -> Steps:
    yield from process.must("symlink", "x" * 300, "new")
    place = yield from map_pages(process)
    yield from process.measure("new", place, 4096, expect=exactly(300))
    process.check(process.read(place, 300) == b"x" * 300, "all of it")


@success("readlinkat", "of a descriptor")
def readlinkat_empty(process: Process) -> Steps:
    handle = yield from open_file(process, "link", O_PATH | O_NOFOLLOW)
    yield from process.measure(handle, "", bytes(64), 64, expect=exactly(4))


# -- removing --------------------------------------------------------------------------------------------
_removes("unlink", "regular", ("file",), "file")
_removes("unlink", "link", ("dangling",), "dangling")
_removes("unlink", "fifo", ("fifo",), "fifo")
_removes("unlinkat", "regular", (AT_FDCWD, "file", 0), "file")
_removes("unlinkat", "directory", (AT_FDCWD, "new", AT_REMOVEDIR), "new", "mkdir")
_removes("rmdir", "plain", ("new",), "new", "mkdir")
_removes("rmdir", "deeper", ("dir/new/",), "dir/new", "mkdir")
for _name, _path, _number in (
    ("no such file", "nothing", errno.ENOENT),
    ("in a file", "file/x", errno.ENOTDIR),
    ("bad address", BAD_ADDRESS, errno.EFAULT),
):
    plain("unlink", _name, (_path,), fails(_number))
    plain("unlinkat", _name, (AT_FDCWD, _path, 0), fails(_number))
    plain("rmdir", _name, (_path,), fails(_number))
plain("unlink", "directory", ("dir",), fails(errno.EISDIR))
plain("unlinkat", "directory without the flag", (AT_FDCWD, "dir", 0), fails(errno.EISDIR))
plain("unlinkat", "unknown flag", (AT_FDCWD, "file", 1), fails(errno.EINVAL))
plain("unlink", "in proc", ("/proc/version",), fails(errno.EPERM))
plain("rmdir", "not empty", ("dir",), fails(errno.ENOTEMPTY))
plain("rmdir", "the point", ("dir/.",), fails(errno.EINVAL))
plain("rmdir", "mount point", ("/proc",), fails(errno.EBUSY))
plain("rmdir", "regular", ("file",), fails(errno.ENOTDIR))


@success("unlink", "a file still open")
def unlink_open(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure("file", expect=ZERO)
    place = process.buffer(8)
    yield from process.must("read", handle, place, 8)
    process.check(process.read(place, 8) == file_content()[:8], "it can still be read")


# -- renaming --------------------------------------------------------------------------------------------
def _renames(name: str, old: str, new: str, *, flags: int = 0, make: str = "") -> None:
    """`rename` and its relatives (`renameat2` alone if `flags`); `make` is created before."""
    for call in ("renameat2",) if flags else ("rename", "renameat", "renameat2"):

        @success(call, name)
        def body(process: Process, call: str = call) -> Steps:
            if make.endswith("/"):
                yield from process.must("mkdir", make, 0o755)
            elif make:
                yield from make_file(process, make, b"made")
            before = yield from mode_of(process, old)
            args = (old, new) if call == "rename" else (AT_FDCWD, old, AT_FDCWD, new)
            yield from process.measure(*args, *((flags,) if call == "renameat2" else ()), expect=ZERO)
            after, left = (yield from mode_of(process, new)), (yield from mode_of(process, old))
            process.check(after == before, "the new name is of the old file")
            process.check(bool(left) == bool(flags & 2), "the old name")


_renames("file", "file", "new")
_renames("file over a file", "file", "made", make="made")
_renames("file into a directory", "file", "dir/new")
_renames("directory", "dir", "new")
_renames("directory over an empty one", "dir", "made", make="made/")
_renames("link", "link", "new")
_renames("not over anything", "file", "new", flags=1)
_renames("exchanged", "file", "made", flags=2, make="made")
_renames("file over a file elsewhere", "file", "dir/inner")
for _name, _old, _new, _number in (
    ("nothing", "nothing", "new", errno.ENOENT),
    ("directory into itself", "dir", "dir/new", errno.EINVAL),
    ("file over a directory", "file", "dir", errno.EISDIR),
    ("directory over a file", "dir", "file", errno.ENOTDIR),
    ("into another file system", "file", "/run/new", errno.EXDEV),
    ("bad address", BAD_ADDRESS, "new", errno.EFAULT),
    ("the point", ".", "new", errno.EBUSY),
):
    plain("rename", _name, (_old, _new), fails(_number))
    plain("renameat", _name, (AT_FDCWD, _old, AT_FDCWD, _new), fails(_number))
    plain("renameat2", _name, (AT_FDCWD, _old, AT_FDCWD, _new, 0), fails(_number))
plain("renameat2", "not over what is there", (AT_FDCWD, "file", AT_FDCWD, "link", 1), fails(errno.EEXIST))
plain("renameat2", "contradicting flags", (AT_FDCWD, "file", AT_FDCWD, "link", 3), fails(errno.EINVAL))


@success("renameat2", "leaving a whiteout behind")
def rename_whiteout(process: Process) -> Steps:
    yield from process.measure(AT_FDCWD, "file", AT_FDCWD, "new", 4, expect=ZERO)
    process.check((yield from mode_of(process, "file")) == S_IFCHR, "a whiteout")


@error("rename", "not empty")
def rename_not_empty(process: Process) -> Steps:
    yield from process.must("mkdir", "new", 0o755)
    yield from process.measure("new", "dir", expect=fails(errno.ENOTEMPTY))
