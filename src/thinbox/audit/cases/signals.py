"""Signals: masks, handlers, sending, waiting, and the return from a handler.

A handler of a case is the agent's loop: the case goes on inside it, makes calls there, and returns with
`rt_sigreturn`, whose "result" is that of the call the signal interrupted.
"""

import errno
import struct

from thinbox.audit import abi
from thinbox.audit.case import Body, error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import ZERO, exactly, fails
from thinbox.harness.process import Steps
from thinbox.machine.cpu import RSP

_USR1, _USR2, _SEGV, _CHLD, _STOP, _CONT, _KILL, _ALRM, _TERM, _RT = 10, 12, 11, 17, 19, 18, 9, 14, 15, 40
_BLOCK, _UNBLOCK, _SETMASK = 0, 1, 2
_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)
_NOBODY = 65534


def _idle(_me: Process) -> Steps:
    yield from ()


def _waits_for_ever(me: Process) -> Steps:
    yield from me.must("pause")


def _handle(process: Process, number: int, flags: int = 0, *masked: int) -> Steps:
    """Let the case go on in the handler of signal `number`."""
    yield from process.must("rt_sigaction", number, abi.sigaction(process.agent_loop, flags, *masked), 0, 8)


def _return_address_off(process: Process) -> None:
    """What a handler's `ret` does before the restorer calls rt_sigreturn."""
    process.registers[RSP] += 8


def _killer_of_parent(number: int) -> Body:
    """A child that sends its parent a signal once that sleeps."""

    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", _SLEEP, 0)
        parent = yield from me.must("getppid")
        yield from me.must("kill", parent, number)

    return child


# -- actions and masks --------------------------------------------------------------------------------
_IGNORE, _DEFAULT = abi.sigaction(1), abi.sigaction(0)
plain("rt_sigaction", "ask", (_USR1, 0, b"\xff" * 32, 8), ZERO, holds=bytes(32))
plain("rt_sigaction", "ignore", (_USR1, _IGNORE, 0, 8), ZERO)
plain("rt_sigaction", "default", (_TERM, _DEFAULT, 0, 8), ZERO)
plain("rt_sigaction", "of a real-time signal", (64, abi.sigaction(0x400078, abi.SA_SIGINFO), 0, 8), ZERO)
plain("rt_sigaction", "no such signal", (65, _IGNORE, 0, 8), fails(errno.EINVAL))
plain("rt_sigaction", "one that cannot be caught", (_KILL, _IGNORE, 0, 8), fails(errno.EINVAL))
plain("rt_sigaction", "wrong size of a set", (_USR1, _IGNORE, 0, 4), fails(errno.EINVAL))
plain("rt_sigaction", "bad address", (_USR1, 1, 0, 8), fails(errno.EFAULT))


@success("rt_sigaction", "tells the one before")
def rt_sigaction_before(process: Process) -> Steps:
    action = abi.sigaction(process.agent_loop, abi.SA_RESTART | abi.SA_SIGINFO, _USR2)
    yield from process.must("rt_sigaction", _USR1, action, 0, 8)
    place = process.buffer(32)
    yield from process.measure(_USR1, _IGNORE, place, 8, expect=ZERO)
    process.check(process.read(place, 32) == action, "the action before")


@success("rt_sigaction", "ignoring discards what is pending")
def rt_sigaction_discards(process: Process) -> Steps:
    own = yield from process.must("getpid")
    yield from process.must("rt_sigprocmask", _BLOCK, abi.sigset(_USR1), 0, 8)
    yield from process.must("kill", own, _USR1)
    yield from process.measure(_USR1, _IGNORE, 0, 8, expect=ZERO)
    place = process.buffer(8)
    yield from process.must("rt_sigpending", place, 8)
    process.check(process.read(place, 8) == bytes(8), "nothing pending")


