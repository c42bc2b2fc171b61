"""Scheduling: policies, priorities, affinity, limits and usage."""

import errno
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import AT_LEAST_0, POSITIVE, ZERO, exactly, fails
from thinbox.harness.process import Steps

_OTHER, _FIFO, _RR, _BATCH, _IDLE, _DEADLINE = 0, 1, 2, 3, 5, 6
_NOBODY = 65534
_INT_0, _INT_10 = struct.pack("<i", 0), struct.pack("<i", 10)
_CHANGERS = ("sched_setscheduler", "sched_setparam", "sched_setaffinity", "setpriority", "ioprio_set", "sched_setattr")


def _waits_for_ever(me: Process) -> Steps:
    yield from me.must("pause")


plain("sched_yield", "nobody else", (), ZERO)
plain("sched_getscheduler", "own", (0,), exactly(_OTHER))
plain("sched_getscheduler", "of process 1", (1,), exactly(_OTHER))
plain("sched_getscheduler", "negative", (-1,), fails(errno.EINVAL))
plain("sched_getscheduler", "no such process", (30000,), fails(errno.ESRCH))
plain("sched_getparam", "own", (0, b"\xff" * 4), ZERO, holds=_INT_0)
plain("sched_getparam", "no place", (0, 0), fails(errno.EINVAL))
plain("sched_getparam", "no such process", (30000, bytes(4)), fails(errno.ESRCH))
for _policy, _low, _high in ((_OTHER, 0, 0), (_FIFO, 1, 99), (_RR, 1, 99), (_DEADLINE, 0, 0)):
    plain("sched_get_priority_max", f"policy {_policy}", (_policy,), exactly(_high))
    plain("sched_get_priority_min", f"policy {_policy}", (_policy,), exactly(_low))
plain("sched_get_priority_max", "no such policy", (77,), fails(errno.EINVAL))
plain("sched_get_priority_min", "no such policy", (77,), fails(errno.EINVAL))
for _name, _policy, _param in (
    ("FIFO", _FIFO, _INT_10),
    ("RR", _RR, _INT_10),
    ("BATCH", _BATCH, _INT_0),
    ("IDLE", _IDLE, _INT_0),
):

    @success("sched_setscheduler", f"SCHED_{_name}")
    def sched_setscheduler(process: Process, policy: int = _policy, param: bytes = _param) -> Steps:
        yield from process.measure(0, policy, param, expect=ZERO)
        found = yield from process.must("sched_getscheduler", 0)
        process.check(found == policy, "the new policy")


plain("sched_setscheduler", "no such policy", (0, 77, _INT_0), fails(errno.EINVAL))
plain("sched_setscheduler", "priority too high", (0, _FIFO, struct.pack("<i", 100)), fails(errno.EINVAL))
plain("sched_setscheduler", "no such process", (30000, _FIFO, _INT_10), fails(errno.ESRCH))
plain("sched_setscheduler", "bad address", (0, _FIFO, 1), fails(errno.EFAULT))
plain("sched_setparam", "to what it is", (0, _INT_0), ZERO)
plain("sched_setparam", "a priority that the policy has not", (0, _INT_10), fails(errno.EINVAL))


@success("sched_setparam", "of a real-time process")
def sched_setparam(process: Process) -> Steps:
    yield from process.must("sched_setscheduler", 0, _RR, _INT_10)
    yield from process.measure(0, struct.pack("<i", 20), expect=ZERO)
    place = process.buffer(4)
    yield from process.must("sched_getparam", 0, place)
    process.check(process.read_int(place) == 20, "the new priority")


@success("sched_yield", "to a child")
def sched_yield_child(process: Process) -> Steps:
    word = process.buffer(4)

    def child(me: Process) -> Steps:
        me.write(word, b"seen")
        yield from me.must("getpid")

    pid = yield from process.fork(child)
    yield from process.measure(expect=ZERO)
    yield from process.wait(pid)
    process.check(process.read(word, 4) == b"seen", "the child ran")


