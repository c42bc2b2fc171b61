"""The life of processes: fork, clone, exit, wait."""

import errno
import os
import struct

from thinbox.audit import abi
from thinbox.audit.case import Body, error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.audit.files import open_pipe
from thinbox.harness.process import SIGCHLD, Steps

_SIGKILL, _SIGSTOP, _SIGCONT = 9, 19, 18
_CLONE_PTRACE, _CLONE_PARENT, _CLONE_SETTLS = 0x2000, 0x8000, 0x80000
_PARENT_SETTID, _CHILD_CLEARTID, _CHILD_SETTID, _CLONE_PIDFD = 0x100000, 0x200000, 0x1000000, 0x1000
_NAMESPACES = (
    ("mount", 0x20000),
    ("cgroup", 0x2000000),
    ("uts", 0x4000000),
    ("ipc", 0x8000000),
    ("user", 0x10000000),
    ("pid", 0x20000000),
    ("net", 0x40000000),
)
_CLONE_INTO_CGROUP, _CLONE_CLEAR_SIGHAND = 0x200000000, 0x100000000
_FUTEX_WAIT = 0
_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)


def _idle(_me: Process) -> Steps:
    yield from ()


def _sleeper(me: Process) -> Steps:
    yield from me.must("nanosleep", _SLEEP, 0)


def _waits_for_ever(me: Process) -> Steps:
    yield from me.must("pause")


# -- fork, vfork, clone -------------------------------------------------------------------------------
def _starting(call: str, name: str, *args: int) -> None:
    @success(call, name)
    def body(process: Process) -> Steps:
        yield from process.prepare_child(_idle)
        pid = yield from process.measure(*args, expect=POSITIVE)
        yield from process.wait(pid)


_starting("fork", "a process")
_starting("vfork", "a process that ends")
_starting("clone", "a process", SIGCHLD, 0, 0, 0, 0)
_starting("clone", "with shared memory", SIGCHLD | abi.CLONE_VM, 0, 0, 0, 0)
_starting("clone", "as vfork does", SIGCHLD | abi.CLONE_VM | abi.CLONE_VFORK, 0, 0, 0, 0)
_starting("clone", "with shared files and folder", SIGCHLD | abi.CLONE_FILES | abi.CLONE_FS, 0, 0, 0, 0)
for _name, _flag in _NAMESPACES:
    _starting("clone", f"in a {_name} namespace of its own", SIGCHLD | _flag, 0, 0, 0, 0)
plain("clone", "signal handlers without memory", (abi.CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0), fails(errno.EINVAL))
plain("clone", "a thread without handlers", (abi.CLONE_THREAD | abi.CLONE_VM, 0, 0, 0, 0), fails(errno.EINVAL))
plain("clone", "a folder shared with a mount namespace", (abi.CLONE_FS | 0x20000, 0, 0, 0, 0), fails(errno.EINVAL))


@success("fork", "both go on: the child is another process")
def fork_both(process: Process) -> Steps:
    seen = []

    def child(me: Process) -> Steps:
        seen.append((yield from me.must("getpid")))
        seen.append((yield from me.must("getppid")))

    yield from process.prepare_child(child)
    pid = yield from process.measure(expect=POSITIVE)
    yield from process.wait(pid)
    own = yield from process.must("getpid")
    process.check(seen == [pid, own], "the child's ids")


