"""Who the process is: ids, groups, capabilities, sessions, names.

The process of a case is root with all capabilities, in the process group and session 0 of the first process.
"""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.harness.process import Steps

_NOBODY = 65534
_THREE = struct.pack("<3I", 1, 2, 3)
_CAPABILITY_3 = 0x20080522
_CAP_CHOWN = 1
_UTS_FIELD = 65

plain("getpid", "plain", (), POSITIVE)
plain("gettid", "plain", (), POSITIVE)
plain("getppid", "plain", (), exactly(1))
for _name in ("getuid", "geteuid", "getgid", "getegid", "getpgrp"):
    plain(_name, "plain", (), ZERO)
plain("getpgid", "own", (0,), ZERO)
plain("getpgid", "of process 1", (1,), ZERO)
plain("getpgid", "no such process", (30000,), fails(errno.ESRCH))
plain("getsid", "own", (0,), ZERO)
plain("getsid", "no such process", (30000,), fails(errno.ESRCH))

for _kind in ("uid", "gid"):
    plain(f"set{_kind}", "to nobody", (_NOBODY,), ZERO)
    plain(f"set{_kind}", "to what it is", (0,), ZERO)
    plain(f"set{_kind}", "to no id", (-1,), fails(errno.EINVAL))
    plain(f"setre{_kind}", "both", (_NOBODY, _NOBODY), ZERO)
    plain(f"setre{_kind}", "neither", (-1, -1), ZERO)
    plain(f"setres{_kind}", "all three", (1, 2, 3), ZERO)
    plain(f"setres{_kind}", "none", (-1, -1, -1), ZERO)
    plain(f"setfs{_kind}", "to nobody", (_NOBODY,), ZERO)
    plain(f"setfs{_kind}", "no id: only asks", (-1,), ZERO)
    plain(f"getres{_kind}", "bad address", (1, 1, 1), fails(errno.EFAULT))


def _as_nobody(process: Process) -> Steps:
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)


def _ids(call: str, setter: str) -> None:
    @success(call, "after they were set")
    def body(process: Process) -> Steps:
        yield from process.must(setter, 1, 2, 3)
        places = [process.buffer(4) for _ in range(3)]
        yield from process.measure(*places, expect=ZERO)
        process.check([process.read_int(place) for place in places] == [1, 2, 3], "the ids that were set")


_ids("getresuid", "setresuid")
_ids("getresgid", "setresgid")

for _call, _asks in (
    ("setuid", (0,)),
    ("setgid", (0,)),
    ("setreuid", (0, 0)),
    ("setregid", (0, 0)),
    ("setresuid", (0, 0, 0)),
    ("setresgid", (0, 0, 0)),
):

    @error(_call, "by nobody")
    def _refused(process: Process, asks: tuple[int, ...] = _asks) -> Steps:
        yield from process.must("setresgid", _NOBODY, _NOBODY, _NOBODY)
        yield from _as_nobody(process)
        yield from process.measure(*asks, expect=fails(errno.EPERM))


@success("setfsuid", "tells the one before")
def setfsuid_before(process: Process) -> Steps:
    yield from process.must("setfsuid", 7)
    yield from process.measure(0, expect=exactly(7))


@success("setuid", "is seen by getuid")
def setuid_seen(process: Process) -> Steps:
    yield from process.measure(_NOBODY, expect=ZERO)
    uid = yield from process.call("getuid")
    process.check(uid == _NOBODY, "the new user id")


# -- groups -------------------------------------------------------------------------------------------
plain("getgroups", "how many: none", (0, 0), ZERO)
plain("getgroups", "a negative size", (-1, 0), fails(errno.EINVAL))
plain("setgroups", "three", (3, _THREE), ZERO)
plain("setgroups", "none", (0, 0), ZERO)
plain("setgroups", "too many", (65537, _THREE), fails(errno.EINVAL))
plain("setgroups", "bad address", (3, 1), fails(errno.EFAULT))


@success("getgroups", "three, unsorted when set")
def getgroups_three(process: Process) -> Steps:
    yield from process.must("setgroups", 3, struct.pack("<3I", 30, 10, 20))
    place = process.buffer(64)
    yield from process.measure(16, place, expect=exactly(3))
    process.check(process.read(place, 16) == struct.pack("<4I", 10, 20, 30, 0), "the groups in order")


@error("getgroups", "no room")
def getgroups_no_room(process: Process) -> Steps:
    yield from process.must("setgroups", 3, _THREE)
    yield from process.measure(2, process.buffer(64), expect=fails(errno.EINVAL))


@error("setgroups", "by nobody")
def setgroups_nobody(process: Process) -> Steps:
    yield from _as_nobody(process)
    yield from process.measure(3, _THREE, expect=fails(errno.EPERM))


# -- capabilities -------------------------------------------------------------------------------------
def _all_capabilities(data: bytes) -> bool:
    effective, permitted, inheritable, high, _, _ = struct.unpack("<6I", data)
    return bool(effective == permitted == 0xFFFFFFFF and inheritable == 0 and high & 0xFF == 0xFF)


