"""Executing programs: execve and execveat, static programs, scripts, and what is refused."""

import errno
import os
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import ZERO, fails
from thinbox.harness.process import Steps

_BUSYBOX = "/bin/busybox"
_AT_FDCWD, _AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW = -100, 0x1000, 0x100
_LONG_ARGUMENT = 20_000


def _strings(process: Process, *texts: str) -> int:
    """An argv or envp."""
    return process.buffer(struct.pack(f"<{len(texts) + 1}Q", *(process.string(text) for text in texts), 0))


def _write(process: Process, path: str, content: bytes, mode: int = 0o755) -> Steps:
    handle = yield from process.must("open", path, os.O_CREAT | os.O_WRONLY, mode)
    yield from process.must("write", handle, content, len(content))
    yield from process.must("close", handle)


@success("execve", "a static program")
def execve_static(process: Process) -> Steps:
    yield from process.measure_last(_BUSYBOX, _strings(process, "true"), 0, status=0)


@success("execve", "without arguments")
def execve_no_arguments(process: Process) -> Steps:
    # The kernel gives it an empty argv[0]; busybox knows no such applet.
    yield from process.measure_last(_BUSYBOX, 0, 0, status=127 << 8)


@success("execve", "through a symbolic link")
def execve_link(process: Process) -> Steps:
    yield from process.measure_last("/bin/false", _strings(process, "false"), 0, status=0x100)


@success("execve", "a script")
def execve_script(process: Process) -> Steps:
    yield from _write(process, "script", b"#!/bin/sh -e\nexit $#\n")
    yield from process.measure_last("script", _strings(process, "script", "a", "b"), 0, status=0x200)


@success("execve", "the agent itself")
def execve_agent(process: Process) -> Steps:
    # The new program is the loop that the process ran before, so the case goes on in it.
    before = yield from process.must("getpid")
    yield from process.measure("/init", _strings(process, "init"), 0, expect=ZERO)
    after = yield from process.must("getpid")
    process.check(before == after, "the same process id")


@success("execve", "with environment, output read by the parent")
def execve_environment(process: Process) -> Steps:
    ends = process.buffer(8)
    yield from process.must("pipe", ends)
    source, sink = process.read_int(ends), process.read_int(ends + 4)

    def child(me: Process) -> Steps:
        yield from me.must("dup2", sink, 1)
        argv, envp = _strings(me, "env"), _strings(me, "A=1", "B=two words")
        yield from me.measure_last("/usr/bin/env", argv, envp)

    pid = yield from process.fork(child)
    yield from process.must("close", sink)
    place = process.buffer(64)
    count = yield from process.must("read", source, place, 64)
    process.check(process.read(place, count) == b"A=1\nB=two words\n", "the environment that was given")
    yield from process.wait(pid)


@success("execve", "long arguments")
def execve_long(process: Process) -> Steps:
    argv = _strings(process, "sh", "-c", "exit ${#1}", "x" * _LONG_ARGUMENT, "y" * 200)
    yield from process.measure_last(_BUSYBOX, argv, 0, status=200 << 8)


@success("execve", "closes descriptors, keeps others")
def execve_descriptors(process: Process) -> Steps:
    gone = yield from process.must("open", "file", os.O_RDONLY | os.O_CLOEXEC, 0)
    kept = yield from process.must("open", "file", os.O_RDONLY, 0)
    argv = _strings(process, "sh", "-c", f"test ! -e /proc/self/fd/{gone} && test -e /proc/self/fd/{kept}")
    yield from process.measure_last(_BUSYBOX, argv, 0, status=0)


@success("execve", "by a thread, the others end")
def execve_thread(process: Process) -> Steps:
    def thread(me: Process) -> Steps:
        yield from me.must("pause")

    yield from process.fork(thread, flags=abi.THREAD)
    yield from process.measure_last(_BUSYBOX, _strings(process, "true"), 0, status=0)


