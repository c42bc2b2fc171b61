"""Futexes: waiting, waking, requeueing, with priority inheritance, several at once."""

import errno
import struct

from thinbox.audit import abi
from thinbox.audit.case import Body, error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import ZERO, exactly, fails
from thinbox.harness.process import Steps

_WAIT, _WAKE, _REQUEUE, _CMP_REQUEUE, _WAKE_OP = 0, 1, 3, 4, 5
_LOCK_PI, _UNLOCK_PI, _TRYLOCK_PI, _WAIT_BITSET, _WAKE_BITSET = 6, 7, 8, 9, 10
_WAIT_REQUEUE_PI, _CMP_REQUEUE_PI, _LOCK_PI2 = 11, 12, 13
_PRIVATE, _REALTIME = 128, 256
_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)
_WORD = bytes(4)
_ANY = 0xFFFFFFFF
_FUTEX_32 = 2


def _sleep(process: Process) -> Steps:
    yield from process.must("nanosleep", _SLEEP, 0)


def _waker(word: int, operation: int = _WAKE, *more: int) -> Body:
    """A child that wakes whoever waits on `word`, later."""

    def child(me: Process) -> Steps:
        yield from _sleep(me)
        yield from me.must("futex", word, operation, 1, *(more or (0, 0, 0)))

    return child


def _waiter(word: int, operation: int = _WAIT, bits: int = 0) -> Body:
    def child(me: Process) -> Steps:
        yield from me.must("futex", word, operation, 0, 0, 0, bits)

    return child


# -- refused at once ----------------------------------------------------------------------------------
plain("futex", "FUTEX_WAIT, the value has changed", (_WORD, _WAIT, 1, 0, 0, 0), fails(errno.EAGAIN))
plain("futex", "FUTEX_WAIT, none wakes it", (_WORD, _WAIT, 0, _SLEEP, 0, 0), fails(errno.ETIMEDOUT))
plain(
    "futex",
    "FUTEX_WAIT_BITSET, a time that is past",
    (_WORD, _WAIT_BITSET, 0, abi.timespec(0), 0, _ANY),
    fails(errno.ETIMEDOUT),
)
plain("futex", "FUTEX_WAIT_BITSET, no bits", (_WORD, _WAIT_BITSET, 0, 0, 0, 0), fails(errno.EINVAL))
plain("futex", "FUTEX_WAIT, not aligned", (0x400001, _WAIT, 0, 0, 0, 0), fails(errno.EINVAL))
plain("futex", "FUTEX_WAIT, bad address", (0x10000, _WAIT, 0, 0, 0, 0), fails(errno.EFAULT))
plain("futex", "FUTEX_WAIT, no time", (_WORD, _WAIT, 0, abi.timespec(0, 10**9), 0, 0), fails(errno.EINVAL))
plain("futex", "unknown operation", (_WORD, 99, 0, 0, 0, 0), fails(errno.ENOSYS))
plain("futex", "FUTEX_UNLOCK_PI, not the owner", (_WORD, _UNLOCK_PI, 0, 0, 0, 0), fails(errno.EPERM))
plain("futex", "FUTEX_FD, taken away", (_WORD, 2, 0, 0, 0, 0), fails(errno.ENOSYS))
plain("futex", "FUTEX_WAKE, nobody waits", (_WORD, _WAKE, 1, 0, 0, 0), ZERO)
plain("futex", "FUTEX_WAKE, private, nobody waits", (_WORD, _WAKE | _PRIVATE, 1, 0, 0, 0), ZERO)

# -- waiting and waking -------------------------------------------------------------------------------
for _name, _operation, _bits in (
    ("FUTEX_WAIT until woken", _WAIT, 0),
    ("FUTEX_WAIT_BITSET until woken", _WAIT_BITSET, 1),
    ("FUTEX_WAIT_BITSET until woken, real time", _WAIT_BITSET | _REALTIME, 1),
):

    @success("futex", _name)
    def futex_wait(process: Process, operation: int = _operation, bits: int = _bits) -> Steps:
        word = process.buffer(64)
        pid = yield from process.fork(_waker(word))
        yield from process.measure(word, operation, 0, 0, 0, bits, expect=ZERO)
        yield from process.wait(pid)


