"""Being told of changes: inotify and fanotify."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, fails
from thinbox.audit.files import (
    AT_FDCWD,
    BAD_ADDRESS,
    BAD_FD,
    O_CLOEXEC,
    O_NONBLOCK,
    make_file,
    open_file,
)
from thinbox.harness.process import Steps

IN_ACCESS, IN_MODIFY, IN_OPEN, IN_CREATE, IN_DELETE, IN_ONLYDIR = 1, 2, 0x20, 0x100, 0x200, 0x01000000
IN_IGNORED, IN_MASK_ADD, IN_MASK_CREATE = 0x8000, 0x20000000, 0x10000000
FAN_CLOEXEC, FAN_NONBLOCK, FAN_CLASS_CONTENT, FAN_CLASS_PRE, FAN_REPORT_FID, FAN_REPORT_DFID_NAME = (
    1,
    2,
    4,
    8,
    0x200,
    0xC00,
)
FAN_MARK_ADD, FAN_MARK_REMOVE, FAN_MARK_MOUNT, FAN_MARK_FLUSH, FAN_MARK_FILESYSTEM, FAN_MARK_ONLYDIR = (
    1,
    2,
    0x10,
    0x80,
    0x100,
    8,
)
FAN_OPEN, FAN_CREATE, FAN_OPEN_PERM = 0x20, 0x100, 0x10000

# -- inotify ---------------------------------------------------------------------------------------------
plain("inotify_init", "plain", (), POSITIVE)
plain("inotify_init1", "not blocking, close-on-exec", (O_NONBLOCK | O_CLOEXEC,), POSITIVE)
plain("inotify_init1", "unknown flag", (1,), fails(errno.EINVAL))
plain("inotify_add_watch", "closed descriptor", (BAD_FD, "file", IN_OPEN), fails(errno.EBADF))
plain("inotify_add_watch", "not an inotify", (0, "file", IN_OPEN), fails(errno.EINVAL))
plain("inotify_rm_watch", "closed descriptor", (BAD_FD, 1), fails(errno.EBADF))
plain("inotify_rm_watch", "not an inotify", (0, 1), fails(errno.EINVAL))


@error("inotify_init", "too many")
def inotify_many(process: Process) -> Steps:
    yield from process.must("setrlimit", 7, struct.pack("<QQ", 3, 3))
    yield from process.measure(expect=fails(errno.EMFILE))


def _events(process: Process, handle: int) -> Steps:
    """Its value: (mask, name) of the events that wait."""
    place = process.buffer(1024)
    count = yield from process.call("read", handle, place, 1024)
    found, at, data = [], 0, process.read(place, max(count, 0))
    while at < count:
        _watch, mask, _cookie, length = struct.unpack_from("<iIII", data, at)
        found.append((mask, data[at + 16 : at + 16 + length].rstrip(b"\0").decode()))
        at += 16 + length
    return found


@success("inotify_add_watch", "a file, opened and read")
def watch_file(process: Process) -> Steps:
    handle = yield from process.must("inotify_init1", O_NONBLOCK)
    yield from process.measure(handle, "file", IN_OPEN | IN_ACCESS, expect=POSITIVE)
    yield from process.must("read", (yield from open_file(process)), process.buffer(8), 8)
    found = yield from _events(process, handle)
    process.check(found == [(IN_OPEN, ""), (IN_ACCESS, "")], f"both are told ({found})")


@success("inotify_add_watch", "a directory, created in")
def watch_directory(process: Process) -> Steps:
    handle = yield from process.must("inotify_init1", O_NONBLOCK)
    yield from process.measure(handle, "dir", IN_CREATE | IN_DELETE | IN_ONLYDIR, expect=POSITIVE)
    yield from make_file(process, "dir/new")
    yield from process.must("unlink", "dir/new")
    found = yield from _events(process, handle)
    process.check(found == [(IN_CREATE, "new"), (IN_DELETE, "new")], f"both are told ({found})")


@success("inotify_add_watch", "more events of the same")
def watch_more(process: Process) -> Steps:
    handle = yield from process.must("inotify_init1", O_NONBLOCK)
    first = yield from process.must("inotify_add_watch", handle, "file", IN_OPEN)
    second = yield from process.measure(handle, "link", IN_MODIFY | IN_MASK_ADD, expect=POSITIVE)
    process.check(first == second, "the same watch")


@success("inotify_add_watch", "proc")
def watch_proc(process: Process) -> Steps:
    handle = yield from process.must("inotify_init1", 0)
    yield from process.measure(handle, "/proc/version", IN_OPEN, expect=POSITIVE)


def _watch_error(name: str, path: str | int, mask: int, number: int) -> None:
    @error("inotify_add_watch", name)
    def body(process: Process) -> Steps:
        handle = yield from process.must("inotify_init1", 0)
        yield from process.measure(handle, path, mask, expect=fails(number))


_watch_error("no such file", "nothing", IN_OPEN, errno.ENOENT)
_watch_error("no event", "file", 0, errno.EINVAL)
_watch_error("not a directory", "file", IN_OPEN | IN_ONLYDIR, errno.ENOTDIR)
_watch_error("bad address", BAD_ADDRESS, IN_OPEN, errno.EFAULT)


@success("inotify_rm_watch", "one")
def unwatch(process: Process) -> Steps:
    handle = yield from process.must("inotify_init1", O_NONBLOCK)
    watch = yield from process.must("inotify_add_watch", handle, "file", IN_OPEN)
    yield from process.measure(handle, watch, expect=ZERO)
    process.check((yield from _events(process, handle)) == [(IN_IGNORED, "")], "its end is told")


@error("inotify_rm_watch", "no such watch")
def unwatch_none(process: Process) -> Steps:
    handle = yield from process.must("inotify_init1", 0)
    yield from process.measure(handle, 5, expect=fails(errno.EINVAL))


# -- fanotify --------------------------------------------------------------------------------------------
plain("fanotify_init", "told afterwards", (FAN_CLOEXEC | FAN_NONBLOCK, 0), POSITIVE)
plain("fanotify_init", "with file handles and names", (FAN_REPORT_FID | FAN_REPORT_DFID_NAME, 0), POSITIVE)
plain("fanotify_init", "unknown flag", (0x80000000, 0), fails(errno.EINVAL))
plain("fanotify_mark", "closed descriptor", (BAD_FD, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, "file"), fails(errno.EBADF))
plain("fanotify_mark", "not a fanotify", (0, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, "file"), fails(errno.EINVAL))
plain("fanotify_mark", "unknown flag", (0, 0x8000, FAN_OPEN, AT_FDCWD, "file"), fails(errno.EINVAL))


def _marks(name: str, flags: int, mask: int, path: str | int, *, kind: int = 0, number: int = 0) -> None:
    """A mark with `flags`; if it is no error, opening `path` is told afterwards."""

    @(error if number else success)("fanotify_mark", name)
    def body(process: Process) -> Steps:
        handle = yield from process.must("fanotify_init", kind | FAN_NONBLOCK, 0)
        yield from process.measure(handle, flags, mask, AT_FDCWD, path, expect=fails(number) if number else ZERO)
        if number or not mask & FAN_OPEN:
            return
        yield from open_file(process, "dir/inner")
        place = process.buffer(256)
        count = yield from process.must("read", handle, place, 24)
        found = struct.unpack("<IBBHQii", process.read(place, 24))
        process.check(count == 24 and found[1] == 3 and found[4] == FAN_OPEN, f"it is told ({found})")


_marks("a file", FAN_MARK_ADD, FAN_OPEN, "dir/inner")
_marks("a mount", FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN, "dir")
_marks("a file system", FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN, "dir")
_marks("created in a directory", FAN_MARK_ADD | FAN_MARK_ONLYDIR, FAN_CREATE, "dir", kind=FAN_REPORT_FID)
_marks("flushed", FAN_MARK_FLUSH, 0, "dir")
_marks("no such file", FAN_MARK_ADD, FAN_OPEN, "nothing", number=errno.ENOENT)
_marks("removed, not there", FAN_MARK_REMOVE, FAN_OPEN, "file", number=errno.ENOENT)
_marks("not a directory", FAN_MARK_ADD | FAN_MARK_ONLYDIR, FAN_OPEN, "file", number=errno.ENOTDIR)
_marks("asked before, without the class", FAN_MARK_ADD, FAN_OPEN_PERM, "file", number=errno.EINVAL)
_marks("bad address", FAN_MARK_ADD, FAN_OPEN, BAD_ADDRESS, number=errno.EFAULT)


@success("fanotify_mark", "removed")
def unmark(process: Process) -> Steps:
    handle = yield from process.must("fanotify_init", FAN_NONBLOCK, 0)
    yield from process.must("fanotify_mark", handle, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, "file")
    yield from process.measure(handle, FAN_MARK_REMOVE, FAN_OPEN, AT_FDCWD, "file", expect=ZERO)
    yield from open_file(process)
    result = yield from process.call("read", handle, process.buffer(64), 64)
    process.check(result == -errno.EAGAIN, "nothing is told")


@success("read", "fanotify, of a file opened by a child")
def fanotify_read(process: Process) -> Steps:
    handle = yield from process.must("fanotify_init", 0, 0)
    yield from process.must("fanotify_mark", handle, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, "file")

    def child(me: Process) -> Steps:
        yield from open_file(me)

    pid = yield from process.fork(child)
    place = process.buffer(24)
    yield from process.measure(handle, place, 24, expect=POSITIVE)
    found = struct.unpack("<IBBHQii", process.read(place, 24))
    process.check((found[4], found[6]) == (FAN_OPEN, pid), "the child opened it")
    yield from process.wait(pid)
