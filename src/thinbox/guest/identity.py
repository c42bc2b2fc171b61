"""Who a tenant runs as: `--user`, or an image's `User`, looked up in the root's own passwd and group files.

Why it exists: names mean what the image says, not what the host or the guest's agent says.
Source: moby/sys/user, `GetExecUser`, whose rules these are; that the group is also a supplementary one closes
CVE-2022-36109 there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from thinbox.errors import InputError
from thinbox.guest.agent_channel import AgentChannel, GuestScript
from thinbox.guest.in_root import read_in_root

_LARGEST_ID = (1 << 31) - 1
_FILE_LIMIT_BYTES = 1 << 20
_MAX_GROUPS = 4096
_NUMBER = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Numbers a process runs with, and its home directory."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/root"


def find_identity(agent: AgentChannel, root: str, user: str) -> GuestScript:
    """Return the `Identity` that `user` (name or number, with :group if wanted; "" is 0) is in `root`.

    Raises InputError for a name that is not there and a number out of range.
    """
    passwd = yield from read_in_root(agent, root, "/etc/passwd", _FILE_LIMIT_BYTES)
    group = yield from read_in_root(agent, root, "/etc/group", _FILE_LIMIT_BYTES)
    return resolve_identity(user, passwd, group)


def resolve_identity(user: str, passwd: bytes, group: bytes) -> Identity:
    """Return the identity `user` has by these files; raises as `find_identity`."""
    user_part, _colon, group_part = user.partition(":")
    user_part = user_part or "0"
    known = next((f for f in _fields(passwd, 6) if user_part in (f[0], f[2])), None)
    if known is not None:
        uid, gid, name = _number(known[2], user), _number(known[3], user), known[0]
        home = known[5] or "/"
    elif _NUMBER.fullmatch(user_part):
        uid, gid, name, home = _number(user_part, user), 0, None, "/"
    else:
        raise InputError(f"user {user_part!r} is not in /etc/passwd of the root file system; give a number")
    groups: list[int] = []
    if group_part:
        gid = _find_group(group_part, group, user)
    elif name is not None:
        groups = [_number(f[2], user) for f in _fields(group, 4) if name in f[3].split(",")]
    return Identity(uid, gid, tuple(dict.fromkeys((gid, *groups)))[:_MAX_GROUPS], home)


def _find_group(name: str, group: bytes, user: str) -> int:
    for fields in _fields(group, 3):
        if name in (fields[0], fields[2]):
            return _number(fields[2], user)
    if not _NUMBER.fullmatch(name):
        raise InputError(f"group {name!r} is not in /etc/group of the root file system; give a number")
    return _number(name, user)


def _fields(data: bytes, count: int) -> Iterator[list[str]]:
    """Yield the fields of each line that has at least `count`, and a name; others mean nothing."""
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        fields = line.strip().split(":")
        if len(fields) >= count and fields[0] and not fields[0].startswith("#"):
            yield fields


def _number(text: str, user: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > _LARGEST_ID:
        raise InputError(f"user {user!r}: {text!r} is no number from 0 to {_LARGEST_ID}")
    return int(text)
