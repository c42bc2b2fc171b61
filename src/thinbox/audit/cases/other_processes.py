"""What a process does to others: pidfd, ptrace, kcmp, their memory, their namespaces."""

import errno
import os
import struct
from collections.abc import Callable

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.harness.process import Steps

_SIGKILL, _SIGSTOP, _SIGTRAP = 9, 19, 5
_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)
_NOBODY = 65534


def _waits_for_ever(me: Process) -> Steps:
    yield from me.must("pause")


def _end(process: Process, pid: int) -> Steps:
    yield from process.must("kill", pid, _SIGKILL)
    yield from process.wait(pid, _SIGKILL)


# -- descriptors of processes -------------------------------------------------------------------------
plain("pidfd_open", "of process 1", (1, 0), POSITIVE)
plain("pidfd_open", "of process 1, not blocking", (1, os.O_NONBLOCK), POSITIVE)
plain("pidfd_open", "no such process", (30000, 0), fails(errno.ESRCH))
plain("pidfd_open", "unknown flag", (1, 1), fails(errno.EINVAL))
plain("pidfd_open", "no id", (0, 0), fails(errno.EINVAL))
plain("pidfd_getfd", "not a descriptor", (77, 0, 0), fails(errno.EBADF))
plain("pidfd_send_signal", "not a descriptor", (77, 0, 0, 0), fails(errno.EBADF))


