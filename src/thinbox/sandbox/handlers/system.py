"""What machine is this: uname, sysinfo, limits, CPUs; and giving the CPU away.

Sources: kernel/sys.c (`newuname`, `do_sysinfo`, `do_prlimit`), kernel/sched/core.c; where what lies:
`thinbox.kernel.process`.
"""

import errno
import struct

from thinbox.kernel.process import find_process
from thinbox.sandbox.call_error import CallError, NotOursError
from thinbox.sandbox.emulated_call import EmulatedCall, Handler
from thinbox.sandbox.handlers.clocks import monotonic_ns

_UTSNAME_BYTES = 6 * 65
"""struct new_utsname (include/uapi/linux/utsname.h)."""
_RLIM_COUNT = 16
_PAGE = 4096
_NS = 1_000_000_000
_PER_LINUX32 = 8
_UNAME26 = 0x20000


def uname(call: EmulatedCall) -> int:
    """`int uname(struct utsname *)`, of the task's own UTS namespace."""
    # personality(PER_LINUX32) and UNAME26 change the answer: those are left to the kernel.
    shape = call.services.shape(find_process)
    if call.word32(call.task + shape.personality_at) & (0xFF | _UNAME26):
        raise NotOursError
    namespace = call.word(call.word(call.task + shape.namespaces_at) + shape.uts_at)
    call.write(call.args[0], call.kernel_bytes(namespace + shape.names_at, _UTSNAME_BYTES))
    return 0


def sysinfo(call: EmulatedCall) -> int:
    """`int sysinfo(struct sysinfo *)`: no load, no swap, no high memory; buffers are not told apart from free
    pages' rest."""
    shape = call.services.shape(find_process)
    procs = call.word32(shape.task_count_at) if shape.task_count_at else 1
    total, free = (_PAGE * (call.word(place) if place else 0) for place in (shape.pages_at, shape.free_pages_at))
    uptime = -(-monotonic_ns(call) // _NS)
    data = struct.pack("<q3Q2Q2Q2QHHIQQI", uptime, 0, 0, 0, total, free, 0, 0, 0, 0, procs & 0xFFFF, 0, 0, 0, 0, 1)
    call.write(call.args[0], data.ljust(112, b"\0"))
    return 0


def sched_yield(_call: EmulatedCall) -> int:
    """`int sched_yield(void)`: a hint only; the others run at the next tick."""
    return 0


def getcpu(call: EmulatedCall) -> int:
    """`int getcpu(unsigned *cpu, unsigned *node, …)`: this machine has one of each."""
    for address in call.args[:2]:
        if address:
            call.write(address, bytes(4))
    return 0


def sched_getaffinity(call: EmulatedCall) -> int:
    """`sched_getaffinity` of the caller: CPU 0."""
    if call.int32(0) not in (0, call.pid):
        raise NotOursError
    length = call.args[1] & 0xFFFFFFFF
    if length < 8 or length & 7:
        raise CallError(errno.EINVAL)
    call.write(call.args[2], struct.pack("<Q", 1))
    return 8


def _limit(call: EmulatedCall, resource: int) -> bytes:
    if resource >= _RLIM_COUNT:
        raise CallError(errno.EINVAL)
    shape = call.services.shape(find_process)
    return call.kernel_bytes(call.word(call.task + shape.signal_at) + shape.limits_at + 16 * resource, 16)


def getrlimit(call: EmulatedCall) -> int:
    """`int getrlimit(unsigned resource, struct rlimit *)`."""
    call.write(call.args[1], _limit(call, call.args[0] & 0xFFFFFFFF))
    return 0


def prlimit64(call: EmulatedCall) -> int:
    """`prlimit64` that only reads, of the caller; setting one is the kernel's."""
    if call.int32(0) != 0 or call.args[2]:
        raise NotOursError
    data = _limit(call, call.args[1] & 0xFFFFFFFF)
    if call.args[3]:
        call.write(call.args[3], data)
    return 0


SYSTEM: dict[str, Handler] = {
    "uname": uname,
    "sysinfo": sysinfo,
    "sched_yield": sched_yield,
    "getcpu": getcpu,
    "sched_getaffinity": sched_getaffinity,
    "getrlimit": getrlimit,
    "prlimit64": prlimit64,
}
"""By name of the call."""
