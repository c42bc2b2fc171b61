"""What is attached to a file: mode, owner, times, extended attributes."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import ZERO, either, exactly, fails
from thinbox.audit.files import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    BAD_ADDRESS,
    BAD_FD,
    O_PATH,
    make_file,
    map_pages,
    open_file,
    open_pipe,
)
from thinbox.harness.process import Steps

MODE, UID, GID, ATIME, MTIME = 24, 28, 32, 72, 88


def _stat(process: Process, path: str) -> Steps:
    """Its value: the struct stat of `path` itself."""
    place = process.buffer(144)
    yield from process.must("lstat", path, place)
    process.volatile(place, 144)
    return process.read(place, 144)


def _int(data: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(data[at : at + size], "little")


# -- mode ------------------------------------------------------------------------------------------------
def _chmods(name: str, path: str, mode: int, *, changed: str = "") -> None:
    for call in ("chmod", "fchmodat", "fchmod"):

        @success(call, name)
        def body(process: Process, call: str = call) -> Steps:
            if call == "fchmod":
                args: tuple[int | str, ...] = ((yield from open_file(process, path)), mode)
            else:
                args = (path, mode) if call == "chmod" else (AT_FDCWD, path, mode)
            yield from process.measure(*args, expect=ZERO)
            found = _int((yield from _stat(process, changed or path)), MODE) & 0o7777
            process.check(found == mode, f"mode {mode:o} (found {found:o})")


_chmods("regular", "file", 0o600)
_chmods("regular, set-user-id", "file", 0o4711)
_chmods("directory", "dir", 0o1750)
_chmods("through a link", "link", 0o444, changed="file")
_chmods("/dev/null", "/dev/null", 0o600)
for _name, _path, _number in (
    ("no such file", "nothing", errno.ENOENT),
    ("in a file", "file/x", errno.ENOTDIR),
    ("bad address", BAD_ADDRESS, errno.EFAULT),
    ("a setting of proc", "/proc/sys/kernel/hostname", errno.EPERM),
):
    plain("chmod", _name, (_path, 0o600), fails(_number))
    plain("fchmodat", _name, (AT_FDCWD, _path, 0o600), fails(_number))
plain("fchmod", "closed descriptor", (BAD_FD, 0o600), fails(errno.EBADF))
plain("umask", "set", (0o077,), exactly(0o022))


@error("fchmod", "O_PATH descriptor")
def fchmod_path(process: Process) -> Steps:
    handle = yield from open_file(process, "file", O_PATH)
    yield from process.measure(handle, 0o600, expect=fails(errno.EBADF))


@error("chmod", "not the owner")
def chmod_denied(process: Process) -> Steps:
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure("file", 0o666, expect=fails(errno.EPERM))


@error("chmod", "read only mount")
def chmod_read_only(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "tmpfs", 1, 0)
    yield from process.measure("dir", 0o700, expect=fails(errno.EROFS))


@success("umask", "what a new file gets")
def umask_effect(process: Process) -> Steps:
    yield from process.measure(0o027, expect=exactly(0o022))
    yield from make_file(process, "new", mode=0o666)
    process.check(_int((yield from _stat(process, "new")), MODE) & 0o777 == 0o640, "mode 640")


# -- owner -----------------------------------------------------------------------------------------------
def _chowns(name: str, path: str, uid: int, gid: int, *, of_link: bool = False) -> None:
    for call in ("lchown", "fchownat") if of_link else ("chown", "lchown", "fchown", "fchownat"):

        @success(call, name)
        def body(process: Process, call: str = call) -> Steps:
            if call == "fchown":
                args: tuple[int | str, ...] = ((yield from open_file(process, path)), uid, gid)
            elif call == "fchownat":
                args = (AT_FDCWD, path, uid, gid, AT_SYMLINK_NOFOLLOW if of_link else 0)
            else:
                args = (path, uid, gid)
            yield from process.measure(*args, expect=ZERO)
            found = yield from _stat(process, path)
            wanted = (0 if uid == -1 else uid, 0 if gid == -1 else gid)
            process.check((_int(found, UID), _int(found, GID)) == wanted, f"it belongs to {wanted}")


_chowns("user and group", "file", 1000, 1001)
_chowns("user alone", "file", 1000, -1)
_chowns("group alone", "dir", -1, 5)
_chowns("neither", "file", -1, -1)
_chowns("a link itself", "link", 1000, 1001, of_link=True)
_chowns("a dangling link", "dangling", 7, 8, of_link=True)
for _name, _path, _number in (
    ("no such file", "nothing", errno.ENOENT),
    ("bad address", BAD_ADDRESS, errno.EFAULT),
    ("in a file", "file/x", errno.ENOTDIR),
):
    plain("chown", _name, (_path, 1, 1), fails(_number))
    plain("lchown", _name, (_path, 1, 1), fails(_number))
    plain("fchownat", _name, (AT_FDCWD, _path, 1, 1, 0), fails(_number))
plain("fchown", "closed descriptor", (BAD_FD, 1, 1), fails(errno.EBADF))
plain("fchownat", "unknown flag", (AT_FDCWD, "file", 1, 1, 0x800), fails(errno.EINVAL))


@success("chown", "clears set-user-id")
def chown_clears(process: Process) -> Steps:
    yield from process.must("chmod", "file", 0o4755)
    yield from process.measure("file", 1000, 1000, expect=ZERO)
    process.check(_int((yield from _stat(process, "file")), MODE) & 0o7777 == 0o755, "mode 755")


@success("fchownat", "of a descriptor")
def fchownat_empty(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, "", 5, 6, AT_EMPTY_PATH, expect=ZERO)
    found = yield from _stat(process, "file")
    process.check((_int(found, UID), _int(found, GID)) == (5, 6), "it belongs to 5:6")


@error("chown", "not allowed to")
def chown_denied(process: Process) -> Steps:
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure("file", 1000, 1000, expect=fails(errno.EPERM))


# -- times -----------------------------------------------------------------------------------------------
def _times(
    call: str, name: str, args: tuple[int | str | bytes, ...], access: int, change: int, path: str = "file"
) -> None:
    """A call that sets the times of `path` to these nanoseconds since 1970 (-1: not looked at)."""

    @success(call, name)
    def body(process: Process) -> Steps:
        yield from process.measure(*args, expect=ZERO)
        found = yield from _stat(process, path)
        for at, wanted in ((ATIME, access), (MTIME, change)):
            ns = _int(found, at, 8) * 10**9 + _int(found, at + 8, 8)
            process.check(wanted < 0 or ns == wanted, f"{wanted} ns (found {ns})")


S = 10**9
UTIME_NOW, UTIME_OMIT = 0x3FFFFFFF, 0x3FFFFFFE
_times("utime", "two times", ("file", struct.pack("<qq", 5, 7)), 5 * S, 7 * S)
_times("utime", "now", ("file", 0), -1, -1)
_times("utimes", "two times", ("file", struct.pack("<4q", 5, 6, 7, 8)), 5 * S + 6000, 7 * S + 8000)
_times("utimes", "now", ("file", 0), -1, -1)
_times("futimesat", "two times", (AT_FDCWD, "file", struct.pack("<4q", 5, 6, 7, 8)), 5 * S + 6000, 7 * S + 8000)
_times("futimesat", "now", (AT_FDCWD, "file", 0), -1, -1)
_times("utimensat", "two times", (AT_FDCWD, "file", struct.pack("<4q", 5, 6, 7, 8), 0), 5 * S + 6, 7 * S + 8)
_times(
    "utimensat",
    "one left as it is",
    (AT_FDCWD, "dir", struct.pack("<4q", 0, UTIME_OMIT, 7, 8), 0),
    -1,
    7 * S + 8,
    "dir",
)
_times("utimensat", "one now", (AT_FDCWD, "file", struct.pack("<4q", 5, 6, 0, UTIME_NOW), 0), 5 * S + 6, -1)
_times(
    "utimensat",
    "a link itself",
    (AT_FDCWD, "link", struct.pack("<4q", 5, 6, 7, 8), 0x100),
    5 * S + 6,
    7 * S + 8,
    "link",
)
for _name, _path, _number in (("no such file", "nothing", errno.ENOENT), ("bad address", BAD_ADDRESS, errno.EFAULT)):
    plain("utime", _name, (_path, bytes(16)), fails(_number))
    plain("utimes", _name, (_path, bytes(32)), fails(_number))
    plain("futimesat", _name, (AT_FDCWD, _path, bytes(32)), fails(_number))
    plain("utimensat", _name, (AT_FDCWD, _path, bytes(32), 0), fails(_number))
plain("utimes", "too many microseconds", ("file", struct.pack("<4q", 0, 10**6, 0, 0)), fails(errno.EINVAL))
plain("futimesat", "closed descriptor", (BAD_FD, "x", 0), fails(errno.EBADF))
plain("utimensat", "too many nanoseconds", (AT_FDCWD, "file", struct.pack("<4q", 0, S, 0, 0), 0), fails(errno.EINVAL))
plain("utimensat", "unknown flag", (AT_FDCWD, "file", bytes(32), 0x800), fails(errno.EINVAL))


@success("utimensat", "of a descriptor")
def utimensat_descriptor(process: Process) -> Steps:
    handle = yield from open_file(process)
    yield from process.measure(handle, 0, struct.pack("<4q", 5, 6, 7, 8), 0, expect=ZERO)
    process.check(_int((yield from _stat(process, "file")), MTIME, 8) == 7, "7 s")


@error("utime", "not the owner")
def utime_denied(process: Process) -> Steps:
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure("file", struct.pack("<qq", 5, 7), expect=fails(errno.EPERM))


# -- extended attributes ---------------------------------------------------------------------------------
NAME, VALUE = "trusted.audit", b"a value"


def _target(process: Process, call: str, path: str = "file") -> Steps:
    """Its value: what the first argument of this call of the family is for `path`."""
    return (yield from open_file(process, path)) if call.startswith("f") else path


def _set_attribute(process: Process, name: str = NAME, value: bytes = VALUE) -> Steps:
    yield from process.must("setxattr", "file", name, value, len(value), 0)


def _xattr_family(letter: str) -> None:
    set_call, get_call, list_call, remove_call = (f"{letter}{verb}xattr" for verb in ("set", "get", "list", "remove"))

    @success(set_call, "new")
    def set_new(process: Process) -> Steps:
        target = yield from _target(process, set_call)
        yield from process.measure(target, NAME, VALUE, len(VALUE), 0, expect=ZERO)
        place = process.buffer(64)
        size = yield from process.must("getxattr", "file", NAME, place, 64)
        process.check(process.read(place, size) == VALUE, "the value")

    @success(set_call, "a security label, replaced, 5000 bytes")
    def set_replaced(process: Process) -> Steps:
        yield from _set_attribute(process, "security.audit")
        target = yield from _target(process, set_call)
        yield from process.measure(target, "security.audit", b"v" * 5000, 5000, 2, expect=ZERO)

    @error(set_call, "exists")
    def set_exists(process: Process) -> Steps:
        yield from _set_attribute(process)
        target = yield from _target(process, set_call)
        yield from process.measure(target, NAME, VALUE, len(VALUE), 1, expect=fails(errno.EEXIST))

    @error(set_call, "does not exist")
    def set_missing(process: Process) -> Steps:
        target = yield from _target(process, set_call)
        yield from process.measure(target, NAME, VALUE, len(VALUE), 2, expect=fails(errno.ENODATA))

    @error(set_call, "tmpfs has no user attributes")
    def set_user(process: Process) -> Steps:
        target = yield from _target(process, set_call)
        yield from process.measure(target, "user.x", VALUE, len(VALUE), 0, expect=either(fails(errno.EOPNOTSUPP), ZERO))

    @success(get_call, "the value")
    def get(process: Process) -> Steps:
        yield from _set_attribute(process)
        target = yield from _target(process, get_call)
        place = process.buffer(64)
        yield from process.measure(target, NAME, place, 64, expect=exactly(len(VALUE)))
        process.check(process.read(place, len(VALUE)) == VALUE, "the value")

    @success(get_call, "its size alone")
    def get_size(process: Process) -> Steps:
        yield from _set_attribute(process, value=b"v" * 300)
        target = yield from _target(process, get_call)
        yield from process.measure(target, NAME, 0, 0, expect=exactly(300))

    @success(get_call, "5000 bytes, into pages never touched")
    def get_large(process: Process) -> Steps:
        yield from _set_attribute(process, value=b"v" * 5000)
        target = yield from _target(process, get_call)
        place = yield from map_pages(process, 2)
        yield from process.measure(target, NAME, place, 8192, expect=exactly(5000))
        process.check(process.read(place, 5000) == b"v" * 5000, "the value")

    @error(get_call, "none of that name")
    def get_missing(process: Process) -> Steps:
        target = yield from _target(process, get_call)
        yield from process.measure(target, NAME, bytes(8), 8, expect=fails(errno.ENODATA))

    @error(get_call, "room too small")
    def get_small(process: Process) -> Steps:
        yield from _set_attribute(process)
        target = yield from _target(process, get_call)
        yield from process.measure(target, NAME, bytes(8), 2, expect=fails(errno.ERANGE))

    @success(list_call, "two names")
    def names(process: Process) -> Steps:
        yield from _set_attribute(process)
        yield from _set_attribute(process, "security.audit")
        target = yield from _target(process, list_call)
        place = process.buffer(256)
        size = yield from process.measure(target, place, 256, expect=exactly(len(NAME) + len("security.audit") + 2))
        found = set(process.read(place, size).split(b"\0"))
        process.check(found == {b"", b"security.audit", NAME.encode()}, "both names")

    @success(list_call, "none")
    def no_names(process: Process) -> Steps:
        target = yield from _target(process, list_call)
        yield from process.measure(target, bytes(64), 64, expect=ZERO)

    @error(list_call, "room too small")
    def names_small(process: Process) -> Steps:
        yield from _set_attribute(process)
        target = yield from _target(process, list_call)
        yield from process.measure(target, bytes(8), 2, expect=fails(errno.ERANGE))

    @success(remove_call, "one")
    def remove(process: Process) -> Steps:
        yield from _set_attribute(process)
        target = yield from _target(process, remove_call)
        yield from process.measure(target, NAME, expect=ZERO)
        result = yield from process.call("getxattr", "file", NAME, 0, 0)
        process.check(result == -errno.ENODATA, "it is gone")

    @error(remove_call, "none of that name")
    def remove_missing(process: Process) -> Steps:
        target = yield from _target(process, remove_call)
        yield from process.measure(target, NAME, expect=fails(errno.ENODATA))

    missing: int | str = BAD_FD if letter == "f" else "nothing"
    number, text = (errno.EBADF, "closed descriptor") if letter == "f" else (errno.ENOENT, "no such file")
    plain(set_call, text, (missing, NAME, VALUE, 7, 0), fails(number))
    plain(get_call, text, (missing, NAME, 0, 0), fails(number))
    plain(list_call, text, (missing, 0, 0), fails(number))
    plain(remove_call, text, (missing, NAME), fails(number))


for _letter in ("", "l", "f"):
    _xattr_family(_letter)
plain("setxattr", "name too long", ("file", "trusted." + "n" * 300, VALUE, 7, 0), fails(errno.ERANGE))
plain("setxattr", "bad address", ("file", NAME, BAD_ADDRESS, 7, 0), fails(errno.EFAULT))
plain("lsetxattr", "a link itself", ("dangling", NAME, VALUE, 7, 0), ZERO)
plain("getxattr", "a label of proc", ("/proc/version", NAME, 0, 0), fails(errno.EOPNOTSUPP))


@success("flistxattr", "pipe")
def flistxattr_pipe(process: Process) -> Steps:
    reader, _ = yield from open_pipe(process)
    yield from process.measure(reader, bytes(64), 64, expect=ZERO)