@success("futex", "FUTEX_WAIT, private, woken by a thread")
def futex_wait_private(process: Process) -> Steps:
    word = process.buffer(64)
    yield from process.fork(_waker(word, _WAKE | _PRIVATE), flags=abi.THREAD)
    yield from process.measure(word, _WAIT | _PRIVATE, 0, abi.timespec(5), 0, 0, expect=ZERO)


@success("futex", "FUTEX_WAIT in memory of the process's own")
def futex_wait_anonymous(process: Process) -> Steps:
    word = yield from process.must("mmap", 0, abi.PAGE, 3, 0x8022, -1, 0)
    yield from process.fork(_waker(word), flags=abi.THREAD)
    yield from process.measure(word, _WAIT, 0, abi.timespec(5), 0, 0, expect=ZERO)


@success("futex", "FUTEX_WAKE, one of two")
def futex_wake_one(process: Process) -> Steps:
    word = process.buffer(64)
    for number in (1, 2):
        yield from process.fork(_waiter(word), number)
        yield from _sleep(process)
    yield from process.measure(word, _WAKE, 1, 0, 0, 0, expect=exactly(1))
    rest = yield from process.must("futex", word, _WAKE, 9, 0, 0, 0)
    process.check(rest == 1, "the other one still waits")


@success("futex", "FUTEX_WAKE_BITSET, the one with that bit")
def futex_wake_bitset(process: Process) -> Steps:
    word = process.buffer(64)
    pids = []
    for number in (1, 2):
        pids.append((yield from process.fork(_waiter(word, _WAIT_BITSET, number), number)))
        yield from _sleep(process)
    yield from process.measure(word, _WAKE_BITSET, 9, 0, 0, 2, expect=exactly(1))
    yield from process.wait(pids[1])


for _name, _operation in (("FUTEX_REQUEUE", _REQUEUE), ("FUTEX_CMP_REQUEUE", _CMP_REQUEUE)):

    @success("futex", f"{_name}, one woken, one moved")
    def futex_requeue(process: Process, operation: int = _operation) -> Steps:
        first, second = process.buffer(64), process.buffer(64)
        for number in (1, 2):
            yield from process.fork(_waiter(first), number)
            yield from _sleep(process)
        yield from process.measure(first, operation, 1, 1, second, 0, expect=exactly(2))
        moved = yield from process.must("futex", second, _WAKE, 9, 0, 0, 0)
        process.check(moved == 1, "one waits on the second word")


@error("futex", "FUTEX_CMP_REQUEUE, the value has changed")
def futex_cmp_requeue_changed(process: Process) -> Steps:
    first, second = process.buffer(64), process.buffer(64)
    yield from process.measure(first, _CMP_REQUEUE, 1, 1, second, 7, expect=fails(errno.EAGAIN))


@success("futex", "FUTEX_WAKE_OP, changes and wakes")
def futex_wake_op(process: Process) -> Steps:
    first, second = process.buffer(64), process.buffer(64)
    pid = yield from process.fork(_waiter(first))
    yield from _sleep(process)
    # Add 5 to the second word; wake its waiters if it was 0.
    yield from process.measure(first, _WAKE_OP, 1, 1, second, 1 << 28 | 5 << 12, expect=exactly(1))
    process.check(process.read_int(second) == 5, "the second word")
    yield from process.wait(pid)


# -- priority inheritance -----------------------------------------------------------------------------
for _name, _operation in (("LOCK_PI", _LOCK_PI), ("LOCK_PI2", _LOCK_PI2), ("TRYLOCK_PI", _TRYLOCK_PI)):

    @success("futex", f"FUTEX_{_name}, free")
    def futex_lock_pi(process: Process, operation: int = _operation) -> Steps:
        word = process.buffer(64)
        tid = yield from process.must("gettid")
        yield from process.measure(word, operation, 0, 0, 0, 0, expect=ZERO)
        process.check(process.read_int(word) == tid, "the owner's id in the word")


def _pi_holder(word: int) -> Body:
    def child(me: Process) -> Steps:
        yield from me.must("futex", word, _LOCK_PI, 0, 0, 0, 0)
        yield from _sleep(me)
        yield from _sleep(me)
        yield from me.must("futex", word, _UNLOCK_PI, 0, 0, 0, 0)

    return child