plain(
    "sched_rr_get_interval",
    "of a normal process",
    (0, bytes(16)),
    ZERO,
    holds=lambda data: abi.words(data)[0] == 0 <= abi.words(data)[1] < 10**9,
)
plain("sched_rr_get_interval", "negative", (-1, bytes(16)), fails(errno.EINVAL))
plain("sched_rr_get_interval", "bad address", (0, 1), fails(errno.EFAULT))


@success("sched_rr_get_interval", "of a round-robin process")
def sched_rr_get_interval(process: Process) -> Steps:
    yield from process.must("sched_setscheduler", 0, _RR, _INT_10)
    place = process.buffer(16)
    yield from process.measure(0, place, expect=ZERO)
    process.check(process.read(place, 16) == abi.timespec(0, 100_000_000), "100 ms")


# -- struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, clamps --------
def _attr(policy: int, *, nice: int = 0, priority: int = 0, times_ns: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    return struct.pack("<IIQiIQQQII", 56, policy, 0, nice, priority, *times_ns, 0, 0)


_TIMES = slice(24, 48)


def _is_set(found: bytes, wanted: bytes) -> bool:
    """Whether a struct sched_attr is as wanted: its times too, where it has any. Since 6.12 (sched/fair: Implement a
    custom slice) an ordinary task's have its slice, and since 6.16 a deadline may have a flag more."""
    head = slice(0, 8)
    same = found[head] == wanted[head] and found[16:24] == wanted[16:24]
    return same and (not any(wanted[_TIMES]) or found[_TIMES] == wanted[_TIMES])


plain("sched_getattr", "own", (0, bytes(56), 56, 0), ZERO, holds=lambda data: _is_set(data, _attr(_OTHER)))
plain("sched_getattr", "own, the first version", (0, bytes(48), 48, 0), ZERO)
plain("sched_getattr", "too short", (0, bytes(48), 40, 0), fails(errno.EINVAL))
plain("sched_getattr", "no such process", (30000, bytes(56), 56, 0), fails(errno.ESRCH))
for _name, _content in (
    ("a nice value", _attr(_OTHER, nice=5)),
    ("SCHED_BATCH", _attr(_BATCH, nice=3)),
    ("SCHED_FIFO", _attr(_FIFO, priority=10)),
    ("SCHED_DEADLINE", _attr(_DEADLINE, times_ns=(1_000_000, 5_000_000, 10_000_000))),
):

    @success("sched_setattr", _name)
    def sched_setattr(process: Process, content: bytes = _content) -> Steps:
        yield from process.measure(0, content, 0, expect=ZERO)
        place = process.buffer(56)
        yield from process.must("sched_getattr", 0, place, 56, 0)
        process.check(_is_set(process.read(place, 56), content), "what was set")


plain("sched_setattr", "no such policy", (0, _attr(77), 0), fails(errno.EINVAL))
plain("sched_setattr", "unknown flags", (0, _attr(0), 1), fails(errno.EINVAL))
plain("sched_setattr", "a deadline after the period", (0, _attr(_DEADLINE, times_ns=(9, 8, 7)), 0), fails(errno.EINVAL))
plain("sched_setattr", "bad address", (0, 1, 0), fails(errno.EFAULT))

# -- affinity, the CPU --------------------------------------------------------------------------------
plain("sched_getaffinity", "own", (0, 8, bytes(8)), exactly(8), holds=struct.pack("<Q", 1))
plain("sched_getaffinity", "room for many CPUs", (0, 1024, bytes(1024)), POSITIVE, holds=b"\1" + bytes(1023))
plain("sched_getaffinity", "no room", (0, 1, bytes(8)), fails(errno.EINVAL))
plain("sched_getaffinity", "no such process", (30000, 8, bytes(8)), fails(errno.ESRCH))
plain("sched_setaffinity", "the only CPU", (0, 8, struct.pack("<Q", 1)), ZERO)
plain("sched_setaffinity", "all CPUs", (0, 8, b"\xff" * 8), ZERO)
plain("sched_setaffinity", "a CPU that is not there", (0, 8, struct.pack("<Q", 2)), fails(errno.EINVAL))
plain("sched_setaffinity", "bad address", (0, 8, 1), fails(errno.EFAULT))
plain("getcpu", "CPU and node", (b"\xff" * 4, 0, 0), ZERO, holds=_INT_0)
plain("getcpu", "the node only", (0, b"\xff" * 4, 0), ZERO, holds=_INT_0)
plain("getcpu", "bad address", (1, 0, 0), fails(errno.EFAULT))

# -- nice values: the call returns 20 - nice ----------------------------------------------------------
# The process is in group 0, and so are kernel threads, some with nice -20.
for _name, _which, _who, _best in (
    ("process", 0, 0, 20),
    ("group", 1, 0, 40),
    ("user", 2, 0, 40),
    ("process 1", 0, 1, 20),
):
    plain("getpriority", f"of the {_name}", (_which, _who), exactly(_best))
    if _who == 0:
        plain("setpriority", f"of the {_name}", (_which, _who, 7), ZERO)
plain("getpriority", "no such kind", (3, 0), fails(errno.EINVAL))
plain("getpriority", "no such process", (0, 30000), fails(errno.ESRCH))
plain("setpriority", "no such kind", (3, 0, 0), fails(errno.EINVAL))
plain("setpriority", "no such process", (0, 30000, 0), fails(errno.ESRCH))


@success("setpriority", "is seen by getpriority")
def setpriority_seen(process: Process) -> Steps:
    yield from process.measure(0, 0, -15, expect=ZERO)
    found = yield from process.must("getpriority", 0, 0)
    process.check(found == 35, "20 + 15")


# -- priorities of I/O: class << 13 | level -----------------------------------------------------------
plain("ioprio_get", "own", (1, 0), AT_LEAST_0)
plain("ioprio_get", "of the group", (2, 0), AT_LEAST_0)
plain("ioprio_get", "of the user", (3, 0), AT_LEAST_0)
plain("ioprio_get", "no such kind", (9, 0), fails(errno.EINVAL))
plain("ioprio_get", "no such process", (1, 30000), fails(errno.ESRCH))
for _name, _value in (("real time", 1 << 13 | 4), ("best effort", 2 << 13 | 7), ("idle", 3 << 13)):

    @success("ioprio_set", _name)
    def ioprio_set(process: Process, value: int = _value) -> Steps:
        yield from process.measure(1, 0, value, expect=ZERO)
        found = yield from process.must("ioprio_get", 1, 0)
        process.check(found == value, "what was set")


plain("ioprio_set", "no such class", (1, 0, 5 << 13), fails(errno.EINVAL))
plain("ioprio_set", "no such process", (1, 30000, 2 << 13), fails(errno.ESRCH))

_ASKED = {
    "sched_setscheduler": (0, _FIFO, _INT_10),
    "sched_setparam": (1, _INT_0),
    "sched_setaffinity": (1, 8, struct.pack("<Q", 1)),
    "setpriority": (0, 0, -5),
    "ioprio_set": (1, 0, 1 << 13),
    "sched_setattr": (0, _attr(_FIFO, priority=10), 0),
}
for _call in _CHANGERS:

    @error(_call, "by nobody")
    def refused(process: Process, asked: tuple[int | bytes, ...] = _ASKED[_call]) -> Steps:
        yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
        yield from process.measure(*asked, expect=fails(errno.EPERM, errno.EACCES))


# -- limits and usage ---------------------------------------------------------------------------------
_INFINITE = (1 << 64) - 1
_NOFILE = struct.pack("<2Q", 1024, 4096)
_LIMITS = {
    "CPU": (0, _INFINITE, _INFINITE),
    "FSIZE": (1, _INFINITE, _INFINITE),
    "DATA": (2, _INFINITE, _INFINITE),
    "STACK": (3, 8 << 20, _INFINITE),
    "CORE": (4, 0, _INFINITE),
    "RSS": (5, _INFINITE, _INFINITE),
    "NOFILE": (7, 1024, 4096),
    "MEMLOCK": (8, 8 << 20, 8 << 20),
    "AS": (9, _INFINITE, _INFINITE),
    "LOCKS": (10, _INFINITE, _INFINITE),
    "MSGQUEUE": (12, 819200, 819200),
    "NICE": (13, 0, 0),
    "RTPRIO": (14, 0, 0),
    "RTTIME": (15, _INFINITE, _INFINITE),
}
"""What the first process of a kernel has (include/asm-generic/resource.h)."""
for _name, (_number, _soft, _hard) in _LIMITS.items():
    plain("getrlimit", f"RLIMIT_{_name}", (_number, bytes(16)), ZERO, holds=struct.pack("<2Q", _soft, _hard))
for _name, _number in (("NPROC", 6), ("SIGPENDING", 11)):
    # By the size of memory; both limits are the same.
    plain(
        "getrlimit", f"RLIMIT_{_name}", (_number, bytes(16)), ZERO, holds=lambda data: data[:8] == data[8:] > bytes(8)
    )
plain("getrlimit", "no such limit", (16, bytes(16)), fails(errno.EINVAL))
plain("getrlimit", "bad address", (7, 1), fails(errno.EFAULT))
plain("setrlimit", "no such limit", (16, bytes(16)), fails(errno.EINVAL))
plain("setrlimit", "soft above hard", (7, struct.pack("<2Q", 2, 1)), fails(errno.EINVAL))
plain("setrlimit", "bad address", (7, 1), fails(errno.EFAULT))
plain("prlimit64", "ask, descriptors", (0, 7, 0, bytes(16)), ZERO, holds=_NOFILE)
plain("prlimit64", "no such process", (30000, 7, 0, bytes(16)), fails(errno.ESRCH))
plain("prlimit64", "no such limit", (0, 16, 0, bytes(16)), fails(errno.EINVAL))


@success("setrlimit", "descriptors: the limit holds")
def setrlimit_nofile(process: Process) -> Steps:
    yield from process.measure(7, struct.pack("<2Q", 4, 4), expect=ZERO)
    yield from process.must("dup", 0)
    result = yield from process.call("dup", 0)
    process.check(result == -errno.EMFILE, "no fifth descriptor")


@success("setrlimit", "CPU time")
def setrlimit_cpu(process: Process) -> Steps:
    yield from process.measure(0, struct.pack("<2Q", 100, 200), expect=ZERO)
    place = process.buffer(16)
    yield from process.must("getrlimit", 0, place)
    process.check(process.read(place, 16) == struct.pack("<2Q", 100, 200), "what was set")


@error("setrlimit", "a higher hard limit, by nobody")
def setrlimit_nobody(process: Process) -> Steps:
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(7, struct.pack("<2Q", 1 << 18, 1 << 18), expect=fails(errno.EPERM))


@success("prlimit64", "of a child, set and asked")
def prlimit64_child(process: Process) -> Steps:
    pid = yield from process.fork(_waits_for_ever)
    place = process.buffer(16)
    yield from process.measure(pid, 7, struct.pack("<2Q", 30, 40), place, expect=ZERO)
    process.check(process.read(place, 16) == _NOFILE, "the limits before")
    yield from process.must("prlimit64", pid, 7, 0, place)
    process.check(process.read(place, 16) == struct.pack("<2Q", 30, 40), "the limits after")


@error("prlimit64", "of process 1, by nobody")
def prlimit64_nobody(process: Process) -> Steps:
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(1, 7, 0, process.buffer(16), expect=fails(errno.EPERM))


_MAXRSS = 4
plain("getrusage", "of the process", (0, bytes(144)), ZERO, varies=True, holds=any)
plain("getrusage", "of the thread", (1, bytes(144)), ZERO, varies=True, holds=any)
plain("getrusage", "of its children: none yet", (-1, bytes(144)), ZERO, holds=bytes(144))
plain("getrusage", "of nobody", (5, bytes(144)), fails(errno.EINVAL))
plain("getrusage", "bad address", (0, 1), fails(errno.EFAULT))


@success("getrusage", "of a child that was waited for")
def getrusage_children(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        yield from me.must("mmap", 0, 100 * abi.PAGE, 3, 0x8022, -1, 0)

    pid = yield from process.fork(child)
    yield from process.wait(pid)
    place = process.buffer(144)
    process.volatile(place, 32)
    yield from process.measure(-1, place, expect=ZERO)
    # Since 6.2 (mm: convert mm's rss stats into percpu_counter) what each CPU counted may be missing.
    process.check(any(process.read(place, 144)), "something was counted")