plain("capget", "own", (struct.pack("<Ii", _CAPABILITY_3, 0), bytes(24)), ZERO, holds=_all_capabilities)
plain("capget", "of process 1", (struct.pack("<Ii", _CAPABILITY_3, 1), bytes(24)), ZERO, holds=_all_capabilities)
plain("capget", "unknown version, asks for the right one", (struct.pack("<Ii", 7, 0), 0), ZERO)
plain("capget", "unknown version", (struct.pack("<Ii", 7, 0), bytes(24)), fails(errno.EINVAL))
plain("capget", "no such process", (struct.pack("<Ii", _CAPABILITY_3, 30000), bytes(24)), fails(errno.ESRCH))
plain("capset", "drop all", (struct.pack("<Ii", _CAPABILITY_3, 0), bytes(24)), ZERO)
plain("capset", "of another", (struct.pack("<Ii", _CAPABILITY_3, 1), bytes(24)), fails(errno.EPERM))
plain("capset", "bad address", (1, bytes(24)), fails(errno.EFAULT))


@success("capset", "keep one")
def capset_keep_one(process: Process) -> Steps:
    header = process.buffer(struct.pack("<Ii", _CAPABILITY_3, 0))
    yield from process.measure(header, struct.pack("<6I", _CAP_CHOWN, _CAP_CHOWN, 0, 0, 0, 0), expect=ZERO)
    place = process.buffer(24)
    yield from process.must("capget", header, place)
    process.check(process.read(place, 24) == struct.pack("<6I", 1, 1, 0, 0, 0, 0), "only CAP_CHOWN")


@error("capset", "more than permitted")
def capset_more(process: Process) -> Steps:
    header = process.buffer(struct.pack("<Ii", _CAPABILITY_3, 0))
    yield from process.must("capset", header, bytes(24))
    yield from process.measure(header, struct.pack("<6I", 1, 1, 0, 0, 0, 0), expect=fails(errno.EPERM))


# -- process groups and sessions ----------------------------------------------------------------------
@success("setsid", "a new session")
def setsid(process: Process) -> Steps:
    pid = yield from process.must("getpid")
    yield from process.measure(expect=exactly(pid))
    session = yield from process.must("getsid", 0)
    process.check(session == pid, "the process leads its session")


@error("setsid", "a group leader")
def setsid_leader(process: Process) -> Steps:
    yield from process.must("setsid")
    yield from process.measure(expect=fails(errno.EPERM))


@success("setpgid", "of a child in its session")
def setpgid_child(process: Process) -> Steps:
    yield from process.must("setsid")

    def child(me: Process) -> Steps:
        yield from me.must("pause")

    pid = yield from process.fork(child)
    yield from process.measure(pid, 0, expect=ZERO)
    group = yield from process.must("getpgid", pid)
    process.check(group == pid, "the child leads its group")
    yield from process.must("kill", pid, 9)
    yield from process.wait(pid, 9)


@success("setpgid", "own group")
def setpgid_own(process: Process) -> Steps:
    yield from process.measure(0, 0, expect=ZERO)
    group = yield from process.must("getpgrp")
    pid = yield from process.must("getpid")
    process.check(group == pid, "the process leads its group")


@error("setpgid", "a session leader")
def setpgid_session_leader(process: Process) -> Steps:
    yield from process.must("setsid")
    yield from process.measure(0, 0, expect=fails(errno.EPERM))


plain("setpgid", "a stranger", (1, 0), fails(errno.ESRCH))
plain("setpgid", "negative", (0, -1), fails(errno.EINVAL))

# -- names --------------------------------------------------------------------------------------------
plain("uname", "bad address", (1,), fails(errno.EFAULT))
plain("uname", "into a buffer", (bytes(6 * _UTS_FIELD),), ZERO, holds=lambda data: data.startswith(b"Linux\0"))


def _naming(call: str, field: int) -> None:
    @success(call, "is seen by uname")
    def body(process: Process) -> Steps:
        yield from process.measure(b"audit.example", 13, expect=ZERO)
        place = process.buffer(6 * _UTS_FIELD)
        yield from process.must("uname", place)
        found = process.read(place + field * _UTS_FIELD, 14)
        process.check(found == b"audit.example\0", "the new name in uname")

    plain(call, "of 64 bytes", (b"n" * 64, 64), ZERO)
    plain(call, "too long", (b"n" * 65, 65), fails(errno.EINVAL))
    plain(call, "bad address", (1, 10), fails(errno.EFAULT))

    @error(call, "by nobody")
    def refused(process: Process) -> Steps:
        yield from _as_nobody(process)
        yield from process.measure(b"x", 1, expect=fails(errno.EPERM))


_naming("sethostname", 1)
_naming("setdomainname", 5)

# -- what a program inherits --------------------------------------------------------------------------
plain("umask", "tells the one before", (0o077,), exactly(0o022))
plain("personality", "ask", (0xFFFFFFFF,), ZERO)


@success("personality", "set and told")
def personality_set(process: Process) -> Steps:
    yield from process.must("personality", 0x0040000)  # ADDR_NO_RANDOMIZE
    yield from process.measure(0xFFFFFFFF, expect=exactly(0x0040000))


@success("umask", "is used by open")
def umask_used(process: Process) -> Steps:
    yield from process.measure(0o027, expect=exactly(0o022))
    yield from process.must("mkdir", "masked", 0o777)
    place = process.buffer(144)
    yield from process.must("stat", "masked", place)
    process.check(process.read_int(place + 24) & 0o7777 == 0o750, "0777 without 027")
