"""System V message queues, semaphores and shared memory."""

import errno
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import ADDRESS, AT_LEAST_0, ZERO, exactly, fails
from thinbox.harness.process import Steps

_CREAT, _EXCL, _NOWAIT, _NOERROR = 0o1000, 0o2000, 0o4000, 0o10000
_RMID, _SET, _STAT, _INFO = 0, 1, 2, 3
_PRIVATE = 0
_KEY = 0x1234
_NOBODY = 65534
_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)
_DS_BYTES = 120
"""The largest of struct msqid64_ds, semid64_ds, shmid64_ds; the mode is at 20, the key at 0."""


def _sleep(process: Process) -> Steps:
    yield from process.must("nanosleep", _SLEEP, 0)


# -- what the three kinds have in common --------------------------------------------------------------
for _kind, _size in (("msg", ()), ("sem", (2,)), ("shm", (5000,))):
    plain(f"{_kind}get", "a new private one", (_PRIVATE, *_size, 0o600), AT_LEAST_0)
    plain(f"{_kind}get", "a new one by key", (_KEY, *_size, _CREAT | 0o600), AT_LEAST_0)
    plain(f"{_kind}get", "no such key", (_KEY, *_size, 0), fails(errno.ENOENT))

    @success(f"{_kind}get", "one that is there")
    def get_again(process: Process, kind: str = _kind, size: tuple[int, ...] = _size) -> Steps:
        made = yield from process.must(f"{kind}get", _KEY, *size, _CREAT | 0o600)
        yield from process.measure(_KEY, *size, _CREAT | 0o600, expect=exactly(made))

    @error(f"{_kind}get", "a new one where there is one")
    def get_exclusive(process: Process, kind: str = _kind, size: tuple[int, ...] = _size) -> Steps:
        yield from process.must(f"{kind}get", _KEY, *size, _CREAT | 0o600)
        yield from process.measure(_KEY, *size, _CREAT | _EXCL | 0o600, expect=fails(errno.EEXIST))

    @error(f"{_kind}get", "root's, by nobody")
    def get_nobody(process: Process, kind: str = _kind, size: tuple[int, ...] = _size) -> Steps:
        yield from process.must(f"{kind}get", _KEY, *size, _CREAT | 0o600)
        yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
        yield from process.measure(_KEY, *size, 0o600, expect=fails(errno.EACCES))

    @success(f"{_kind}ctl", "IPC_RMID")
    def remove(process: Process, kind: str = _kind, size: tuple[int, ...] = _size) -> Steps:
        made = yield from process.must(f"{kind}get", _KEY, *size, _CREAT | 0o600)
        yield from process.measure(made, *((0,) if kind == "sem" else ()), _RMID, 0, expect=ZERO)
        gone = yield from process.call(f"{kind}get", _KEY, *size, 0)
        process.check(gone == -errno.ENOENT, "it is gone")

    @success(f"{_kind}ctl", "IPC_STAT")
    def stat(process: Process, kind: str = _kind, size: tuple[int, ...] = _size) -> Steps:
        made = yield from process.must(f"{kind}get", _KEY, *size, _CREAT | 0o640)
        place = process.buffer(_DS_BYTES)
        process.volatile(place, _DS_BYTES)  # It holds times.
        yield from process.measure(made, *((0,) if kind == "sem" else ()), _STAT, place, expect=ZERO)
        process.check((process.read_int(place), process.read_int(place + 20) & 0o777) == (_KEY, 0o640), "key, mode")

    @success(f"{_kind}ctl", "IPC_SET")
    def change(process: Process, kind: str = _kind, size: tuple[int, ...] = _size) -> Steps:
        made = yield from process.must(f"{kind}get", _KEY, *size, _CREAT | 0o640)
        first = (made, 0) if kind == "sem" else (made,)
        place = process.buffer(_DS_BYTES)
        process.volatile(place, _DS_BYTES)
        yield from process.must(f"{kind}ctl", *first, _STAT, place)
        process.write(place + 20, struct.pack("<I", 0o604))
        yield from process.measure(*first, _SET, place, expect=ZERO)
        yield from process.must(f"{kind}ctl", *first, _STAT, place)
        process.check(process.read_int(place + 20) & 0o777 == 0o604, "the new mode")

    @success(f"{_kind}ctl", "IPC_INFO")
    def info(process: Process, kind: str = _kind) -> Steps:
        place = process.buffer(128)
        yield from process.measure(0, *((0,) if kind == "sem" else ()), _INFO, place)
        process.check(any(process.read(place, 64)), "limits")

    _ask = (99, 0, _STAT) if _kind == "sem" else (99, _STAT)
    plain(f"{_kind}ctl", "no such id", (*_ask, bytes(_DS_BYTES)), fails(errno.EINVAL))


