"""Who am I: process, user and group numbers, read from the guest kernel's own structures.

Why it exists: the answers must be those of the guest: its namespaces decide what number a task has.

Sources: kernel/sys.c, kernel/pid.c (`pid_nr_ns`), kernel/user_namespace.c (`from_kuid_munged`); structure offsets
from the kernel's BTF.
"""

import errno
import struct
from collections.abc import Callable

from thinbox.sandbox.call_error import CallError, NotOursError
from thinbox.sandbox.emulated_call import EmulatedCall, Handler

OVERFLOW_ID = 65534
_INLINE_EXTENTS = 5
"""UID_GID_MAP_MAX_BASE_EXTENTS (include/linux/user_namespace.h)."""
_MOST_EXTENTS = 340
"""UID_GID_MAP_MAX_EXTENTS: a page of them. More is no map of the kernel's."""
_MOST_GROUPS = 65536
"""NGROUPS_MAX (include/uapi/linux/limits.h)."""
_EXTENT_BYTES = 12
_TGID, _PGID, _SID = 1, 2, 3
"""enum pid_type (include/linux/pid.h)."""


def _number(call: EmulatedCall, pid: int, level: int) -> int:
    """`pid_nr_ns`: the number of `struct pid` as seen at `level` of its own line of namespaces."""
    types = call.services.view.facts.types
    if pid == 0 or level > call.field32(pid, "pid", "level"):
        return 0
    at = pid + types.offset_of("pid", "numbers") + level * types.size_of("upid")
    return call.field32(at, "upid", "nr")


def _own_level(call: EmulatedCall) -> int:
    return call.field32(call.field(call.task, "task_struct", "thread_pid"), "pid", "level")


def _signal_pid(call: EmulatedCall, task: int, kind: int) -> int:
    signal = call.field(task, "task_struct", "signal")
    return call.field(signal + 8 * kind, "signal_struct", "pids")


def getpid(call: EmulatedCall) -> int:
    """`pid_t getpid(void)`."""
    return _number(call, _signal_pid(call, call.task, _TGID), _own_level(call))


def gettid(call: EmulatedCall) -> int:
    """`pid_t gettid(void)`."""
    return _number(call, call.field(call.task, "task_struct", "thread_pid"), _own_level(call))


def getppid(call: EmulatedCall) -> int:
    """`pid_t getppid(void)`: 0 if the parent is outside the namespace."""
    parent = _signal_pid(call, call.field(call.task, "task_struct", "real_parent"), _TGID)
    own = _own_level(call)
    mine = _signal_pid(call, call.task, _TGID)
    types = call.services.view.facts.types
    namespace_at = types.offset_of("pid", "numbers") + own * types.size_of("upid")
    if own > call.field32(parent, "pid", "level"):
        return 0
    same = call.field(parent + namespace_at, "upid", "ns") == call.field(mine + namespace_at, "upid", "ns")
    return _number(call, parent, own) if same else 0


def _group_of(kind: int) -> Handler:
    def handler(call: EmulatedCall) -> int:
        # getpgrp() has no argument; another process's group would have to be looked up.
        if call.name != "getpgrp" and call.int32(0) != 0:
            raise NotOursError
        return _number(call, _signal_pid(call, call.task, kind), _own_level(call))

    return handler


def _extents(call: EmulatedCall, member: str) -> list[tuple[int, int, int]]:
    """The map of the task's user namespace: (first inside, first outside, how many) of each extent."""
    types = call.services.view.facts.types
    namespace = call.field(call.field(call.task, "task_struct", "cred"), "cred", "user_ns")
    table = namespace + types.offset_of("user_namespace", member)
    count = call.field32(table, "uid_gid_map", "nr_extents")
    at = table + types.offset_of("uid_gid_map", "extent")
    if count > _INLINE_EXTENTS:
        at = call.field(table, "uid_gid_map", "forward")
    if count > _MOST_EXTENTS:
        raise CallError(errno.EFAULT)
    data = call.kernel_bytes(at, count * _EXTENT_BYTES)
    return list(struct.iter_unpack("<3I", data))


def _inside(extents: list[tuple[int, int, int]], value: int) -> int:
    """`from_kuid_munged`: the id as the namespace of that map has it."""
    for first, lower, length in extents:
        if lower <= value < lower + length:
            return first + value - lower
    return OVERFLOW_ID


def _mapped(call: EmulatedCall, member: str, value: int) -> int:
    return _inside(_extents(call, member), value)


def _id(call: EmulatedCall, member: str) -> int:
    cred = call.field(call.task, "task_struct", "cred")
    return _mapped(call, "gid_map" if "gid" in member else "uid_map", call.field32(cred, "cred", member))


def _id_getter(member: str) -> Handler:
    return lambda call: _id(call, member)


def _three_ids(letter: str) -> Handler:
    def handler(call: EmulatedCall) -> int:
        values = [_id(call, f"{kind}{letter}id") for kind in ("", "e", "s")]
        for address, value in zip(call.args, values, strict=False):
            call.write(address, struct.pack("<I", value))
        return 0

    return handler


def getgroups(call: EmulatedCall) -> int:
    """`int getgroups(int size, gid_t list[])`."""
    size = call.int32(0)
    info = call.field(call.field(call.task, "task_struct", "cred"), "cred", "group_info")
    types = call.services.view.facts.types
    count = call.field32(info, "group_info", "ngroups")
    if size < 0 or 0 < size < count:
        raise CallError(errno.EINVAL)
    if count > _MOST_GROUPS:
        raise CallError(errno.EFAULT)
    if not size:
        return count
    extents, known = _extents(call, "gid_map"), dict[int, int]()
    data = call.kernel_bytes(info + types.offset_of("group_info", "gid"), 4 * count)
    for (group,) in struct.iter_unpack("<I", data):
        if group not in known:
            known[group] = _inside(extents, group)
    call.write(call.args[1], b"".join(struct.pack("<I", known[group]) for (group,) in struct.iter_unpack("<I", data)))
    return count


_GETTERS: dict[str, Callable[[EmulatedCall], int]] = {
    name: _id_getter(member)
    for name, member in (("getuid", "uid"), ("geteuid", "euid"), ("getgid", "gid"), ("getegid", "egid"))
}
IDENTITY: dict[str, Handler] = {
    "getpid": getpid,
    "gettid": gettid,
    "getppid": getppid,
    "getpgrp": _group_of(_PGID),
    "getpgid": _group_of(_PGID),
    "getsid": _group_of(_SID),
    **_GETTERS,
    "getresuid": _three_ids("u"),
    "getresgid": _three_ids("g"),
    "getgroups": getgroups,
}
"""By name of the call."""
