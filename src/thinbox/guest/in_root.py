"""Open what a tenant will see under a path, before it has its root.

Why it exists: from outside the root a symlink such as `/bin -> /usr/bin` leads elsewhere. openat2 with RESOLVE_IN_ROOT
(Linux 5.6) resolves as after chroot; an older kernel resolves from outside, which is right for all but such symlinks.
"""

import errno
import struct

from thinbox.guest.agent_channel import AgentChannel, GuestScript, call

O_PATH, O_CLOEXEC = 0o10000000, 0o2000000
_RESOLVE_IN_ROOT = 0x10
_READ_AT = 256 << 10
_READ_BYTES = 64 << 10


def open_in_root(root: str, path: str, flags: int) -> GuestScript:
    """Open `path` as seen in `root`; return the descriptor or a negative errno (as a generator's value)."""
    handle = yield from call("open", root, O_PATH | O_CLOEXEC, 0)
    if handle < 0:
        return handle
    how = struct.pack("<QQQ", flags | O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    result = yield from call("openat2", handle, path, how, len(how))
    yield from call("close", handle)
    if result == -errno.ENOSYS:
        prefix = "" if root == "/" else root
        result = yield from call("open", prefix + path, flags | O_CLOEXEC, 0)
    return result


def read_in_root(agent: AgentChannel, root: str, path: str, limit_bytes: int) -> GuestScript:
    """Return the first `limit_bytes` of a file as seen in `root`, b"" if it cannot be read (as a generator's value)."""
    o_nonblock = 0o4000  # a fifo of that name must not stop us
    handle = yield from open_in_root(root, path, o_nonblock)
    if handle < 0:
        return b""
    data = bytearray()
    place = agent.area() + _READ_AT
    while len(data) < limit_bytes:
        count = yield from call("read", handle, place, min(_READ_BYTES, limit_bytes - len(data)))
        if count <= 0:
            break
        data += agent.read(place, count)
    yield from call("close", handle)
    return bytes(data)