for _name, _how in (("SIG_BLOCK", _BLOCK), ("SIG_UNBLOCK", _UNBLOCK), ("SIG_SETMASK", _SETMASK)):

    @success("rt_sigprocmask", _name)
    def rt_sigprocmask(process: Process, how: int = _how) -> Steps:
        yield from process.must("rt_sigprocmask", _SETMASK, abi.sigset(_USR1, _USR2), 0, 8)
        before, after = process.buffer(8), process.buffer(8)
        yield from process.measure(how, abi.sigset(_USR2, _TERM), before, 8, expect=ZERO)
        yield from process.must("rt_sigprocmask", _BLOCK, 0, after, 8)
        wanted = ((_USR1, _USR2, _TERM), (_USR1,), (_USR2, _TERM))[how]
        process.check(process.read(before, 8) == abi.sigset(_USR1, _USR2), "the mask before")
        process.check(process.read(after, 8) == abi.sigset(*wanted), "the mask after")


plain("rt_sigprocmask", "ask", (_BLOCK, 0, b"\xff" * 8, 8), ZERO, holds=bytes(8))
plain("rt_sigprocmask", "no such change", (9, abi.sigset(1), 0, 8), fails(errno.EINVAL))
plain("rt_sigprocmask", "wrong size of a set", (_BLOCK, 0, bytes(8), 16), fails(errno.EINVAL))
plain("rt_sigprocmask", "bad address", (_BLOCK, 1, 0, 8), fails(errno.EFAULT))
plain("rt_sigpending", "nothing", (b"\xff" * 8, 8), ZERO, holds=bytes(8))
plain("rt_sigpending", "bad address", (1, 8), fails(errno.EFAULT))
plain("rt_sigpending", "too long", (bytes(16), 16), fails(errno.EINVAL))


@success("rt_sigpending", "two signals")
def rt_sigpending(process: Process) -> Steps:
    own = yield from process.must("getpid")
    yield from process.must("rt_sigprocmask", _BLOCK, abi.sigset(_USR1, _RT), 0, 8)
    yield from process.must("kill", own, _USR1)
    yield from process.must("kill", own, _RT)
    place = process.buffer(8)
    yield from process.measure(place, 8, expect=ZERO)
    process.check(process.read(place, 8) == abi.sigset(_USR1, _RT), "both")


@success("rt_sigprocmask", "a pending signal comes when it is unblocked")
def rt_sigprocmask_delivers(process: Process) -> Steps:
    own = yield from process.must("getpid")
    yield from _handle(process, _USR1)
    yield from process.must("rt_sigprocmask", _BLOCK, abi.sigset(_USR1), 0, 8)
    yield from process.must("kill", own, _USR1)
    # The handler runs before the call's result is seen: the loop begins anew, with 0.
    yield from process.measure(_UNBLOCK, abi.sigset(_USR1), 0, 8, expect=ZERO)
    mask = process.buffer(8)
    yield from process.must("rt_sigprocmask", _BLOCK, 0, mask, 8)
    process.check(process.read(mask, 8) == abi.sigset(_USR1), "in the handler its own signal is blocked")


# -- handlers and the return from them ----------------------------------------------------------------
for _name, _flags in (
    ("from a handler", 0),
    ("from a handler with siginfo", abi.SA_SIGINFO),
    ("from a handler that does not block its signal", abi.SA_NODEFER),
):

    @success("rt_sigreturn", _name)
    def rt_sigreturn(process: Process, flags: int = _flags) -> Steps:
        own = yield from process.must("getpid")
        yield from _handle(process, _USR1, flags, _USR2)
        yield from process.must("kill", own, _USR1)
        mask = process.buffer(8)
        yield from process.must("rt_sigprocmask", _BLOCK, 0, mask, 8)
        blocked = (_USR2,) if flags & abi.SA_NODEFER else (_USR1, _USR2)
        process.check(process.read(mask, 8) == abi.sigset(*blocked), "what is blocked in the handler")
        _return_address_off(process)
        yield from process.measure(expect=ZERO)
        yield from process.must("rt_sigprocmask", _BLOCK, 0, mask, 8)
        process.check(process.read(mask, 8) == bytes(8), "nothing is blocked after it")