@success("pidfd_open", "is readable when the process ends")
def pidfd_open_poll(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", _SLEEP, 0)

    pid = yield from process.fork(child)
    handle = yield from process.measure(pid, 0, expect=POSITIVE)
    ready = yield from process.must("poll", struct.pack("<ihh", handle, 1, 0), 1, 1000)
    process.check(ready == 1, "the descriptor is ready")
    yield from process.wait(pid)


@success("pidfd_getfd", "a file of a child")
def pidfd_getfd(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        handle = yield from me.must("open", "file", os.O_RDONLY, 0)
        yield from me.must("dup2", handle, 50)
        yield from me.must("pause")

    pid = yield from process.fork(child)
    yield from process.must("nanosleep", _SLEEP, 0)
    handle = yield from process.must("pidfd_open", pid, 0)
    copy = yield from process.measure(handle, 50, 0, expect=POSITIVE)
    place = process.buffer(16)
    yield from process.must("read", copy, place, 10)
    process.check(process.read(place, 10) == b"line 00000", "the child's file")
    yield from _end(process, pid)


@error("pidfd_getfd", "a file it has not")
def pidfd_getfd_none(process: Process) -> Steps:
    handle = yield from process.must("pidfd_open", 1, 0)
    yield from process.measure(handle, 99, 0, expect=fails(errno.EBADF))


@success("pidfd_send_signal", "kills a child")
def pidfd_send_signal(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    handle = yield from process.must("pidfd_open", pid, 0)
    yield from process.measure(handle, _SIGKILL, 0, 0, expect=ZERO)
    yield from process.wait(pid, _SIGKILL)


@success("pidfd_send_signal", "asks whether it could")
def pidfd_send_signal_0(process: Process) -> Steps:
    handle = yield from process.must("pidfd_open", 1, 0)
    yield from process.measure(handle, 0, 0, 0, expect=ZERO)


@error("pidfd_send_signal", "to one that has ended")
def pidfd_send_signal_gone(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    handle = yield from process.must("pidfd_open", pid, 0)
    yield from _end(process, pid)
    yield from process.measure(handle, _SIGKILL, 0, 0, expect=fails(errno.ESRCH))


# -- kcmp: 0 the same, 1 and 2 an order ---------------------------------------------------------------
_KCMP_FILE, _KCMP_VM, _KCMP_FILES, _KCMP_EPOLL = 0, 1, 2, 7
for _name, _what in (("VM", 1), ("FILES", 2), ("FS", 3), ("SIGHAND", 4), ("IO", 5), ("SYSVSEM", 6)):

    @success("kcmp", f"KCMP_{_name} with itself")
    def kcmp_same(process: Process, what: int = _what) -> Steps:
        pid = yield from process.must("getpid")
        yield from process.measure(pid, pid, what, 0, 0, expect=ZERO)


@success("kcmp", "two descriptors of one file description")
def kcmp_file(process: Process) -> Steps:
    pid = yield from process.must("getpid")
    handle = yield from process.must("open", "file", os.O_RDONLY, 0)
    copy = yield from process.must("dup", handle)
    yield from process.measure(pid, pid, _KCMP_FILE, handle, copy, expect=ZERO)


@success("kcmp", "two address spaces")
def kcmp_differ(process: Process) -> Steps:
    pid = yield from process.must("getpid")
    yield from process.measure(pid, 1, _KCMP_VM, 0, 0, expect=POSITIVE)


plain("kcmp", "no such process", (30000, 1, _KCMP_VM, 0, 0), fails(errno.ESRCH))
plain("kcmp", "unknown kind", (1, 1, 99, 0, 0), fails(errno.EINVAL))
plain("kcmp", "no such file", (1, 1, _KCMP_FILE, 99, 99), fails(errno.EBADF))

# -- the memory of another process --------------------------------------------------------------------


def _with_secret(process: Process, size: int) -> Steps:
    """A child with a page of its own at the address returned, full of its secret."""
    place = yield from process.must("mmap", 0, size, 3, 0x8022, -1, 0)

    def child(me: Process) -> Steps:
        yield from me.must("pread64", (yield from me.must("open", "file", os.O_RDONLY, 0)), place, 5000, 0)
        yield from me.must("pause")

    pid = yield from process.fork(child)
    yield from process.must("nanosleep", _SLEEP, 0)
    return pid, place


for _size in (1, 100, 5000):

    @success("process_vm_readv", f"{_size} bytes of a child")
    def process_vm_readv(process: Process, size: int = _size) -> Steps:
        pid, place = yield from _with_secret(process, 2 * abi.PAGE)
        target = process.buffer(5000)
        local, remote = abi.iovec((target, size)), abi.iovec((place, size))
        yield from process.measure(pid, local, 1, remote, 1, 0, expect=exactly(size))
        process.check(process.read(target, 5) == b"line "[:size].ljust(5, b"\0"), "the child's bytes")
        yield from _end(process, pid)


@success("process_vm_readv", "scattered")
def process_vm_readv_scattered(process: Process) -> Steps:
    pid, place = yield from _with_secret(process, 2 * abi.PAGE)
    first, second = process.buffer(8), process.buffer(8)
    local, remote = abi.iovec((first, 5), (second, 6)), abi.iovec((place + 4090, 6), (place, 5))
    yield from process.measure(pid, local, 2, remote, 2, 0, expect=exactly(11))
    process.check(process.read(second + 1, 5) == b"line ", "pieces in order")
    yield from _end(process, pid)


@success("process_vm_readv", "up to what is not mapped")
def process_vm_readv_partial(process: Process) -> Steps:
    pid, place = yield from _with_secret(process, abi.PAGE)
    target = process.buffer(64)
    local, remote = abi.iovec((target, 48)), abi.iovec((place + abi.PAGE - 16, 16), (1, 16))
    yield from process.measure(pid, local, 1, remote, 2, 0, expect=exactly(16))
    yield from _end(process, pid)


@success("process_vm_writev", "into a child")
def process_vm_writev(process: Process) -> Steps:
    pid, place = yield from _with_secret(process, 2 * abi.PAGE)
    source = process.buffer(b"0123456789")
    local, remote = abi.iovec((source, 10)), abi.iovec((place + abi.PAGE - 5, 10))
    yield from process.measure(pid, local, 1, remote, 1, 0, expect=exactly(10))
    target = process.buffer(10)
    yield from process.must("process_vm_readv", pid, abi.iovec((target, 10)), 1, remote, 1, 0)
    process.check(process.read(target, 10) == b"0123456789", "the bytes, across a page's end")
    yield from _end(process, pid)


_AGENT_CODE = abi.iovec((0x400000, 16))
for _call in ("process_vm_readv", "process_vm_writev"):
    plain(_call, "nothing, of no process", (30000, bytes(16), 1, bytes(16), 1, 0), ZERO)
    plain(_call, "no such process", (30000, _AGENT_CODE, 1, _AGENT_CODE, 1, 0), fails(errno.ESRCH))
    plain(_call, "unknown flag", (1, bytes(16), 1, bytes(16), 1, 1), fails(errno.EINVAL))
    plain(_call, "bad address", (1, 1, 1, bytes(16), 1, 0), fails(errno.EFAULT))

    @error(_call, "by nobody")
    def process_vm_nobody(process: Process) -> Steps:
        place = process.buffer(16)
        yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
        iov = abi.iovec((place, 16))
        yield from process.measure(1, iov, 1, iov, 1, 0, expect=fails(errno.EPERM))


# -- ptrace: request, pid, address, data --------------------------------------------------------------
_PEEKTEXT, _PEEKUSER, _POKEDATA, _POKEUSER, _CONT, _KILL, _STEP, _ATTACH, _DETACH, _SYSCALL = (
    *(1, 3, 5, 6, 7, 8, 9, 16, 17, 24),
)
_GETREGS, _SETREGS, _GETFPREGS, _SETOPTIONS, _GETEVENTMSG, _GETSIGINFO = 12, 13, 14, 0x4200, 0x4201, 0x4202
_GETREGSET, _SEIZE, _INTERRUPT, _LISTEN, _PEEKSIGINFO, _GETSIGMASK = 0x4204, 0x4206, 0x4207, 0x4208, 0x4209, 0x420A
_SYSCALL_INFO, _GET_RSEQ = 0x420E, 0x420F
_STOPPED = 0x7F


def _traced(process: Process) -> Steps:
    """A child that sleeps in pause, attached to and stopped."""
    pid = yield from process.fork(_waits_for_ever)
    yield from process.must("nanosleep", _SLEEP, 0)
    yield from process.must("ptrace", _ATTACH, pid, 0, 0)
    yield from process.wait(pid, _SIGSTOP << 8 | _STOPPED)
    return pid


def _tracing(
    name: str, request: int, vaddr: int, data: int | None, size: int = 0, test: Callable[[bytes], bool] | None = None
) -> None:
    """A request on a stopped child; `data` None means a buffer of `size` bytes, which `test` looks at."""

    @success("ptrace", name)
    def body(process: Process) -> Steps:
        pid = yield from _traced(process)
        place = process.buffer(size)
        yield from process.measure(request, pid, vaddr, place if data is None else data, expect=ZERO)
        found = process.read(place, size)
        process.check(test is None or test(found), f"what was asked for, not {found[:32].hex()}")
        yield from process.must("kill", pid, _SIGKILL)


_ORIG_RAX = 15 * 8
_tracing("PTRACE_PEEKTEXT", _PEEKTEXT, 0x400000, None, 8, lambda data: data == b"\x7fELF\x02\x01\x01\0")
_tracing("PTRACE_PEEKUSER", _PEEKUSER, _ORIG_RAX, None, 8, lambda data: data == struct.pack("<q", 34))
_tracing("PTRACE_POKEDATA", _POKEDATA, 0x400000, 1)
_tracing("PTRACE_POKEUSER", _POKEUSER, 0, 77)
_tracing("PTRACE_GETREGS", _GETREGS, 0, None, 216, lambda data: abi.words(data)[15] == 34)
_tracing("PTRACE_GETFPREGS", _GETFPREGS, 0, None, 512, lambda data: data[:2] == b"\x7f\x03")
_tracing("PTRACE_SETOPTIONS", _SETOPTIONS, 0, 1)
_tracing("PTRACE_GETSIGINFO", _GETSIGINFO, 0, None, 128, lambda data: data[0] == _SIGSTOP)
_tracing("PTRACE_GETSIGMASK", _GETSIGMASK, 8, None, 8, lambda data: data == bytes(8))
_tracing("PTRACE_CONT", _CONT, 0, 0)
_tracing("PTRACE_SYSCALL", _SYSCALL, 0, 0)
_tracing("PTRACE_DETACH", _DETACH, 0, 0)
_tracing("PTRACE_KILL", _KILL, 0, 0)


@success("ptrace", "PTRACE_TRACEME")
def ptrace_traceme(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.measure(0, 0, 0, 0, expect=ZERO)
        own = yield from me.must("getpid")
        yield from me.must("kill", own, _SIGSTOP)

    pid = yield from process.fork(child)
    yield from process.wait(pid, _SIGSTOP << 8 | _STOPPED)
    yield from process.must("ptrace", _CONT, pid, 0, 0)
    yield from process.wait(pid)


@success("ptrace", "PTRACE_ATTACH")
def ptrace_attach(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    yield from process.measure(_ATTACH, pid, 0, 0, expect=ZERO)
    yield from process.wait(pid, _SIGSTOP << 8 | _STOPPED)


@success("ptrace", "PTRACE_SEIZE and PTRACE_INTERRUPT")
def ptrace_seize(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    yield from process.must("ptrace", _SEIZE, pid, 0, 0)
    yield from process.must("nanosleep", _SLEEP, 0)
    yield from process.measure(_INTERRUPT, pid, 0, 0, expect=ZERO)
    yield from process.wait(pid, 128 << 16 | _SIGTRAP << 8 | _STOPPED)


@success("ptrace", "PTRACE_SETREGS and on")
def ptrace_setregs(process: Process) -> Steps:
    pid = yield from _traced(process)
    place = process.buffer(216)
    yield from process.must("ptrace", _GETREGS, pid, 0, place)
    # The interrupted pause is to be a call of exit_group(9) when the child goes on: the loop's first instructions
    # cannot be used, so the second `syscall` of it, two bytes before, is.
    registers = list(abi.words(process.read(place, 216)))
    registers[15], registers[10], registers[14], registers[16] = (1 << 64) - 1, 231, 9, registers[16] - 2
    process.write(place, struct.pack("<27Q", *registers))
    yield from process.measure(_SETREGS, pid, 0, place, expect=ZERO)
    yield from process.must("ptrace", _DETACH, pid, 0, 0)
    yield from process.wait(pid, 0x900)


@success("ptrace", "PTRACE_SINGLESTEP")
def ptrace_step(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.must("ptrace", 0, 0, 0, 0)
        own = yield from me.must("getpid")
        yield from me.must("kill", own, _SIGSTOP)

    pid = yield from process.fork(child)
    yield from process.wait(pid, _SIGSTOP << 8 | _STOPPED)
    before, after = process.buffer(216), process.buffer(216)
    yield from process.must("ptrace", _GETREGS, pid, 0, before)
    yield from process.measure(_STEP, pid, 0, 0, expect=ZERO)
    yield from process.wait(pid, _SIGTRAP << 8 | _STOPPED)
    yield from process.must("ptrace", _GETREGS, pid, 0, after)
    one, two = abi.words(process.read(before, 216)), abi.words(process.read(after, 216))
    process.check(two[16] == one[16] + 3, "one instruction further: mov rbx, rax has 3 bytes")
    yield from process.must("kill", pid, _SIGKILL)


@success("ptrace", "PTRACE_GETREGSET")
def ptrace_getregset(process: Process) -> Steps:
    pid = yield from _traced(process)
    place = process.buffer(216)
    iov = process.buffer(abi.iovec((place, 216)))
    yield from process.measure(_GETREGSET, pid, 1, iov, expect=ZERO)
    process.check(abi.words(process.read(place, 216))[15] == 34, "the number of pause")
    yield from process.must("kill", pid, _SIGKILL)


@success("ptrace", "PTRACE_GET_SYSCALL_INFO at a call's entry")
def ptrace_syscall_info(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", _SLEEP, 0)
        yield from me.call("getpgid", 1)

    pid = yield from process.fork(child)
    yield from process.must("ptrace", _SEIZE, pid, 0, 1)
    yield from process.must("ptrace", _INTERRUPT, pid, 0, 0)
    yield from process.must("wait4", pid, 0, 0, 0)
    yield from process.must("ptrace", _SYSCALL, pid, 0, 0)
    yield from process.must("wait4", pid, 0, 0, 0)
    place = process.buffer(88)
    yield from process.measure(_SYSCALL_INFO, pid, 88, place, expect=POSITIVE)
    process.check(process.read(place, 1)[0] in (1, 2), "the entry or exit of a call")
    yield from process.must("kill", pid, _SIGKILL)


@success("ptrace", "PTRACE_O_TRACEFORK: told of a child's child")
def ptrace_fork(process: Process) -> Steps:
    def grandchild(me: Process) -> Steps:
        yield from me.must("getpid")

    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", _SLEEP, 0)
        yield from me.prepare_child(grandchild, 2)
        yield from me.must("fork")

    pid = yield from process.fork(child)
    yield from process.must("ptrace", _SEIZE, pid, 0, 2)
    yield from process.wait(pid, 1 << 16 | _SIGTRAP << 8 | _STOPPED)
    place = process.buffer(8)
    yield from process.measure(_GETEVENTMSG, pid, 0, place, expect=ZERO)
    process.check(process.read_int(place, 8) > pid, "the grandchild's id")


@error("ptrace", "a child that is not stopped")
def ptrace_running(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    yield from process.measure(_CONT, pid, 0, 0, expect=fails(errno.ESRCH))


@error("ptrace", "itself")
def ptrace_self(process: Process) -> Steps:
    pid = yield from process.must("getpid")
    yield from process.measure(_ATTACH, pid, 0, 0, expect=fails(errno.EPERM))


@error("ptrace", "memory that is not there")
def ptrace_peek_nothing(process: Process) -> Steps:
    pid = yield from _traced(process)
    yield from process.measure(_PEEKTEXT, pid, 8, process.buffer(8), expect=fails(errno.EIO))


plain("ptrace", "no such process", (_ATTACH, 30000, 0, 0), fails(errno.ESRCH))