# -- messages: a long type, then the text -------------------------------------------------------------
def _queue(process: Process, *texts: tuple[int, bytes]) -> Steps:
    made = yield from process.must("msgget", _PRIVATE, 0o600)
    for kind, text in texts:
        yield from process.must("msgsnd", made, struct.pack("<q", kind) + text, len(text), 0)
    return made


for _length in (0, 1, 100, 5000, 8192):

    @success("msgsnd", f"{_length} bytes")
    def msgsnd(process: Process, size: int = _length) -> Steps:
        made = yield from _queue(process)
        yield from process.measure(made, process.buffer(struct.pack("<q", 3) + b"m" * size), size, 0, expect=ZERO)
        place = process.buffer(8 + size)
        got = yield from process.must("msgrcv", made, place, size, 0, 0)
        process.check(got == size and process.read(place + 8, size) == b"m" * size, "the message")


for _name, _wanted, _type, _text in (
    ("the first", 0, 5, b"five"),
    ("of a type", 2, 2, b"two!"),
    ("of the lowest type", -4, 2, b"two!"),
):

    @success("msgrcv", _name)
    def msgrcv(process: Process, wanted: int = _wanted, kind: int = _type, text: bytes = _text) -> Steps:
        made = yield from _queue(process, (5, b"five"), (2, b"two!"), (3, b"thre"))
        place = process.buffer(16)
        yield from process.measure(made, place, 8, wanted, 0, expect=exactly(4))
        process.check(process.read(place, 12) == struct.pack("<q", kind) + text, "type and text")


@success("msgrcv", "that is sent later")
def msgrcv_later(process: Process) -> Steps:
    made, place = (yield from _queue(process)), process.buffer(16)

    def child(me: Process) -> Steps:
        yield from _sleep(me)
        yield from me.must("msgsnd", made, struct.pack("<q", 1) + b"late", 4, 0)

    pid = yield from process.fork(child)
    yield from process.measure(made, place, 8, 0, 0, expect=exactly(4))
    yield from process.wait(pid)


@success("msgrcv", "cut to the room there is")
def msgrcv_cut(process: Process) -> Steps:
    made, place = (yield from _queue(process, (1, b"long text"))), process.buffer(16)
    yield from process.measure(made, place, 4, 0, _NOERROR, expect=exactly(4))
    process.check(process.read(place + 8, 5) == b"long\0", "the beginning")


@success("msgrcv", "a copy")
def msgrcv_copy(process: Process) -> Steps:
    made, place = (yield from _queue(process, (1, b"text"))), process.buffer(16)
    yield from process.measure(made, place, 8, 0, 0o40000 | _NOWAIT, expect=exactly(4))
    again = yield from process.must("msgrcv", made, place, 8, 0, 0)
    process.check(again == 4, "the message is still there")


@success("msgsnd", "waits for room")
def msgsnd_waits(process: Process) -> Steps:
    made = yield from _queue(process, (1, b"x" * 8000), (1, b"x" * 8000))

    def child(me: Process) -> Steps:
        yield from _sleep(me)
        yield from me.must("msgrcv", made, me.buffer(8008), 8000, 0, 0)

    pid = yield from process.fork(child)
    yield from process.measure(made, process.buffer(struct.pack("<q", 1) + b"y" * 1000), 1000, 0, expect=ZERO)
    yield from process.wait(pid)


@error("msgrcv", "too long for the room")
def msgrcv_long(process: Process) -> Steps:
    made = yield from _queue(process, (1, b"long text"))
    yield from process.measure(made, process.buffer(16), 4, 0, 0, expect=fails(errno.E2BIG))


@error("msgrcv", "none there, without waiting")
def msgrcv_none(process: Process) -> Steps:
    made = yield from _queue(process)
    yield from process.measure(made, process.buffer(16), 4, 0, _NOWAIT, expect=fails(errno.ENOMSG))


@error("msgsnd", "no room, without waiting")
def msgsnd_full(process: Process) -> Steps:
    made = yield from _queue(process, (1, b"x" * 8000), (1, b"x" * 8000))
    args = made, process.buffer(struct.pack("<q", 1) + b"y" * 1000), 1000, _NOWAIT
    yield from process.measure(*args, expect=fails(errno.EAGAIN))


