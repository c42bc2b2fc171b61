"""Clocks, sleeping, and timers.

The clock is virtual: bytes of code executed, and sleep. Isolated or not, a case sees nearly but not exactly the
same times, so results that are times are checked for sense and left out of the comparison.
"""

import errno
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, Expect, exactly, fails
from thinbox.harness.process import Steps

_CLOCKS = {
    "CLOCK_REALTIME": 0,
    "CLOCK_MONOTONIC": 1,
    "CLOCK_PROCESS_CPUTIME_ID": 2,
    "CLOCK_THREAD_CPUTIME_ID": 3,
    "CLOCK_MONOTONIC_RAW": 4,
    "CLOCK_REALTIME_COARSE": 5,
    "CLOCK_MONOTONIC_COARSE": 6,
    "CLOCK_BOOTTIME": 7,
    "CLOCK_TAI": 11,
}
_SLEEP_NS = 5 * abi.MILLISECOND
_SLEEP = abi.timespec(0, _SLEEP_NS)
_NOT_A_TIME = abi.timespec(0, 10**9)
_NOBODY = 65534
_ALRM, _USR1 = 14, 10
_YEAR_2020 = 1_577_836_800


def _is_time(data: bytes) -> bool:
    seconds, rest = struct.unpack("<qq", data)
    return (seconds, rest) > (0, 0) and 0 <= rest < 10**9


def _is_today(data: bytes) -> bool:
    return _is_time(data) and struct.unpack("<q", data[:8])[0] > _YEAR_2020


def _now(process: Process, clock: int = 1) -> Steps:
    """The clock's time in ns."""
    place = process.buffer(16)
    process.volatile(place, 16)
    yield from process.must("clock_gettime", clock, place)
    seconds, rest = struct.unpack("<qq", process.read(place, 16))
    return seconds * 10**9 + rest


# -- asking -------------------------------------------------------------------------------------------
for _name, _clock in _CLOCKS.items():
    _test = _is_today if _clock in (0, 5, 11) else _is_time
    plain("clock_gettime", _name, (_clock, bytes(16)), ZERO, varies=True, holds=_test)
    _ns = 4_000_000 if "COARSE" in _name else 1
    plain("clock_getres", _name, (_clock, bytes(16)), ZERO, holds=abi.timespec(0, _ns))
plain("clock_getres", "without a place", (1, 0), ZERO)
plain("clock_gettime", "of process 1", (~1 << 3 | 2, bytes(16)), ZERO, varies=True, holds=_is_time)
for _call in ("clock_gettime", "clock_getres"):
    plain(_call, "no such clock", (99, bytes(16)), fails(errno.EINVAL))
    plain(_call, "bad address", (1, 1), fails(errno.EFAULT))
plain("gettimeofday", "time", (bytes(16), 0), ZERO, varies=True, holds=_is_today)
plain("gettimeofday", "time zone", (0, b"\xff" * 8), ZERO, holds=bytes(8))
plain("gettimeofday", "bad address", (1, 0), fails(errno.EFAULT))
_TODAY = Expect(lambda result: result > _YEAR_2020, "a time after 2020")
plain("time", "as result", (0,), _TODAY, varies=True)
plain("time", "in a place, too", (bytes(8),), _TODAY, varies=True, holds=lambda data: abi.words(data)[0] > _YEAR_2020)
plain("time", "bad address", (1,), fails(errno.EFAULT))
plain("times", "own", (bytes(32),), POSITIVE, varies=True, holds=lambda data: data[16:] == bytes(16))
plain("times", "the clock only", (0,), POSITIVE, varies=True)
plain("times", "bad address", (1,), fails(errno.EFAULT))