@success("rt_sigreturn", "to a call that is interrupted")
def rt_sigreturn_interrupted(process: Process) -> Steps:
    yield from _handle(process, _USR1)
    pid = yield from process.fork(_killer_of_parent(_USR1))
    yield from process.must("nanosleep", abi.timespec(9), 0)
    _return_address_off(process)
    yield from process.measure(expect=fails(errno.EINTR))
    yield from process.wait(pid)


@success("rt_sigreturn", "to a call that is restarted")
def rt_sigreturn_restarted(process: Process) -> Steps:
    ends, place = process.buffer(8), process.buffer(8)
    yield from process.must("pipe", ends)
    sink = process.read_int(ends + 4)

    def child(me: Process) -> Steps:
        yield from _killer_of_parent(_USR1)(me)
        yield from me.must("nanosleep", _SLEEP, 0)
        yield from me.must("write", sink, b"late", 4)

    yield from _handle(process, _USR1, abi.SA_RESTART)
    pid = yield from process.fork(child)
    yield from process.must("read", process.read_int(ends), place, 8)
    _return_address_off(process)
    # After the return the read begins again; its result is what comes next.
    yield from process.measure(expect=exactly(4))
    process.check(process.read(place, 4) == b"late", "what the child wrote")
    yield from process.wait(pid)


@success("rt_sigreturn", "from an alternate stack")
def rt_sigreturn_altstack(process: Process) -> Steps:
    stack = process.buffer(16 << 10)
    yield from process.must("sigaltstack", struct.pack("<QiiQ", stack, 0, 0, 16 << 10), 0)
    yield from _handle(process, _USR1, abi.SA_ONSTACK)
    own = yield from process.must("getpid")
    yield from process.must("kill", own, _USR1)
    process.check(stack <= process.registers[RSP] < stack + (16 << 10), "the handler runs on its stack")
    _return_address_off(process)
    yield from process.measure(expect=ZERO)
    process.check(not stack <= process.registers[RSP] < stack + (16 << 10), "the loop does not")


@success("rt_sigreturn", "from one handler inside another")
def rt_sigreturn_nested(process: Process) -> Steps:
    own = yield from process.must("getpid")
    yield from _handle(process, _USR1)
    yield from _handle(process, _USR2)
    yield from process.must("kill", own, _USR1)
    outer = process.registers[RSP]
    yield from process.must("kill", own, _USR2)
    process.check(process.registers[RSP] < outer, "a second frame below the first")
    _return_address_off(process)
    yield from process.measure(expect=ZERO)
    process.check(process.registers[RSP] == outer, "back in the first handler")