@success("vfork", "a process that executes a program")
def vfork_execve(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        argv = me.buffer(struct.pack("<2Q", me.string("false"), 0))
        yield from me.must("execve", "/bin/busybox", argv, 0)

    yield from process.prepare_child(child)
    pid = yield from process.measure(expect=POSITIVE)
    yield from process.wait(pid, 0x100)


for _call, _start in (("fork", ()), ("vfork", ()), ("clone", (SIGCHLD, 0, 0, 0, 0))):

    @error(_call, "no more processes allowed")
    def limited(process: Process, start: tuple[int, ...] = _start) -> Steps:
        yield from process.must("setrlimit", 6, struct.pack("<2Q", 1, 1))
        yield from process.must("setresuid", 1, 1, 1)
        yield from process.measure(*start, expect=fails(errno.EAGAIN))


@success("clone", "a thread, joined by its cleared id")
def clone_thread(process: Process) -> Steps:
    word = process.buffer(64)
    yield from process.prepare_child(_sleeper)
    flags = abi.THREAD | _PARENT_SETTID | _CHILD_CLEARTID
    tid = yield from process.measure(flags, 0, word, word, 0, expect=POSITIVE)
    process.check(process.read_int(word) == tid, "the thread's id in its word")
    yield from process.must("futex", word, _FUTEX_WAIT, tid, 0, 0, 0)
    process.check(process.read_int(word) == 0, "the word cleared when it ended")


@success("clone", "a thread with a stack and thread-local storage")
def clone_thread_tls(process: Process) -> Steps:
    stack, base, word = process.buffer(4096) + 4096, process.buffer(64), process.buffer(8)
    seen = []

    def thread(me: Process) -> Steps:
        place = me.buffer(8)
        yield from me.must("arch_prctl", 0x1003, place)
        seen.append(me.read_int(place, 8))
        seen.append(me.registers[4])

    yield from process.prepare_child(thread)
    flags = abi.THREAD | _CLONE_SETTLS | _PARENT_SETTID | _CHILD_CLEARTID
    tid = yield from process.measure(flags, stack, word, word, base, expect=POSITIVE)
    yield from process.call("futex", word, _FUTEX_WAIT, tid, 0, 0, 0)
    process.check(seen == [base, stack], "the thread's FS base and stack pointer")


@success("clone", "tells parent and child the id")
def clone_tids(process: Process) -> Steps:
    parents, childs = process.buffer(8), process.buffer(8)
    yield from process.prepare_child(_idle)
    flags = SIGCHLD | _PARENT_SETTID | _CHILD_SETTID
    pid = yield from process.measure(flags, 0, parents, childs, 0, expect=POSITIVE)
    yield from process.wait(pid)
    process.check(process.read_int(parents) == process.read_int(childs) == pid, "the id in both words")


@success("clone", "with a file descriptor for it")
def clone_pidfd(process: Process) -> Steps:
    place = process.buffer(8)
    yield from process.prepare_child(_sleeper)
    pid = yield from process.measure(SIGCHLD | _CLONE_PIDFD, 0, place, 0, 0, expect=POSITIVE)
    yield from process.must("waitid", 3, process.read_int(place), 0, 4, 0)
    left = yield from process.call("wait4", pid, 0, 0, 0)
    process.check(left == -errno.ECHILD, "the child was waited for by its descriptor")


@success("clone", "a sibling")
def clone_parent(process: Process) -> Steps:
    seen = []

    def child(me: Process) -> Steps:
        seen.append((yield from me.must("getppid")))

    yield from process.prepare_child(child)
    yield from process.measure(SIGCHLD | _CLONE_PARENT, 0, 0, 0, 0, expect=POSITIVE)
    yield from process.must("nanosleep", _SLEEP, 0)
    process.check(seen == [1], "the child's parent is the caller's")


def _clone_args(flags: int, *, signal: int = SIGCHLD, **more: int) -> bytes:
    """`struct clone_args`, 88 bytes."""
    names = ("pidfd", "child_tid", "parent_tid", "", "stack", "stack_size", "tls", "set_tid", "set_tid_size", "cgroup")
    return struct.pack("<11Q", flags, *(signal if not name else more.get(name, 0) for name in names))


_starting_3 = (
    ("a process", 0),
    ("with cleared handlers", _CLONE_CLEAR_SIGHAND),
    ("as vfork does", abi.CLONE_VM | abi.CLONE_VFORK),
)
for _name, _flag in _starting_3:

    @success("clone3", _name)
    def clone3(process: Process, flags: int = _flag) -> Steps:
        yield from process.prepare_child(_idle)
        pid = yield from process.measure(_clone_args(flags), 88, expect=POSITIVE)
        yield from process.wait(pid)


@success("clone3", "with a chosen id")
def clone3_set_tid(process: Process) -> Steps:
    wish = process.buffer(struct.pack("<i", 4242))
    yield from process.prepare_child(_idle)
    yield from process.measure(_clone_args(0, set_tid=wish, set_tid_size=1), 88, expect=exactly(4242))
    yield from process.wait(4242)


@success("clone3", "into a control group")
def clone3_cgroup(process: Process) -> Steps:
    yield from process.must("mount", "none", "dir", "cgroup2", 0, 0)
    yield from process.must("mkdir", "dir/group", 0o755)
    group = yield from process.must("open", "dir/group", os.O_RDONLY | os.O_DIRECTORY, 0)
    yield from process.prepare_child(_waits_for_ever)
    pid = yield from process.measure(_clone_args(_CLONE_INTO_CGROUP, cgroup=group), 88, expect=POSITIVE)
    members, place = (yield from process.must("open", "dir/group/cgroup.procs", os.O_RDONLY, 0)), process.buffer(64)
    count = yield from process.must("read", members, place, 64)
    process.check(process.read(place, count) == b"%d\n" % pid, "the child is the group's only member")
    yield from process.must("kill", pid, _SIGKILL)
    yield from process.wait(pid, _SIGKILL)


@success("clone3", "a thread with a stack")
def clone3_thread(process: Process) -> Steps:
    stack, word = process.buffer(4096), process.buffer(8)
    yield from process.prepare_child(_idle)
    flags = abi.THREAD | _PARENT_SETTID | _CHILD_CLEARTID
    args = _clone_args(flags, signal=0, stack=stack, stack_size=4096, parent_tid=word, child_tid=word)
    tid = yield from process.measure(args, 88, expect=POSITIVE)
    yield from process.call("futex", word, _FUTEX_WAIT, tid, 0, 0, 0)
    process.check(process.read_int(word) == 0, "the word cleared when it ended")


plain("clone3", "unknown flags", (_clone_args(1 << 40), 88), fails(errno.EINVAL))
plain("clone3", "arguments too short", (_clone_args(0), 32), fails(errno.EINVAL))
plain("clone3", "arguments longer than known", (_clone_args(0) + b"\1" * 8, 96), fails(errno.E2BIG))
plain("clone3", "bad address", (1, 88), fails(errno.EFAULT))
plain("set_tid_address", "returns the thread's id", (0,), POSITIVE)


@success("set_tid_address", "is cleared and woken when the thread ends")
def set_tid_address_cleared(process: Process) -> Steps:
    word = process.buffer(struct.pack("<i", 77))

    def thread(me: Process) -> Steps:
        yield from me.must("nanosleep", _SLEEP, 0)
        yield from me.measure(word, expect=POSITIVE)

    yield from process.fork(thread, flags=abi.THREAD)
    yield from process.must("futex", word, _FUTEX_WAIT, 77, 0, 0, 0)
    process.check(process.read_int(word) == 0, "the word cleared")


# -- exit ---------------------------------------------------------------------------------------------
@success("exit_group", "with a status")
def exit_group(process: Process) -> Steps:
    yield from process.measure_last(7, status=0x700)


@success("exit_group", "with sleeping threads")
def exit_group_threads(process: Process) -> Steps:
    yield from process.fork(_waits_for_ever, 1, flags=abi.THREAD)
    yield from process.must("nanosleep", _SLEEP, 0)
    yield from process.measure_last(1, status=0x100)


@success("exit_group", "with open files and mappings")
def exit_group_files(process: Process) -> Steps:
    handle = yield from process.must("open", "file", os.O_RDWR, 0)
    yield from process.must("mmap", 0, 3 * abi.PAGE, 3, 1, handle, 0)
    yield from process.must("mmap", 0, 64 * abi.PAGE, 3, 0x8022, -1, 0)
    yield from process.must("socket", 1, 1, 0)
    yield from process.must("pipe", bytes(8))
    yield from process.measure_last(0, status=0)


@success("exit", "of the only thread")
def exit_last(process: Process) -> Steps:
    yield from process.measure_last(255, status=0xFF00)


@success("exit", "of a child")
def exit_child(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.measure_last(3)

    pid = yield from process.fork(child)
    yield from process.wait(pid, 0x300)


@success("exit", "of a thread; the process goes on")
def exit_thread(process: Process) -> Steps:
    word = process.buffer(8)

    def thread(me: Process) -> Steps:
        yield from me.must("set_tid_address", word)
        yield from me.must("nanosleep", _SLEEP, 0)
        yield from me.measure_last(3)

    process.write(word, struct.pack("<i", 5))
    yield from process.fork(thread, flags=abi.THREAD)
    yield from process.must("futex", word, _FUTEX_WAIT, 5, 0, 0, 0)
    process.check(process.read_int(word) == 0, "the thread is gone, the process is not")


@success("exit", "leaving a child to process 1")
def exit_orphan(process: Process) -> Steps:
    yield from process.fork(_sleeper)
    yield from process.measure_last(0, status=0)


# -- wait ---------------------------------------------------------------------------------------------
def _waiting(name: str, target: int | None, child: Body, status: int, options: int = 0) -> None:
    @success("wait4", name)
    def body(process: Process) -> Steps:
        pid = yield from process.fork(child)
        place, usage = process.buffer(4), process.buffer(144)
        process.volatile(usage, 144)
        got = yield from process.measure(pid if target is None else target, place, options, usage, expect=POSITIVE)
        process.check(got == pid and process.read_int(place) == status, "the child's pid and status")


def _stops(me: Process) -> Steps:
    pid = yield from me.must("getpid")
    yield from me.must("kill", pid, _SIGSTOP)


def _is_killed(me: Process) -> Steps:
    pid = yield from me.must("getpid")
    yield from me.must("kill", pid, _SIGKILL)


_WNOHANG, _WUNTRACED, _WEXITED, _WCONTINUED, _WNOWAIT = 1, 2, 4, 8, 0x01000000
_waiting("for a child that ends later", None, _sleeper, 0)
_waiting("for any child", -1, _sleeper, 0)
_waiting("for any child of the own group", 0, _idle, 0)
_waiting("for a child that is killed", None, _is_killed, _SIGKILL)
_waiting("for a child that stops", None, _stops, _SIGSTOP << 8 | 0x7F, _WUNTRACED)
plain("wait4", "no child", (-1, 0, 0, 0), fails(errno.ECHILD))
plain("wait4", "unknown option", (-1, 0, 0x10, 0), fails(errno.EINVAL))


@success("wait4", "without waiting: none has ended")
def wait4_nohang(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    yield from process.measure(pid, 0, _WNOHANG, 0, expect=ZERO)


@success("wait4", "for a zombie")
def wait4_zombie(process: Process) -> Steps:
    pid = yield from process.fork(_idle)
    yield from process.must("nanosleep", _SLEEP, 0)
    yield from process.measure(pid, 0, _WNOHANG, 0, expect=exactly(pid))


@error("wait4", "bad address for the status")
def wait4_fault(process: Process) -> Steps:
    pid = yield from process.fork(_idle)
    yield from process.measure(pid, 1, 0, 0, expect=fails(errno.EFAULT))


def _waiting_id(name: str, kind: int, child: Body, options: int, code: int, status: int) -> None:
    @success("waitid", name)
    def body(process: Process) -> Steps:
        pid = yield from process.fork(child)
        target = pid if kind == 1 else 0
        if kind == 3:
            target = yield from process.must("pidfd_open", pid, 0)
        place = process.buffer(128)
        yield from process.measure(kind, target, place, options, 0, expect=ZERO)
        found = struct.unpack("<iii4xiii", process.read(place, 28))
        process.check(found == (SIGCHLD, 0, code, pid, 0, status), "what happened to the child, as siginfo")


_waiting_id("a process", 1, _sleeper, _WEXITED, 1, 0)
_waiting_id("any process", 0, _sleeper, _WEXITED, 1, 0)
_waiting_id("the own group", 2, _sleeper, _WEXITED, 1, 0)
_waiting_id("by descriptor", 3, _sleeper, _WEXITED, 1, 0)
_waiting_id("leaving it to be waited for", 1, _sleeper, _WEXITED | _WNOWAIT, 1, 0)
_waiting_id("that is killed", 1, _is_killed, _WEXITED, 2, _SIGKILL)
_waiting_id("that stops", 1, _stops, _WUNTRACED, 5, _SIGSTOP)
plain("waitid", "no child", (0, 0, 0, _WEXITED, 0), fails(errno.ECHILD))
plain("waitid", "nothing to wait for", (0, 0, 0, 0, 0), fails(errno.EINVAL))
plain("waitid", "not a descriptor", (3, 77, 0, _WEXITED, 0), fails(errno.EBADF))


@success("waitid", "that goes on")
def waitid_continued(process: Process) -> Steps:
    ends = yield from open_pipe(process)

    def child(me: Process) -> Steps:
        yield from _stops(me)
        # Not to its end: on a kernel that lets it run first there would be nobody to wait for.
        yield from me.must("read", ends[0], me.buffer(1), 1)

    pid = yield from process.fork(child)
    yield from process.must("wait4", pid, 0, _WUNTRACED, 0)
    yield from process.must("kill", pid, _SIGCONT)
    place = process.buffer(128)
    yield from process.measure(1, pid, place, _WCONTINUED, 0, expect=ZERO)
    process.check(process.read_int(place + 8) == 6, "CLD_CONTINUED")