# -- setting ------------------------------------------------------------------------------------------
_2030 = 1_893_456_000
plain("settimeofday", "time zone", (0, struct.pack("<ii", 60, 0)), ZERO)
plain("settimeofday", "not a time", (abi.timespec(1, 10**6), 0), fails(errno.EINVAL))
plain("settimeofday", "bad address", (1, 0), fails(errno.EFAULT))
plain("clock_settime", "not a time", (0, _NOT_A_TIME), fails(errno.EINVAL))
plain("clock_settime", "a clock that only runs", (1, abi.timespec(5)), fails(errno.EINVAL))
plain("clock_settime", "bad address", (0, 1), fails(errno.EFAULT))
for _call, _args in (("settimeofday", (abi.timespec(_2030), 0)), ("clock_settime", (0, abi.timespec(_2030)))):

    @success(_call, "to 2030")
    def set_time(process: Process, args: tuple[bytes | int, ...] = _args) -> Steps:
        yield from process.measure(*args, expect=ZERO)
        now = yield from _now(process, 0)
        process.check(0 <= now - _2030 * 10**9 < 10**9, "it is 2030")

    @error(_call, "by nobody")
    def set_time_nobody(process: Process, args: tuple[bytes | int, ...] = _args) -> Steps:
        yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
        yield from process.measure(*args, expect=fails(errno.EPERM))


_TIMEX_BYTES = 208
_ADJ_OFFSET, _ADJ_FREQUENCY, _ADJ_TICK, _ADJ_SETOFFSET, _ADJ_STATUS = 1, 2, 0x4000, 0x100, 0x10


def _timex(modes: int, *, frequency: int = 0, tick: int = 0, status: int = 0, time: tuple[int, int] = (0, 0)) -> bytes:
    head = struct.pack("<I4xqqqqi4xqqq", modes, 0, frequency, 0, 0, status, 0, 0, 0)
    return (head + struct.pack("<qqq", *time, tick)).ljust(_TIMEX_BYTES, b"\0")


_STATE = Expect(lambda result: 0 <= result <= 5, "a state of the clock, 0 to 5")
for _call, _clock_args in (("adjtimex", ()), ("clock_adjtime", (0,))):
    for _name, _content in (
        ("ask", _timex(0)),
        ("set the frequency", _timex(_ADJ_FREQUENCY, frequency=65536)),
        ("set the tick", _timex(_ADJ_TICK, tick=10001)),
        ("set the status", _timex(_ADJ_STATUS, status=1)),
        ("step the time", _timex(_ADJ_SETOFFSET, time=(5, 0))),
    ):
        plain(
            _call,
            _name,
            (*_clock_args, _content),
            _STATE,
            varies=True,
            holds=lambda data: abi.words(data)[9] > _YEAR_2020,
        )
    plain(_call, "no such tick", (*_clock_args, _timex(_ADJ_TICK, tick=1)), fails(errno.EINVAL))
    plain(_call, "bad address", (*_clock_args, 1), fails(errno.EFAULT))
plain("clock_adjtime", "no such clock", (99, _timex(0)), fails(errno.EINVAL))
plain("clock_adjtime", "a clock that cannot", (1, _timex(0)), fails(errno.EOPNOTSUPP))

# -- sleeping -----------------------------------------------------------------------------------------
for _name, _ns in (("1 ns", 1), ("50 us", 50_000), ("5 ms", _SLEEP_NS), ("1 s", 10**9)):

    @success("nanosleep", _name)
    def nanosleep(process: Process, wanted: int = _ns) -> Steps:
        before = yield from _now(process)
        yield from process.measure(abi.timespec(*divmod(wanted, 10**9)), 0, expect=ZERO)
        after = yield from _now(process)
        process.check(wanted <= after - before < wanted + 10 * abi.MILLISECOND, "the time that was to pass")


plain("nanosleep", "not at all", (abi.timespec(0), 0), ZERO)
plain("nanosleep", "not a time", (_NOT_A_TIME, 0), fails(errno.EINVAL))
plain("nanosleep", "bad address", (1, 0), fails(errno.EFAULT))
for _name, _clock in (("CLOCK_REALTIME", 0), ("CLOCK_MONOTONIC", 1), ("CLOCK_BOOTTIME", 7), ("CLOCK_TAI", 11)):
    plain("clock_nanosleep", f"{_name}, 5 ms", (_clock, 0, _SLEEP, 0), ZERO)

    @success("clock_nanosleep", f"{_name}, until a time")
    def clock_nanosleep_until(process: Process, clock: int = _clock) -> Steps:
        until = (yield from _now(process, clock)) + _SLEEP_NS
        place = process.buffer(abi.timespec(*divmod(until, 10**9)))
        process.volatile(place, 16)
        yield from process.measure(clock, 1, place, 0, expect=ZERO)
        after = yield from _now(process, clock)
        process.check(after >= until, "it is that time")


