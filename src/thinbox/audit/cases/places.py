"""Where a process stands, and what a directory holds: getcwd, chdir, chroot, getdents."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import FOLDER
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.audit.files import BAD_ADDRESS, BAD_FD, make_file, map_pages, open_file
from thinbox.harness.process import Steps

plain("getcwd", "no room", (bytes(4), 4), fails(errno.ERANGE))
plain("getcwd", "bad address", (BAD_ADDRESS, 64), fails(errno.EFAULT))
plain("chdir", "no such directory", ("nothing",), fails(errno.ENOENT))
plain("chdir", "a file", ("file",), fails(errno.ENOTDIR))
plain("chdir", "bad address", (BAD_ADDRESS,), fails(errno.EFAULT))
plain("fchdir", "closed descriptor", (BAD_FD,), fails(errno.EBADF))
plain("fchdir", "terminal", (0,), fails(errno.ENOTDIR))
plain("chroot", "no such directory", ("nothing",), fails(errno.ENOENT))
plain("chroot", "a file", ("file",), fails(errno.ENOTDIR))
plain("getdents", "closed descriptor", (BAD_FD, bytes(256), 256), fails(errno.EBADF))
plain("getdents64", "closed descriptor", (BAD_FD, bytes(256), 256), fails(errno.EBADF))
plain("getdents", "terminal", (0, bytes(256), 256), fails(errno.ENOTDIR))
plain("getdents64", "terminal", (0, bytes(256), 256), fails(errno.ENOTDIR))


def _cacheable(process: Process) -> Steps:
    place = process.buffer(256)
    length = yield from process.must("getcwd", place, 256)
    return process.read(place, length - 1).decode()


def _getcwd(name: str, path: str, expected: str = "") -> None:
    @success("getcwd", name)
    def body(process: Process) -> Steps:
        wanted = (expected or path).encode() + b"\0"
        yield from process.must("chdir", path)
        place = process.buffer(256)
        yield from process.measure(place, 256, expect=exactly(len(wanted)))
        process.check(process.read(place, len(wanted)) == wanted, f"{wanted!r}")


_getcwd("the root", "/")
_getcwd("tmpfs", FOLDER)
_getcwd("deeper", "dir", f"{FOLDER}/dir")
_getcwd("proc", "/proc/sys/kernel")
_getcwd("sysfs", "/sys/kernel")


@error("getcwd", "a directory that was removed")
def getcwd_removed(process: Process) -> Steps:
    yield from process.must("mkdir", "new", 0o755)
    yield from process.must("chdir", "new")
    yield from process.must("rmdir", "../new")
    yield from process.measure(bytes(64), 64, expect=fails(errno.ENOENT))


@success("getcwd", "outside its root")
def getcwd_outside(process: Process) -> Steps:
    yield from process.must("chroot", "dir")
    place = process.buffer(64)
    yield from process.measure(place, 64, expect=POSITIVE)
    process.check(process.read(place, 13) == b"(unreachable)", "marked unreachable")


def _changes(name: str, path: str, expected: str) -> None:
    @success("chdir", name)
    def body(process: Process) -> Steps:
        yield from process.measure(path, expect=ZERO)
        process.check((yield from _cacheable(process)) == expected, f"in {expected}")

    @success("fchdir", name)
    def body_of_descriptor(process: Process) -> Steps:
        handle = yield from open_file(process, path)
        yield from process.measure(handle, expect=ZERO)
        process.check((yield from _cacheable(process)) == expected, f"in {expected}")


_changes("below", "dir", f"{FOLDER}/dir")
_changes("above", "..", "/tmp")
_changes("the root", "/", "/")
_changes("proc", "/proc/1", "/proc/1")
_changes("sysfs", "/sys/class", "/sys/class")


@error("chdir", "no right to search")
def chdir_denied(process: Process) -> Steps:
    yield from process.must("chmod", "dir", 0o700)
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure("dir", expect=fails(errno.EACCES))


@success("chroot", "a directory")
def chroot(process: Process) -> Steps:
    yield from process.measure("dir", expect=ZERO)
    yield from process.must("open", "/inner", 0, 0)
    result = yield from process.call("open", "/etc/passwd", 0, 0)
    process.check(result == -errno.ENOENT, "the old root is out of reach")


@error("chroot", "no right to")
def chroot_denied(process: Process) -> Steps:
    yield from process.must("setresuid", 1000, 1000, 1000)
    yield from process.measure("dir", expect=fails(errno.EPERM))


# -- what a directory holds ------------------------------------------------------------------------------
def names_of(data: bytes, *, old: bool = False) -> list[str]:
    """Return the names in what `getdents64` (`old`: `getdents`) wrote."""
    found, at = [], 0
    start = 18 if old else 19
    while at < len(data):
        (length,) = struct.unpack_from("<H", data, at + 16)
        found.append(data[at + start : at + length].split(b"\0")[0].decode())
        at += length
    return found


def _lists(name: str, path: str, holds: set[str], size: int = 4096, *, varies: bool = False) -> None:
    for call in ("getdents", "getdents64"):

        @success(call, name, varies=varies)
        def body(process: Process, call: str = call) -> Steps:
            handle = yield from open_file(process, path)
            place = process.buffer(size)
            count = yield from process.measure(handle, place, size, expect=POSITIVE)
            found = names_of(process.read(place, count), old=call == "getdents")
            process.check(holds <= set(found), f"{sorted(holds)} are among the names")


_lists("tmpfs", ".", {".", "..", "file", "dir", "link", "dangling", "fifo"})
_lists("room for two", ".", {".", ".."}, 60)
_lists("devtmpfs", "/dev", {"console", "null"})
_lists("the first file system", "/", {"bin", "init", "proc"})
_lists("proc", "/proc", {".", "1", "self"}, 8192)
_lists("proc's process", "/proc/self", {"maps", "fd"})
_lists("proc's descriptors", "/proc/self/fd", {"0", "1", "2"})
_lists("proc's settings", "/proc/sys/kernel", {"hostname", "ostype"}, 8192)
_lists("proc's threads", "/proc/1/task", {"1"})
_lists("proc's name spaces", "/proc/self/ns", {"mnt", "pid"})
_lists("sysfs", "/sys", {"class", "kernel"})
_lists("sysfs attributes", "/sys/class/net/lo", {"mtu", "address"}, 8192)
_lists("devpts", "/dev/pts", {"ptmx"})


def _lists_more(call: str) -> None:
    @success(call, "at the end")
    def at_end(process: Process) -> Steps:
        handle = yield from open_file(process, "dir")
        place = process.buffer(4096)
        yield from process.must(call, handle, place, 4096)
        yield from process.measure(handle, place, 4096, expect=ZERO)

    @success(call, "200 files, into pages never touched")
    def many(process: Process) -> Steps:
        for number in range(200):
            yield from make_file(process, f"dir/number {number:03}")
        handle = yield from open_file(process, "dir")
        place = yield from map_pages(process, 4)
        count = yield from process.measure(handle, place, 16384, expect=POSITIVE)
        process.check(len(names_of(process.read(place, count), old=call == "getdents")) == 203, "203 names")

    @error(call, "room for none")
    def no_room(process: Process) -> Steps:
        handle = yield from open_file(process, "dir")
        yield from process.measure(handle, bytes(8), 8, expect=fails(errno.EINVAL))

    @error(call, "bad address")
    def bad_address(process: Process) -> Steps:
        handle = yield from open_file(process, "dir")
        yield from process.measure(handle, BAD_ADDRESS, 256, expect=fails(errno.EFAULT))

    @error(call, "a directory that was removed")
    def removed(process: Process) -> Steps:
        yield from process.must("mkdir", "new", 0o755)
        handle = yield from open_file(process, "new")
        yield from process.must("rmdir", "new")
        yield from process.measure(handle, bytes(256), 256, expect=fails(errno.ENOENT))


_lists_more("getdents")
_lists_more("getdents64")