plain("msgsnd", "no such queue", (99, struct.pack("<q", 1), 0, 0), fails(errno.EINVAL))
plain("msgsnd", "type 0", (0, struct.pack("<q", 0), 0, 0), fails(errno.EINVAL))
plain("msgsnd", "bad address", (0, 1, 0, 0), fails(errno.EFAULT))
plain("msgrcv", "no such queue", (99, bytes(16), 8, 0, 0), fails(errno.EINVAL))


# -- semaphores: struct sembuf is number, change, flags -----------------------------------------------
def _sembuf(*changes: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<Hhh", *change) for change in changes)


def _semaphores(process: Process, *values: int) -> Steps:
    made = yield from process.must("semget", _PRIVATE, len(values), 0o600)
    yield from process.must("semctl", made, 0, 17, struct.pack(f"<{len(values)}H", *values))
    return made


_GETPID, _GETVAL, _GETALL, _GETNCNT, _GETZCNT, _SETVAL, _SETALL = 11, 12, 13, 14, 15, 16, 17
for _name, _command, _argument, _result in (
    ("GETVAL", _GETVAL, 0, 7),
    ("GETNCNT", _GETNCNT, 0, 0),
    ("GETZCNT", _GETZCNT, 0, 0),
    ("SETVAL", _SETVAL, 9, 0),
):

    @success("semctl", _name)
    def semctl(process: Process, command: int = _command, argument: int = _argument, result: int = _result) -> Steps:
        made = yield from _semaphores(process, 5, 7)
        yield from process.measure(made, 1, command, argument, expect=exactly(result))
        value = yield from process.must("semctl", made, 1, _GETVAL, 0)
        process.check(value == (argument or 7), "the value")


@success("semctl", "GETALL")
def semctl_getall(process: Process) -> Steps:
    made, place = (yield from _semaphores(process, 5, 7)), process.buffer(4)
    yield from process.measure(made, 0, _GETALL, place, expect=ZERO)
    process.check(process.read(place, 4) == struct.pack("<2H", 5, 7), "both values")


@success("semctl", "SETALL and GETPID")
def semctl_setall(process: Process) -> Steps:
    made = yield from _semaphores(process, 5, 7)
    yield from process.measure(made, 0, _SETALL, struct.pack("<2H", 1, 2), expect=ZERO)
    who, own = (yield from process.must("semctl", made, 0, _GETPID, 0)), (yield from process.must("getpid"))
    process.check(who == own, "who changed it last")


for _call, _more in (("semop", ()), ("semtimedop", (abi.timespec(9),))):

    @success(_call, "two at once")
    def semop(process: Process, more: tuple[bytes, ...] = _more) -> Steps:
        made = yield from _semaphores(process, 5, 7)
        yield from process.measure(made, _sembuf((0, -5, 0), (1, 1, 0)), 2, *more, expect=ZERO)
        place = process.buffer(4)
        yield from process.must("semctl", made, 0, _GETALL, place)
        process.check(process.read(place, 4) == struct.pack("<2H", 0, 8), "both values")

    @success(_call, "waits until it is raised")
    def semop_waits(process: Process, more: tuple[bytes, ...] = _more) -> Steps:
        made = yield from _semaphores(process, 0)

        def child(me: Process) -> Steps:
            yield from _sleep(me)
            yield from me.must("semop", made, _sembuf((0, 1, 0)), 1)

        pid = yield from process.fork(child)
        yield from process.measure(made, _sembuf((0, -1, 0)), 1, *more, expect=ZERO)
        yield from process.wait(pid)

    @error(_call, "it would have to wait")
    def semop_nowait(process: Process, more: tuple[bytes, ...] = _more) -> Steps:
        made = yield from _semaphores(process, 0)
        yield from process.measure(made, _sembuf((0, -1, _NOWAIT)), 1, *more, expect=fails(errno.EAGAIN))

    @error(_call, "no such semaphore in the set")
    def semop_number(process: Process, more: tuple[bytes, ...] = _more) -> Steps:
        made = yield from _semaphores(process, 0)
        yield from process.measure(made, _sembuf((5, 1, 0)), 1, *more, expect=fails(errno.EFBIG))


@success("semop", "undone when the child ends")
def semop_undo(process: Process) -> Steps:
    made = yield from _semaphores(process, 5)

    def child(me: Process) -> Steps:
        yield from me.measure(made, _sembuf((0, -3, 0o10000)), 1, expect=ZERO)

    pid = yield from process.fork(child)
    yield from process.wait(pid)
    value = yield from process.must("semctl", made, 0, _GETVAL, 0)
    process.check(value == 5, "the value before")


@success("semop", "waits for zero")
def semop_zero(process: Process) -> Steps:
    made = yield from _semaphores(process, 0)
    yield from process.measure(made, _sembuf((0, 0, 0)), 1, expect=ZERO)


@error("semtimedop", "none raises it")
def semtimedop_timeout(process: Process) -> Steps:
    made = yield from _semaphores(process, 0)
    yield from process.measure(made, _sembuf((0, -1, 0)), 1, _SLEEP, expect=fails(errno.EAGAIN))


# -- shared memory ------------------------------------------------------------------------------------
_RDONLY, _RND, _REMAP, _EXEC = 0o10000, 0o20000, 0o40000, 0o100000
_AT = 0x7000_0000_0000
for _name, _where, _flags in (("anywhere", 0, 0), ("to read", 0, _RDONLY), ("to execute", 0, _EXEC)):

    @success("shmat", _name)
    def shmat(process: Process, where: int = _where, flags: int = _flags) -> Steps:
        made = yield from process.must("shmget", _PRIVATE, 5000, 0o700)
        yield from process.measure(made, where, flags, expect=ADDRESS)


for _name, _where, _flags in (("at an address", _AT, 0), ("at an address, rounded", _AT + 5, _RND)):

    @success("shmat", _name)
    def shmat_at(process: Process, where: int = _where, flags: int = _flags) -> Steps:
        made = yield from process.must("shmget", _PRIVATE, 5000, 0o600)
        yield from process.measure(made, where, flags, expect=exactly(_AT))


@success("shmat", "over another mapping")
def shmat_remap(process: Process) -> Steps:
    made = yield from process.must("shmget", _PRIVATE, 5000, 0o600)
    place = yield from process.must("mmap", 0, 2 * abi.PAGE, 3, 0x22, -1, 0)
    yield from process.measure(made, place, _REMAP, expect=exactly(place))


@success("shmat", "what a child wrote there")
def shmat_shared(process: Process) -> Steps:
    made = yield from process.must("shmget", _PRIVATE, 5000, 0o600)
    handle = yield from process.must("open", "file", 0, 0)

    def child(me: Process) -> Steps:
        place = yield from me.must("shmat", made, 0, 0)
        yield from me.must("pread64", handle, place + 4090, 20, 0)

    pid = yield from process.fork(child)
    yield from process.wait(pid)
    place = yield from process.measure(made, 0, 0, expect=ADDRESS)
    ends, copy = process.buffer(8), process.buffer(20)
    yield from process.must("pipe", ends)
    yield from process.must("write", process.read_int(ends + 4), place + 4090, 20)
    yield from process.must("read", process.read_int(ends), copy, 20)
    process.check(process.read(copy, 10) == b"line 00000", "the beginning of the file")


@success("shmdt", "what was attached")
def shmdt(process: Process) -> Steps:
    made = yield from process.must("shmget", _PRIVATE, 5000, 0o600)
    place = yield from process.must("shmat", made, 0, 0)
    yield from process.measure(place, expect=ZERO)
    gone = yield from process.call("mincore", place, abi.PAGE, bytes(8))
    process.check(gone == -errno.ENOMEM, "nothing is mapped there")


for _name, _command in (("SHM_LOCK", 11), ("SHM_UNLOCK", 12)):

    @success("shmctl", _name)
    def shmctl_lock(process: Process, command: int = _command) -> Steps:
        made = yield from process.must("shmget", _PRIVATE, 5000, 0o600)
        yield from process.measure(made, command, 0, expect=ZERO)


plain("shmat", "no such id", (99, 0, 0), fails(errno.EINVAL))
plain("shmdt", "nothing there", (0x10000,), fails(errno.EINVAL))
plain("shmdt", "not a page's address", (0x10001,), fails(errno.EINVAL))
plain("shmget", "of no size", (_PRIVATE, 0, 0o600), fails(errno.EINVAL))
plain("shmget", "large pages, none there", (_PRIVATE, 2 << 20, 0o4000 | 0o600), fails(errno.ENOMEM))
plain("semget", "too many", (_PRIVATE, 1 << 20, 0o600), fails(errno.EINVAL))


@error("shmat", "not aligned")
def shmat_unaligned(process: Process) -> Steps:
    made = yield from process.must("shmget", _PRIVATE, 5000, 0o600)
    yield from process.measure(made, _AT + 5, 0, expect=fails(errno.EINVAL))