plain("clock_nanosleep", "until a time that is past", (1, 1, abi.timespec(0), 0), ZERO)
plain("clock_nanosleep", "no such clock", (99, 0, _SLEEP, 0), fails(errno.EINVAL))
plain("clock_nanosleep", "the own CPU time of a thread", (3, 0, _SLEEP, 0), fails(errno.EOPNOTSUPP))
plain("clock_nanosleep", "not a time", (1, 0, _NOT_A_TIME, 0), fails(errno.EINVAL))


@error("nanosleep", "interrupted; the rest is told")
def nanosleep_interrupted(process: Process) -> Steps:
    yield from process.must("rt_sigaction", _USR1, abi.sigaction(process.agent_loop), 0, 8)
    rest = process.buffer(16)
    process.volatile(rest, 16)

    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", _SLEEP, 0)
        yield from me.must("kill", (yield from me.must("getppid")), _USR1)

    pid = yield from process.fork(child)
    yield from process.measure(abi.timespec(3), rest, expect=ZERO)
    process.check(2 <= process.read_int(rest, 8) < 3, "more than 2 s are left")
    process.registers[4] += 8
    result = yield from process.call("rt_sigreturn")
    process.check(result == -errno.EINTR, "the sleep was interrupted")
    yield from process.wait(pid)


# -- alarms and interval timers -----------------------------------------------------------------------
def _timeval(seconds: int, microseconds: int = 0) -> bytes:
    return bytes(16) + struct.pack("<qq", seconds, microseconds)


plain("alarm", "none before", (100,), ZERO)
plain("alarm", "off", (0,), ZERO)


@success("alarm", "tells what was left")
def alarm_left(process: Process) -> Steps:
    yield from process.must("alarm", 100)
    yield from process.measure(5, expect=exactly(100))


@success("alarm", "comes")
def alarm_comes(process: Process) -> Steps:
    yield from process.must("rt_sigprocmask", 0, abi.sigset(_ALRM), 0, 8)
    yield from process.measure(1, expect=ZERO)
    got = yield from process.must("rt_sigtimedwait", abi.sigset(_ALRM), 0, abi.timespec(2), 8)
    process.check(got == _ALRM, "the signal")


for _name, _which in (("ITIMER_REAL", 0), ("ITIMER_VIRTUAL", 1), ("ITIMER_PROF", 2)):
    plain("getitimer", f"{_name}, off", (_which, b"\xff" * 32), ZERO, holds=bytes(32))
    plain("setitimer", f"{_name}, on", (_which, _timeval(50), 0), ZERO)

    @success("getitimer", f"{_name}, on")
    def getitimer_on(process: Process, which: int = _which) -> Steps:
        yield from process.must("setitimer", which, _timeval(50), 0)
        place = process.buffer(32)
        process.volatile(place, 32)
        yield from process.measure(which, place, expect=ZERO)
        process.check(49 <= process.read_int(place + 16, 8) <= 50, "about 50 s are left")


@success("setitimer", "ITIMER_REAL comes again and again")
def setitimer_interval(process: Process) -> Steps:
    yield from process.must("rt_sigprocmask", 0, abi.sigset(_ALRM), 0, 8)
    yield from process.measure(0, struct.pack("<4q", 0, 5000, 0, 5000), 0, expect=ZERO)
    for _ in range(3):
        yield from process.must("rt_sigtimedwait", abi.sigset(_ALRM), 0, abi.timespec(1), 8)


plain("getitimer", "no such timer", (9, bytes(32)), fails(errno.EINVAL))
plain("getitimer", "bad address", (0, 1), fails(errno.EFAULT))
plain("setitimer", "no such timer", (9, _timeval(1), 0), fails(errno.EINVAL))
plain("setitimer", "not a time", (0, _timeval(1, 10**6), 0), fails(errno.EINVAL))
plain("setitimer", "bad address", (0, 1, 0), fails(errno.EFAULT))


# -- POSIX timers: struct sigevent is value, signal, way (0 signal, 1 none, 4 signal to a thread) -----
def _sigevent(way: int, thread: int = 0) -> bytes:
    return struct.pack("<Qiii", 0x77, _USR1, way, thread).ljust(64, b"\0")


