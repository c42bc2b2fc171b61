"""The calls that a sandbox answers for files it owns: opened, read and closed without the kernel.

Rules of this file: a path is ours if it is absolute and, written out, the same as a plan's: no links, no relative
paths.
"""

import errno
import struct
from collections.abc import Callable

from thinbox.sandbox.call_error import CallError, NotOursError
from thinbox.sandbox.emulated_call import EmulatedCall, Handler
from thinbox.sandbox.owned_files import Descriptor, OpenFile
from thinbox.sandbox.plan import OwnedFile

LONGEST_READ = 1 << 20
"""Bytes one read gives; a longer one is short, as reads may be."""
_ACCESS, _CREAT, _EXCL, _TRUNC, _DIRECTORY, _CLOEXEC, _PATH = 3, 0o100, 0o200, 0o1000, 0o200000, 0o2000000, 0o10000000
_EMPTY_PATH = 0x1000
_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 1030
_SEEK_SET, _SEEK_CUR, _SEEK_END = 0, 1, 2
_DEVICE = 0x7B
"""st_dev of our files: an anonymous device (major 0), one the guest does not use."""
_LARGE_FILE = 0o100000


def _process(call: EmulatedCall) -> int:
    return call.word32(call.task + call.services.view.tgid_offset)


def _found(call: EmulatedCall, index: int = 0) -> Descriptor:
    return call.services.files.find(_process(call), call.int32(index))


def _owned(call: EmulatedCall, index: int) -> tuple[OwnedFile, int]:
    found = call.services.files.named(call.read_string(call.args[index]))
    if found is None:
        raise NotOursError
    return found


def _opener(path_at: int) -> Handler:
    def handler(call: EmulatedCall) -> int:
        file, inode = _owned(call, path_at)
        flags = call.args[path_at + 1]
        if flags & _CREAT and flags & _EXCL:
            raise CallError(errno.EEXIST)
        if flags & _DIRECTORY:
            raise CallError(errno.ENOTDIR)
        if flags & (_ACCESS | _TRUNC):
            raise CallError(errno.EROFS)
        return call.services.files.add(_process(call), OpenFile(file, inode), close_on_exec=bool(flags & _CLOEXEC))

    return handler


def read(call: EmulatedCall) -> int:
    """`ssize_t read(int, void *, size_t)`."""
    opened = _found(call).open
    data = opened.file.data[opened.offset : opened.offset + min(call.args[2], LONGEST_READ)]
    call.write(call.args[1], data)
    opened.offset += len(data)
    return len(data)


def pread64(call: EmulatedCall) -> int:
    """`ssize_t pread64(int, void *, size_t, loff_t)`."""
    opened, offset = _found(call).open, call.int64(3)
    if offset < 0:
        raise CallError(errno.EINVAL)
    data = opened.file.data[offset : offset + min(call.args[2], LONGEST_READ)]
    call.write(call.args[1], data)
    return len(data)


def lseek(call: EmulatedCall) -> int:
    """`off_t lseek(int, off_t, int)`."""
    opened = _found(call).open
    bases = {_SEEK_SET: 0, _SEEK_CUR: opened.offset, _SEEK_END: len(opened.file.data)}
    whence = call.args[2] & 0xFFFFFFFF
    if whence not in bases or not 0 <= bases[whence] + call.int64(1) < 1 << 63:
        raise CallError(errno.EINVAL)
    opened.offset = bases[whence] + call.int64(1)
    return opened.offset


def close(call: EmulatedCall) -> int:
    """`int close(int)`."""
    call.services.files.close(_process(call), call.int32(0))
    return 0


def _stat_bytes(file: OwnedFile, inode: int) -> bytes:
    """Return struct stat (arch/x86/include/uapi/asm/stat.h): root's, mode 0444, times 0."""
    size = len(file.data)
    head = struct.pack("<QQQIIII", _DEVICE, inode, 1, 0o100444, 0, 0, 0)
    return (head + struct.pack("<QqqQ", 0, size, 4096, -(-size // 512))).ljust(144, b"\0")


def fstat(call: EmulatedCall) -> int:
    """`int fstat(int, struct stat *)`."""
    opened = _found(call).open
    call.write(call.args[1], _stat_bytes(opened.file, opened.inode))
    return 0


def _stat_by_path(call: EmulatedCall) -> int:
    call.write(call.args[1], _stat_bytes(*_owned(call, 0)))
    return 0


def newfstatat(call: EmulatedCall) -> int:
    """`int newfstatat(int, const char *, struct stat *, int flag)`, by path or by a descriptor of ours."""
    if call.args[3] & _EMPTY_PATH and not call.read_string(call.args[1]):
        opened = _found(call).open
        found = (opened.file, opened.inode)
    else:
        found = _owned(call, 1)
    call.write(call.args[2], _stat_bytes(*found))
    return 0


def _access(path_at: int) -> Handler:
    def handler(call: EmulatedCall) -> int:
        _owned(call, path_at)
        mode = call.args[path_at + 1] & 0xFFFFFFFF
        if mode & ~7:
            raise CallError(errno.EINVAL)
        if mode & 2:
            raise CallError(errno.EROFS)
        if mode & 1:
            raise CallError(errno.EACCES)
        return 0

    return handler


def fcntl(call: EmulatedCall) -> int:
    """`int fcntl(int, int, …)`: duplicates, flags; EINVAL for the rest."""
    found, command = _found(call), call.args[1] & 0xFFFFFFFF
    if command in (_F_DUPFD, _F_DUPFD_CLOEXEC):
        # A number the caller asks for is the kernel's kind; ours are all at least that.
        return call.services.files.add(_process(call), found.open, close_on_exec=command == _F_DUPFD_CLOEXEC)
    if command == _F_GETFD:
        return int(found.close_on_exec)
    if command == _F_SETFD:
        found.close_on_exec = bool(call.args[2] & 1)
        return 0
    if command == _F_GETFL:
        return _LARGE_FILE
    if command == _F_SETFL:
        return 0
    raise CallError(errno.EINVAL)


def dup(call: EmulatedCall) -> int:
    """`int dup(int)`."""
    return call.services.files.add(_process(call), _found(call).open, close_on_exec=False)


def _refused(number: int, fd_at: int = 0) -> Callable[[EmulatedCall], int]:
    """For a descriptor of ours: fail with `number`."""

    def handler(call: EmulatedCall) -> int:
        _found(call, fd_at)
        raise CallError(number)

    return handler


FILES: dict[str, Handler] = {
    "open": _opener(0),
    "openat": _opener(1),
    "read": read,
    "pread64": pread64,
    "lseek": lseek,
    "close": close,
    "fstat": fstat,
    "stat": _stat_by_path,
    "lstat": _stat_by_path,
    "newfstatat": newfstatat,
    "access": _access(0),
    "faccessat": _access(1),
    "fcntl": fcntl,
    "dup": dup,
    "ioctl": _refused(errno.ENOTTY),
    "mmap": _refused(errno.ENODEV, 4),
    "getdents64": _refused(errno.ENOTDIR),
}
"""By name of the call; each leaves descriptors and paths that are not ours to the rule's `otherwise`."""
