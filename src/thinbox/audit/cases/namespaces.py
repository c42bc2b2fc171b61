"""Namespaces: unshare and setns."""

import errno
import os

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import ZERO, fails
from thinbox.harness.process import Steps

_NAMESPACES = (
    ("mnt", 0x20000),
    ("cgroup", 0x2000000),
    ("uts", 0x4000000),
    ("ipc", 0x8000000),
    ("user", 0x10000000),
    ("pid", 0x20000000),
    ("net", 0x40000000),
    ("time", 0x80),
)
_FS, _FILES, _SYSVSEM, _THREAD, _VM, _SIGHAND = 0x200, 0x400, 0x40000, 0x10000, 0x100, 0x800
_NOBODY = 65534


def _idle(_me: Process) -> Steps:
    yield from ()


for _name, _flag in (*_NAMESPACES, ("fs", _FS), ("files", _FILES), ("sysvsem", _SYSVSEM)):
    plain("unshare", _name, (_flag,), ZERO)
plain("unshare", "nothing", (0,), ZERO)
plain("unshare", "memory of a process without threads", (_VM,), ZERO)
plain("unshare", "all a container has", (0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000,), ZERO)
plain("unshare", "unknown flag", (1,), fails(errno.EINVAL))
plain("setns", "not a descriptor", (77, 0), fails(errno.EBADF))


@success("unshare", "the process's host name is its own")
def unshare_uts(process: Process) -> Steps:
    place = process.buffer(390)

    def child(me: Process) -> Steps:
        yield from me.measure(0x4000000, expect=ZERO)
        yield from me.must("sethostname", "other", 5)

    pid = yield from process.fork(child)
    yield from process.wait(pid)
    yield from process.must("uname", place)
    process.check(process.read(place + 65, 8) == b"thinbox\0", "the host's name has not changed")


@success("unshare", "the next child is process 1")
def unshare_pid(process: Process) -> Steps:
    seen = []

    def child(me: Process) -> Steps:
        seen.append((yield from me.must("getpid")))

    yield from process.measure(0x20000000, expect=ZERO)
    pid = yield from process.fork(child)
    yield from process.wait(pid)
    process.check(seen == [1], "the child's own id is 1")


@success("unshare", "a shared file table becomes two")
def unshare_files(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.measure(_FILES, expect=ZERO)
        yield from me.must("close", 1)

    pid = yield from process.fork(child, flags=17 | _FILES)
    yield from process.wait(pid)
    flags = yield from process.call("fcntl", 1, 1, 0)
    process.check(flags >= 0, "the parent's descriptor 1 is open")


@error("unshare", "a user namespace by a thread of several")
def unshare_thread(process: Process) -> Steps:
    def thread(me: Process) -> Steps:
        yield from me.must("pause")

    yield from process.fork(thread, flags=_THREAD | _VM | _SIGHAND | _FS | _FILES)
    yield from process.measure(0x10000000, expect=fails(errno.EINVAL))


@error("unshare", "by nobody")
def unshare_nobody(process: Process) -> Steps:
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(0x4000000, expect=fails(errno.EPERM))


for _name, _flag in _NAMESPACES:
    if _name == "user":
        continue

    @success("setns", f"{_name} of process 1")
    def setns(process: Process, name: str = _name, flag: int = _flag) -> Steps:
        handle = yield from process.must("open", f"/proc/1/ns/{name}", os.O_RDONLY, 0)
        if name != "pid":
            yield from process.must("unshare", flag)
        yield from process.measure(handle, flag, expect=ZERO)


@success("setns", "uts of a child, seen by uname")
def setns_uts(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.must("sethostname", "other", 5)
        yield from me.must("pause")

    pid = yield from process.fork(child, flags=17 | 0x4000000)
    yield from process.must("nanosleep", abi.timespec(0, 5 * abi.MILLISECOND), 0)
    handle = yield from process.must("open", f"/proc/{pid}/ns/uts", os.O_RDONLY, 0)
    yield from process.measure(handle, 0, expect=ZERO)
    place = process.buffer(390)
    yield from process.must("uname", place)
    process.check(process.read(place + 65, 6) == b"other\0", "the child's host name")


@success("setns", "several, by the descriptor of a process")
def setns_pidfd(process: Process) -> Steps:
    handle = yield from process.must("pidfd_open", 1, 0)
    yield from process.must("unshare", 0x4000000 | 0x8000000 | 0x40000000)
    yield from process.measure(handle, 0x4000000 | 0x8000000 | 0x40000000, expect=ZERO)


@success("setns", "user, of a child")
def setns_user(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.must("pause")

    pid = yield from process.fork(child, flags=17 | 0x10000000)
    handle = yield from process.must("open", f"/proc/{pid}/ns/user", os.O_RDONLY, 0)
    yield from process.measure(handle, 0x10000000, expect=ZERO)
    uid = yield from process.must("getuid")
    process.check(uid == _NOBODY, "the overflow id: nothing is mapped")


@error("setns", "of another kind")
def setns_kind(process: Process) -> Steps:
    handle = yield from process.must("open", "/proc/1/ns/uts", os.O_RDONLY, 0)
    yield from process.measure(handle, 0x40000000, expect=fails(errno.EINVAL))


@error("setns", "a file that is none")
def setns_file(process: Process) -> Steps:
    handle = yield from process.must("open", "file", os.O_RDONLY, 0)
    yield from process.measure(handle, 0, expect=fails(errno.EINVAL))


@error("setns", "its own user namespace")
def setns_own_user(process: Process) -> Steps:
    handle = yield from process.must("open", "/proc/self/ns/user", os.O_RDONLY, 0)
    yield from process.measure(handle, 0, expect=fails(errno.EINVAL))
