"""What time is it: the virtual clock, by the guest kernel's own timekeeper.

Why it exists: a program that reads the time by a call and by the vDSO must see one clock. So the answer is worked out
as the kernel does: its last reading, plus the cycles since.

Sources: kernel/time/timekeeping.c (`timekeeping_get_ns`, `ktime_get`), kernel/time/posix-timers.c.
"""

import struct

from thinbox.kernel.timekeeper import Timekeeper, find_timekeeper
from thinbox.sandbox.call_error import NotOursError
from thinbox.sandbox.emulated_call import EmulatedCall, Handler

_NS = 1_000_000_000
_REALTIME, _MONOTONIC, _RAW, _REALTIME_COARSE, _MONOTONIC_COARSE, _BOOTTIME = 0, 1, 4, 5, 6, 7
_TAI = 11
_MASK = (1 << 64) - 1


def monotonic_ns(call: EmulatedCall, *, coarse: bool = False) -> int:
    """Return CLOCK_MONOTONIC as the guest would, in ns."""
    keeper = call.services.shape(find_timekeeper)
    mono = keeper.mono_at
    base, shifted = call.word(mono + keeper.base_at), call.word(mono + keeper.fraction_at)
    if not coarse and _reads_tsc(call, keeper):
        delta = (call.services.now_ns - call.word(mono + keeper.last_at)) & _MASK
        if delta >> 63 == 0:
            shifted += delta * call.word32(mono + keeper.mult_at)
    return base + (shifted >> call.word32(mono + keeper.shift_at))


def _reads_tsc(call: EmulatedCall, keeper: Timekeeper) -> bool:
    """Whether the kernel's clock is the TSC; another one moves by ticks for us."""
    name = call.word(call.word(keeper.mono_at + keeper.source_at) + keeper.source_name_at)
    return call.kernel_bytes(name, 4) == b"tsc\0"


def _clock_ns(call: EmulatedCall, clock: int) -> int:
    keeper = call.services.shape(find_timekeeper)
    if clock in (_MONOTONIC, _MONOTONIC_COARSE):
        return monotonic_ns(call, coarse=clock == _MONOTONIC_COARSE)
    offsets = {_BOOTTIME: keeper.boot_offset_at, _TAI: keeper.tai_offset_at}
    offsets |= dict.fromkeys((_REALTIME, _REALTIME_COARSE), keeper.real_offset_at)
    if clock not in offsets:
        # CPU-time clocks, alarms, the raw clock and devices are the kernel's.
        raise NotOursError
    coarse = clock == _REALTIME_COARSE
    return monotonic_ns(call, coarse=coarse) + call.word(offsets[clock])


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