def _timer(process: Process, clock: int = 1) -> Steps:
    place = process.buffer(4)
    yield from process.must("timer_create", clock, _sigevent(0), place)
    return process.read_int(place)


for _name, _clock in _CLOCKS.items():
    if "COARSE" not in _name and "RAW" not in _name:
        plain("timer_create", _name, (_clock, _sigevent(1), bytes(4)), ZERO, holds=bytes(4))
plain("timer_create", "the usual signal", (1, 0, bytes(4)), ZERO)
plain("timer_create", "no such clock", (99, 0, bytes(4)), fails(errno.EINVAL))
plain("timer_create", "a clock without timers", (5, 0, bytes(4)), fails(errno.EOPNOTSUPP))
plain(
    "timer_create", "no such signal", (1, struct.pack("<Qii", 0, 99, 0).ljust(64, b"\0"), bytes(4)), fails(errno.EINVAL)
)
for _call, _timer_args in (
    ("timer_settime", (9, 0, abi.itimerspec(1), 0)),
    ("timer_gettime", (9, bytes(32))),
    ("timer_getoverrun", (9,)),
    ("timer_delete", (9,)),
):
    plain(_call, "no such timer", _timer_args, fails(errno.EINVAL))


@success("timer_create", "for a thread")
def timer_create_thread(process: Process) -> Steps:
    tid = yield from process.must("gettid")
    yield from process.measure(1, _sigevent(4, tid), process.buffer(4), expect=ZERO)


for _name, _clock, _flags in (
    ("CLOCK_MONOTONIC", 1, 0),
    ("CLOCK_REALTIME", 0, 0),
    ("CLOCK_MONOTONIC, until a time", 1, 1),
):

    @success("timer_settime", _name)
    def timer_settime(process: Process, clock: int = _clock, flags: int = _flags) -> Steps:
        yield from process.must("rt_sigprocmask", 0, abi.sigset(_USR1), 0, 8)
        timer = yield from _timer(process, clock)
        start = (yield from _now(process, clock)) if flags else 0
        place = process.buffer(abi.itimerspec(start + _SLEEP_NS))
        process.volatile(place, 32)
        yield from process.measure(timer, flags, place, 0, expect=ZERO)
        info = process.buffer(128)
        yield from process.must("rt_sigtimedwait", abi.sigset(_USR1), info, abi.timespec(2), 8)
        process.check(process.read_int(info + 24, 8) == 0x77, "the timer's value came with the signal")


@error("timer_settime", "not a time")
def timer_settime_invalid(process: Process) -> Steps:
    timer = yield from _timer(process)
    yield from process.measure(timer, 0, _NOT_A_TIME * 2, 0, expect=fails(errno.EINVAL))


@success("timer_gettime", "of one that runs")
def timer_gettime(process: Process) -> Steps:
    timer, place = (yield from _timer(process)), process.buffer(32)
    process.volatile(place, 32)
    yield from process.must("timer_settime", timer, 0, abi.itimerspec(9 * 10**9, 10**9), 0)
    yield from process.measure(timer, place, expect=ZERO)
    process.check(process.read(place, 16) == abi.timespec(1), "the interval")
    process.check(process.read_int(place + 16, 8) == 8, "a little less than 9 s are left")


@success("timer_getoverrun", "three missed")
def timer_getoverrun(process: Process) -> Steps:
    yield from process.must("rt_sigprocmask", 0, abi.sigset(_USR1), 0, 8)
    timer = yield from _timer(process)
    yield from process.must("timer_settime", timer, 0, abi.itimerspec(_SLEEP_NS, _SLEEP_NS), 0)
    yield from process.must("nanosleep", abi.timespec(0, 22 * abi.MILLISECOND), 0)
    yield from process.must("rt_sigtimedwait", abi.sigset(_USR1), 0, 0, 8)
    yield from process.measure(timer, expect=exactly(3))


@success("timer_delete", "one that runs")
def timer_delete(process: Process) -> Steps:
    timer = yield from _timer(process)
    yield from process.must("timer_settime", timer, 0, abi.itimerspec(_SLEEP_NS), 0)
    yield from process.measure(timer, expect=ZERO)
    gone = yield from process.call("timer_gettime", timer, bytes(32))
    process.check(gone == -errno.EINVAL, "it is gone")