@success("execve", "after vfork")
def execve_vfork(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.measure_last(_BUSYBOX, _strings(me, "false"), 0)

    yield from process.prepare_child(child)
    pid = yield from process.must("vfork")
    yield from process.wait(pid, 0x100)


@success("execve", "a set-user-id program")
def execve_setuid(process: Process) -> Steps:
    yield from process.must("mount", "tmpfs", "dir", "tmpfs", 0, "")
    source = yield from process.must("open", "/init", os.O_RDONLY, 0)
    target = yield from process.must("open", "dir/init", os.O_CREAT | os.O_WRONLY, 0o755)
    yield from process.must("sendfile", target, source, 0, 1 << 20)
    yield from process.must("close", target)
    yield from process.must("chmod", "dir/init", 0o4755)
    yield from process.must("setresuid", 99, 99, 99)
    yield from process.measure("dir/init", 0, 0, expect=ZERO)
    real, effective = (yield from process.must("getuid")), (yield from process.must("geteuid"))
    process.check((real, effective) == (99, 0), "the file's owner as effective user")


_REFUSED = (
    ("nothing there", "nothing", errno.ENOENT),
    ("not executable", "file", errno.EACCES),
    ("a folder", "dir", errno.EACCES),
    ("below a file", "file/x", errno.ENOTDIR),
    ("an empty path", "", errno.ENOENT),
    ("a name too long", "n" * 300, errno.ENAMETOOLONG),
    ("a dangling link", "dangling", errno.ENOENT),
)
for _name, _path, _number in _REFUSED:
    plain("execve", _name, (_path, 0, 0), fails(_number))
    plain("execveat", _name, (_AT_FDCWD, _path, 0, 0, 0), fails(_number))
plain("execve", "bad address", (1, 0, 0), fails(errno.EFAULT))
plain("execve", "bad address of the arguments", (_BUSYBOX, 1, 0), fails(errno.EFAULT))
plain("execveat", "unknown flags", (_AT_FDCWD, _BUSYBOX, 0, 0, 1), fails(errno.EINVAL))
plain("execveat", "not a descriptor", (77, "busybox", 0, 0, 0), fails(errno.EBADF))


@error("execve", "no known format")
def execve_format(process: Process) -> Steps:
    yield from _write(process, "text", b"neither ELF nor script\n")
    yield from process.measure("text", 0, 0, expect=fails(errno.ENOEXEC))


@error("execve", "an interpreter that is not there")
def execve_interpreter(process: Process) -> Steps:
    yield from _write(process, "script", b"#!/no/such/thing\n")
    yield from process.measure("script", 0, 0, expect=fails(errno.ENOENT))


@error("execve", "an interpreter that interprets itself")
def execve_loop(process: Process) -> Steps:
    yield from _write(process, "script", b"#!script\n")
    yield from process.measure("script", 0, 0, expect=fails(errno.ELOOP))


@error("execve", "a file that is being written")
def execve_busy(process: Process) -> Steps:
    yield from _write(process, "script", b"#!/bin/sh\n")
    yield from process.must("open", "script", os.O_WRONLY, 0)
    yield from process.measure("script", 0, 0, expect=fails(errno.ETXTBSY))


@error("execve", "an argument too long")
def execve_too_long(process: Process) -> Steps:
    # One string may have 32 pages (MAX_ARG_STRLEN); this mapping has no zero byte until its end.
    size = 40 * abi.PAGE
    place = yield from process.must("mmap", 0, size, 3, 0x8022, -1, 0)
    process.write(place, b"x" * (size - 1))
    yield from process.measure(_BUSYBOX, process.buffer(struct.pack("<2Q", place, 0)), 0, expect=fails(errno.E2BIG))


@error("execve", "a damaged program")
def execve_damaged(process: Process) -> Steps:
    yield from _write(process, "damaged", b"\x7fELF\x02\x01\x01" + bytes(57))
    yield from process.measure("damaged", 0, 0, expect=fails(errno.ENOEXEC))


@error("execve", "on a file system without programs")
def execve_noexec(process: Process) -> Steps:
    yield from process.must("mount", "tmpfs", "dir", "tmpfs", 8, "")
    yield from _write(process, "dir/script", b"#!/bin/sh\n")
    yield from process.measure("dir/script", 0, 0, expect=fails(errno.EACCES))


@success("execveat", "relative to a folder")
def execveat_folder(process: Process) -> Steps:
    folder = yield from process.must("open", "/bin", os.O_RDONLY | os.O_DIRECTORY, 0)
    yield from process.measure_last(folder, "busybox", _strings(process, "true"), 0, 0, status=0)


@success("execveat", "an open file")
def execveat_open(process: Process) -> Steps:
    handle = yield from process.must("open", _BUSYBOX, os.O_PATH, 0)
    yield from process.measure_last(handle, "", _strings(process, "false"), 0, _AT_EMPTY_PATH, status=0x100)


@success("execveat", "a memfd")
def execveat_memfd(process: Process) -> Steps:
    source = yield from process.must("open", _BUSYBOX, os.O_RDONLY, 0)
    target = yield from process.must("memfd_create", "copy", 0)
    yield from process.must("sendfile", target, source, 0, 4 << 20)
    yield from process.measure_last(target, "", _strings(process, "true"), 0, _AT_EMPTY_PATH, status=0)


@error("execveat", "a link that is not to be followed")
def execveat_link(process: Process) -> Steps:
    args = _AT_FDCWD, "/bin/true", 0, 0, _AT_SYMLINK_NOFOLLOW
    yield from process.measure(*args, expect=fails(errno.ELOOP))