@error("rt_sigreturn", "without a frame")
def rt_sigreturn_none(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        me.registers[RSP] = 0x1000
        yield from me.measure_last()

    pid = yield from process.fork(child)
    yield from process.wait(pid, _SEGV)


# -- sending ------------------------------------------------------------------------------------------
plain("kill", "asks whether it could", (1, 0), ZERO)
plain("kill", "no such process", (30000, _TERM), fails(errno.ESRCH))
plain("kill", "no such signal", (1, 65), fails(errno.EINVAL))
plain("kill", "process 1, which has no handler", (1, _TERM), ZERO)
plain("kill", "no such group", (-30000, _TERM), fails(errno.ESRCH))
plain("tkill", "no such thread", (30000, _TERM), fails(errno.ESRCH))
plain("tkill", "no id", (0, _TERM), fails(errno.EINVAL))
plain("tgkill", "no such thread", (1, 30000, _TERM), fails(errno.ESRCH))
plain("tgkill", "no such signal", (1, 1, 65), fails(errno.EINVAL))
_INFO = abi.siginfo(_RT, -1, 0x1234)
plain("rt_sigqueueinfo", "no such process", (30000, _RT, _INFO), fails(errno.ESRCH))
plain("rt_sigqueueinfo", "as if the kernel sent it", (1, _RT, abi.siginfo(_RT, 0)), fails(errno.EPERM))
plain("rt_sigqueueinfo", "bad address", (1, _RT, 1), fails(errno.EFAULT))
plain("rt_tgsigqueueinfo", "no such thread", (30000, 30000, _RT, _INFO), fails(errno.ESRCH))
plain("rt_tgsigqueueinfo", "no id", (0, 0, _RT, _INFO), fails(errno.EINVAL))
_PID_0 = -(1 << 40)


def _sending(call: str, name: str, number: int, *args: int | bytes) -> None:
    """To a child that waits; `_PID_0` among the arguments is its id. It ends by the signal."""

    @success(call, name)
    def body(process: Process) -> Steps:
        pid = yield from process.fork(_waits_for_ever)
        yield from process.must("nanosleep", _SLEEP, 0)
        yield from process.measure(*(pid if value == _PID_0 else value for value in args), expect=ZERO)
        yield from process.wait(pid, number)


for _number, _title in ((_TERM, "SIGTERM"), (_KILL, "SIGKILL"), (_RT, "a real-time signal")):
    _sending("kill", f"{_title} to a child", _number, _PID_0, _number)
    _sending("tkill", f"{_title} to a child", _number, _PID_0, _number)
    _sending("tgkill", f"{_title} to a child", _number, _PID_0, _PID_0, _number)
_sending("rt_sigqueueinfo", "a value to a child", _RT, _PID_0, _RT, _INFO)
_sending("rt_tgsigqueueinfo", "a value to a child", _RT, _PID_0, _PID_0, _RT, _INFO)


@success("kill", "a group")
def kill_group(process: Process) -> Steps:
    yield from process.must("setsid")
    yield from process.must("rt_sigaction", _USR1, _IGNORE, 0, 8)

    def child(me: Process) -> Steps:
        yield from me.must("rt_sigaction", _USR1, _DEFAULT, 0, 8)
        yield from me.must("pause")

    first = yield from process.fork(child, 1)
    yield from process.must("nanosleep", _SLEEP, 0)
    second = yield from process.fork(child, 2)
    yield from process.must("nanosleep", _SLEEP, 0)
    yield from process.measure(0, _USR1, expect=ZERO)
    yield from process.wait(first, _USR1)
    yield from process.wait(second, _USR1)


@success("kill", "everyone but itself and process 1")
def kill_all(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    yield from process.must("nanosleep", _SLEEP, 0)
    yield from process.measure(-1, _USR1, expect=ZERO)
    yield from process.wait(pid, _USR1)


@success("kill", "stop and continue a child")
def kill_stop(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    yield from process.must("kill", pid, _STOP)
    yield from process.must("wait4", pid, 0, 2, 0)
    yield from process.measure(pid, _CONT, expect=ZERO)
    yield from process.must("wait4", pid, 0, 8, 0)
    yield from process.must("kill", pid, _KILL)
    yield from process.wait(pid, _KILL)


@error("kill", "process 1, by nobody")
def kill_nobody(process: Process) -> Steps:
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(1, _TERM, expect=fails(errno.EPERM))


@success("tgkill", "itself: the handler runs at once")
def tgkill_self(process: Process) -> Steps:
    own = yield from process.must("getpid")
    yield from _handle(process, _USR1)
    yield from process.measure(own, own, _USR1, expect=ZERO)
    _return_address_off(process)
    yield from process.must("rt_sigreturn")


# -- waiting ------------------------------------------------------------------------------------------
@success("pause", "until a handler has run")
def pause(process: Process) -> Steps:
    yield from _handle(process, _USR1)
    pid = yield from process.fork(_killer_of_parent(_USR1))
    yield from process.measure(expect=ZERO)
    _return_address_off(process)
    result = yield from process.call("rt_sigreturn")
    process.check(result == -errno.EINTR, "pause was interrupted")
    yield from process.wait(pid)


@success("rt_sigsuspend", "until a handler has run")
def rt_sigsuspend(process: Process) -> Steps:
    yield from _handle(process, _USR1)
    yield from process.must("rt_sigprocmask", _BLOCK, abi.sigset(_USR1), 0, 8)
    pid = yield from process.fork(_killer_of_parent(_USR1))
    yield from process.measure(abi.sigset(_USR2), 8, expect=ZERO)
    _return_address_off(process)
    result = yield from process.call("rt_sigreturn")
    process.check(result == -errno.EINTR, "rt_sigsuspend was interrupted")
    mask = process.buffer(8)
    yield from process.must("rt_sigprocmask", _BLOCK, 0, mask, 8)
    process.check(process.read(mask, 8) == abi.sigset(_USR1), "the mask before it")
    yield from process.wait(pid)


plain("rt_sigsuspend", "wrong size of a set", (bytes(8), 4), fails(errno.EINVAL))
plain("rt_sigsuspend", "bad address", (1, 8), fails(errno.EFAULT))


@success("rt_sigtimedwait", "a signal that is pending")
def rt_sigtimedwait_pending(process: Process) -> Steps:
    own = yield from process.must("getpid")
    yield from process.must("rt_sigprocmask", _BLOCK, abi.sigset(_RT), 0, 8)
    yield from process.must("rt_sigqueueinfo", own, _RT, _INFO)
    place = process.buffer(128)
    yield from process.measure(abi.sigset(_RT), place, 0, 8, expect=exactly(_RT))
    process.check(process.read_int(place + 24, 8) == 0x1234, "the value that was sent")


@success("rt_sigtimedwait", "a signal that comes later")
def rt_sigtimedwait_later(process: Process) -> Steps:
    yield from process.must("rt_sigprocmask", _BLOCK, abi.sigset(_USR1), 0, 8)
    pid = yield from process.fork(_killer_of_parent(_USR1))
    place = process.buffer(128)
    yield from process.measure(abi.sigset(_USR1), place, abi.timespec(5), 8, expect=exactly(_USR1))
    process.check(process.read_int(place + 16) == pid, "who sent it")
    yield from process.wait(pid)


plain("rt_sigtimedwait", "none comes", (abi.sigset(_USR1), 0, _SLEEP, 8), fails(errno.EAGAIN))
plain("rt_sigtimedwait", "none there", (abi.sigset(_USR1), 0, abi.timespec(0), 8), fails(errno.EAGAIN))
plain("rt_sigtimedwait", "no time", (abi.sigset(_USR1), 0, abi.timespec(0, 10**9), 8), fails(errno.EINVAL))


@success("sigaltstack", "set and ask")
def sigaltstack(process: Process) -> Steps:
    content = struct.pack("<Qi4xQ", process.buffer(8192), 0, 8192)
    yield from process.must("sigaltstack", content, 0)
    place = process.buffer(24)
    yield from process.measure(0, place, expect=ZERO)
    process.check(process.read(place, 24) == content, "what was set")


plain("sigaltstack", "ask: none", (0, b"\xff" * 24), ZERO, holds=struct.pack("<Qi4xQ", 0, 2, 0))
plain("sigaltstack", "disable", (struct.pack("<Qi4xQ", 0, 2, 0), 0), ZERO)
plain("sigaltstack", "too small", (struct.pack("<Qi4xQ", 0x10000, 0, 100), 0), fails(errno.ENOMEM))
plain("sigaltstack", "unknown flags", (struct.pack("<Qi4xQ", 0x10000, 8, 8192), 0), fails(errno.EINVAL))
plain("sigaltstack", "bad address", (1, 0), fails(errno.EFAULT))


# -- calls that the kernel goes on with ---------------------------------------------------------------
@success("restart_syscall", "of a sleep that was stopped and continued")
def restart_syscall(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        me.measure_next()
        yield from me.must("nanosleep", abi.timespec(0, 40 * abi.MILLISECOND), 0)

    pid = yield from process.fork(child)
    yield from process.must("nanosleep", _SLEEP, 0)
    yield from process.must("kill", pid, _STOP)
    yield from process.must("wait4", pid, 0, 2, 0)
    yield from process.must("kill", pid, _CONT)
    yield from process.wait(pid)


plain("restart_syscall", "nothing to restart", (), fails(errno.EINTR))
