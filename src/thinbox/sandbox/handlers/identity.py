"""Who am I: process, user and group numbers, read from the guest kernel's own structures.

Why it exists: the answers must be those of the guest: its namespaces decide what number a task has.

Sources: kernel/sys.c, kernel/pid.c (`pid_nr_ns`), kernel/user_namespace.c (`from_kuid_munged`); where what
lies: `thinbox.kernel.identity`.
"""

import errno
import struct
from collections.abc import Callable

from thinbox.kernel.identity import IdentityShape, find_identity
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
    shape = _shape(call)
    if pid == 0 or level > call.word32(pid + shape.level_at):
        return 0
    return call.word32(pid + shape.numbers_at + level * shape.number_bytes + shape.number_at)


def _shape(call: EmulatedCall) -> IdentityShape:
    return call.services.shape(find_identity)


def _pid(call: EmulatedCall) -> int:
    return call.word(call.task + _shape(call).pid_at)


def _own_level(call: EmulatedCall) -> int:
    return call.word32(_pid(call) + _shape(call).level_at)


def _signal_pid(call: EmulatedCall, task: int, kind: int) -> int:
    shape = _shape(call)
    return call.word(call.word(task + shape.signal_at) + shape.pids_at + 8 * kind)


def getpid(call: EmulatedCall) -> int:
    """`pid_t getpid(void)`."""
    return _number(call, _signal_pid(call, call.task, _TGID), _own_level(call))


def gettid(call: EmulatedCall) -> int:
    """`pid_t gettid(void)`."""
    return _number(call, _pid(call), _own_level(call))


def getppid(call: EmulatedCall) -> int:
    """`pid_t getppid(void)`: 0 if the parent is outside the namespace."""
    shape, own = _shape(call), _own_level(call)
    parent = _signal_pid(call, call.word(call.task + shape.parent_at), _TGID)
    mine = _signal_pid(call, call.task, _TGID)
    namespace_at = shape.numbers_at + own * shape.number_bytes + shape.namespace_at
    if own > call.word32(parent + shape.level_at):
        return 0
    same = call.word(parent + namespace_at) == call.word(mine + namespace_at)
    return _number(call, parent, own) if same else 0


def _group_of(kind: int) -> Handler:
    def handler(call: EmulatedCall) -> int:
        # getpgrp() has no argument; another process's group would have to be looked up.
        if call.name != "getpgrp" and call.int32(0) != 0:
            raise NotOursError
        return _number(call, _signal_pid(call, call.task, kind), _own_level(call))

    return handler


def _cred(call: EmulatedCall) -> int:
    return call.word(call.task + _shape(call).cred_at)


def _extents(call: EmulatedCall, *, groups: bool) -> list[tuple[int, int, int]]:
    """The map of the task's user namespace: (first inside, first outside, how many) of each extent."""
    shape = _shape(call)
    namespace = call.word(_cred(call) + shape.user_namespace_at)
    table = namespace + (shape.gid_map_at if groups else shape.uid_map_at)
    count = call.word32(table + shape.extent_count_at)
    at = table + shape.extents_at
    if count > _INLINE_EXTENTS:
        at = call.word(table + shape.more_extents_at)
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


def _id(call: EmulatedCall, name: str) -> int:
    value = call.word32(_cred(call) + _shape(call).ids_at[name])
    return _inside(_extents(call, groups="gid" in name), value)


def _id_getter(name: str) -> Handler:
    return lambda call: _id(call, name)


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
    shape = _shape(call)
    info = call.word(_cred(call) + shape.groups_at)
    count = call.word32(info + shape.group_count_at)
    if size < 0 or 0 < size < count:
        raise CallError(errno.EINVAL)
    if count > _MOST_GROUPS:
        raise CallError(errno.EFAULT)
    if not size:
        return count
    extents, known = _extents(call, groups=True), dict[int, int]()
    data = call.kernel_bytes(info + shape.group_list_at, 4 * count)
    for (group,) in struct.iter_unpack("<I", data):
        if group not in known:
            known[group] = _inside(extents, group)
    call.write(call.args[1], b"".join(struct.pack("<I", known[group]) for (group,) in struct.iter_unpack("<I", data)))
    return count


_GETTERS: dict[str, Callable[[EmulatedCall], int]] = {
    name: _id_getter(which)
    for name, which in (("getuid", "uid"), ("geteuid", "euid"), ("getgid", "gid"), ("getegid", "egid"))
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
