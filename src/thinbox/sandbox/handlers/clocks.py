"""What time is it: the virtual clock, by the guest kernel's own timekeeper.

Why it exists: a program that reads the time by a call and by the vDSO must see one clock. So the answer is worked out
as the kernel does: its last reading, plus the cycles since.

Sources: kernel/time/timekeeping.c (`timekeeping_get_ns`, `ktime_get`), kernel/time/posix-timers.c.
"""

import struct

from thinbox.errors import MachineError
from thinbox.sandbox.call_error import NotOursError
from thinbox.sandbox.emulated_call import EmulatedCall, Handler

_NS = 1_000_000_000
_REALTIME, _MONOTONIC, _RAW, _REALTIME_COARSE, _MONOTONIC_COARSE, _BOOTTIME = 0, 1, 4, 5, 6, 7
_TAI = 11
_TIMEKEEPER_AT = 8
"""Behind `seqcount_raw_spinlock_t seq` in `tk_core`, which is four bytes without lock debugging."""
_MASK = (1 << 64) - 1


def monotonic_ns(call: EmulatedCall, *, coarse: bool = False) -> int:
    """Return CLOCK_MONOTONIC as the guest would, in ns."""
    keeper = _keeper(call)
    types = call.services.view.facts.types
    mono = keeper + types.offset_of("timekeeper", "tkr_mono")
    base = call.field(mono, "tk_read_base", "base")
    shifted = call.field(mono, "tk_read_base", "xtime_nsec")
    shift = call.field32(mono, "tk_read_base", "shift")
    if not coarse and _reads_tsc(call, mono):
        delta = (call.services.now_ns - call.field(mono, "tk_read_base", "cycle_last")) & _MASK
        if delta >> 63 == 0:
            shifted += delta * call.field32(mono, "tk_read_base", "mult")
    return base + (shifted >> shift)


def _keeper(call: EmulatedCall) -> int:
    place = call.services.view.symbols.find("tk_core")
    if place is None:
        raise MachineError("this kernel has no tk_core; its time cannot be read, so do not emulate time")
    return place + _TIMEKEEPER_AT


def _reads_tsc(call: EmulatedCall, mono: int) -> bool:
    """Whether the kernel's clock is the TSC; another one moves by ticks for us."""
    view = call.services.view
    name = call.field(call.field(mono, "tk_read_base", "clock"), "clocksource", "name")
    return view.read_u32(name, view.kernel_root) == int.from_bytes(b"tsc\0", "little")


def _clock_ns(call: EmulatedCall, clock: int) -> int:
    keeper = _keeper(call)
    if clock in (_MONOTONIC, _MONOTONIC_COARSE):
        return monotonic_ns(call, coarse=clock == _MONOTONIC_COARSE)
    offsets = {_REALTIME: "offs_real", _REALTIME_COARSE: "offs_real", _BOOTTIME: "offs_boot", _TAI: "offs_tai"}
    if clock not in offsets:
        # CPU-time clocks, alarms, the raw clock and devices are the kernel's.
        raise NotOursError
    coarse = clock == _REALTIME_COARSE
    return monotonic_ns(call, coarse=coarse) + call.field(keeper, "timekeeper", offsets[clock])


def clock_gettime(call: EmulatedCall) -> int:
    """`int clock_gettime(clockid_t, struct timespec *)`; time zones and time namespaces stay the kernel's."""
    now = _clock_ns(call, call.int32(0))
    call.write(call.args[1], struct.pack("<qq", now // _NS, now % _NS))
    return 0


def clock_getres(call: EmulatedCall) -> int:
    """`int clock_getres(clockid_t, struct timespec *)`: 1 ns (high-resolution timers), coarse clocks a tick."""
    clock = call.int32(0)
    if clock not in (_REALTIME, _MONOTONIC, _BOOTTIME, _TAI):
        raise NotOursError
    if call.args[1]:
        call.write(call.args[1], struct.pack("<qq", 0, 1))
    return 0


def gettimeofday(call: EmulatedCall) -> int:
    """`int gettimeofday(struct timeval *, struct timezone *)`; a time zone that is asked for is the kernel's."""
    if call.args[1]:
        raise NotOursError
    if call.args[0]:
        now = _clock_ns(call, _REALTIME)
        call.write(call.args[0], struct.pack("<qq", now // _NS, now % _NS // 1000))
    return 0


def time(call: EmulatedCall) -> int:
    """`time_t time(time_t *)`: whole seconds of the last tick, as the kernel's."""
    now = _clock_ns(call, _REALTIME_COARSE) // _NS
    if call.args[0]:
        call.write(call.args[0], struct.pack("<q", now))
    return now


CLOCKS: dict[str, Handler] = {
    "clock_gettime": clock_gettime,
    "clock_getres": clock_getres,
    "gettimeofday": gettimeofday,
    "time": time,
}
"""By name of the call."""