@success("futex", "FUTEX_LOCK_PI, handed over by its holder")
def futex_lock_pi_contended(process: Process) -> Steps:
    word = process.buffer(64)
    pid = yield from process.fork(_pi_holder(word))
    yield from _sleep(process)
    yield from process.measure(word, _LOCK_PI, 0, 0, 0, 0, expect=ZERO)
    tid = yield from process.must("gettid")
    process.check(process.read_int(word) & 0x3FFFFFFF == tid, "the owner's id in the word")
    yield from process.wait(pid)


@success("futex", "FUTEX_UNLOCK_PI, to one who waits")
def futex_unlock_pi(process: Process) -> Steps:
    word = process.buffer(64)
    yield from process.must("futex", word, _LOCK_PI, 0, 0, 0, 0)
    pid = yield from process.fork(_pi_holder(word))
    yield from _sleep(process)
    yield from process.measure(word, _UNLOCK_PI, 0, 0, 0, 0, expect=ZERO)
    process.check(process.read_int(word) & 0x3FFFFFFF == pid, "the child's id in the word")
    yield from process.wait(pid)


@error("futex", "FUTEX_LOCK_PI, its own")
def futex_lock_pi_own(process: Process) -> Steps:
    word = process.buffer(64)
    yield from process.must("futex", word, _LOCK_PI, 0, 0, 0, 0)
    yield from process.measure(word, _LOCK_PI, 0, 0, 0, 0, expect=fails(errno.EDEADLK))


@error("futex", "FUTEX_TRYLOCK_PI, held")
def futex_trylock_pi_held(process: Process) -> Steps:
    word = process.buffer(64)
    yield from process.fork(_pi_holder(word))
    yield from _sleep(process)
    yield from process.measure(word, _TRYLOCK_PI, 0, 0, 0, 0, expect=fails(errno.EAGAIN))


@success("futex", "FUTEX_WAIT_REQUEUE_PI, as a condition variable")
def futex_wait_requeue_pi(process: Process) -> Steps:
    condition, lock = process.buffer(64), process.buffer(64)

    def child(me: Process) -> Steps:
        yield from _sleep(me)
        yield from me.must("futex", condition, _CMP_REQUEUE_PI, 1, 0, lock, 0)

    pid = yield from process.fork(child)
    yield from process.measure(condition, _WAIT_REQUEUE_PI, 0, 0, lock, 0, expect=ZERO)
    tid = yield from process.must("gettid")
    process.check(process.read_int(lock) & 0x3FFFFFFF == tid, "the lock is the waiter's")
    yield from process.wait(pid)


# -- several at once: struct futex_waitv is value, address, flags -------------------------------------
def _waitv(*words: int, value: int = 0) -> bytes:
    return b"".join(struct.pack("<QQII", value, word, _FUTEX_32, 0) for word in words)


@success("futex_waitv", "the second of two is woken")
def futex_waitv(process: Process) -> Steps:
    first, second = process.buffer(64), process.buffer(64)
    pid = yield from process.fork(_waker(second))
    yield from process.measure(_waitv(first, second), 2, 0, 0, 0, expect=exactly(1))
    yield from process.wait(pid)


@error("futex_waitv", "none wakes it")
def futex_waitv_timeout(process: Process) -> Steps:
    word, now = process.buffer(64), process.buffer(16)
    process.volatile(now, 16)
    yield from process.must("clock_gettime", 1, now)
    seconds, nanoseconds = struct.unpack("<qq", process.read(now, 16))
    process.write(now, abi.timespec(*divmod(seconds * 10**9 + nanoseconds + 3 * abi.MILLISECOND, 10**9)))
    yield from process.measure(_waitv(word), 1, 0, now, 1, expect=fails(errno.ETIMEDOUT))


@error("futex_waitv", "a value has changed")
def futex_waitv_changed(process: Process) -> Steps:
    yield from process.measure(_waitv(process.buffer(64), value=1), 1, 0, 0, 0, expect=fails(errno.EAGAIN))


plain("futex_waitv", "none", (bytes(24), 0, 0, 0, 0), fails(errno.EINVAL))
plain("futex_waitv", "unknown flags", (bytes(24), 1, 1, 0, 0), fails(errno.EINVAL))
plain("futex_waitv", "bad address", (1, 1, 0, 0, 0), fails(errno.EFAULT))
