"""Put a root file system of the user's into the guest: one entry after the other, by the agent.

Why it exists: no block device and no 9P in a cloud kernel without modules; a tmpfs and ordinary calls
need nothing. A file's bytes go through the scratch, 512 KiB a call.
"""

import errno
import os
import struct
from collections.abc import Iterable

from thinbox.errors import RootfsError
from thinbox.guest.agent_channel import AgentChannel, GuestScript, call, must
from thinbox.guest.rootfs_entry import EntryKind, RootfsEntry, show_path

ROOT = "/mnt/tenant"
CHUNK_BYTES = 512 << 10
_BUFFER_AT = 192 << 10
_O_WRONLY_CREAT_TRUNC = 0o1 | 0o100 | 0o1000
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_NODE_KINDS = {EntryKind.FIFO: 0o010000, EntryKind.CHAR: 0o020000, EntryKind.BLOCK: 0o060000}
_BIND = 0x1000
_REC = 0x4000
_REMOUNT, _RDONLY, _NOSUID = 0x20, 1, 2
_CAPABILITY = "security.capability"

WORKING_BYTES = 64 << 20
"""Memory that has to stay free beside a root file system: programs, their page tables, the kernel's caches."""
_MEMORY_STEP_MIB = 64
_FREE_AT = 40
"""Offset of `freeram` in struct sysinfo (include/uapi/linux/sysinfo.h); `mem_unit` is 1 on 64-bit machines."""


def require_room(agent: AgentChannel, need_bytes: int, memory_mib: int, maximum_mib: int) -> GuestScript:
    """Raise RootfsError, with the --memory to give, unless `need_bytes` of files leave `WORKING_BYTES` free."""
    yield from must("sysinfo", bytes(112))
    (free_bytes,) = struct.unpack("<Q", agent.read(agent.area() + _FREE_AT, 8))
    lacking = need_bytes + WORKING_BYTES - free_bytes
    if lacking <= 0:
        return
    # The kernel takes 1/64 of all memory for its struct pages, and a tmpfs of 90 % has to hold the files.
    wanted_mib = max(memory_mib + lacking * 65 // 64 / (1 << 20), need_bytes / 0.9 / (1 << 20))
    steps = -(-int(wanted_mib + 1) // _MEMORY_STEP_MIB)
    said = f"its files need {-(-need_bytes >> 20)} MiB of the guest's memory"
    if steps * _MEMORY_STEP_MIB > maximum_mib:
        raise RootfsError(f"{said}; thinbox gives a guest {maximum_mib} MiB in all at most")
    raise RootfsError(f"{said}, and {free_bytes >> 20} MiB are free; use --memory {steps * _MEMORY_STEP_MIB}")


def populate_root(
    agent: AgentChannel, entries: Iterable[RootfsEntry], root: str = ROOT, first_id: int = 0
) -> GuestScript:
    """Make a tmpfs at `root` and fill it with `entries`.

    `first_id` is added to every user and group: the first of a tenant's user namespace.

    Raises `RootfsError` when it does not fit or an entry cannot be made.
    """
    yield from must("mkdir", root, 0o755)
    yield from must("mount", "tmpfs", root, "tmpfs", 0, "size=90%,nr_inodes=0,mode=0755")
    for entry in entries:
        result = yield from _make(agent, entry, root, first_id)
        if result < 0:
            hint = "; use a larger --memory" if result in (-errno.ENOSPC, -errno.ENOMEM) else ""
            raise RootfsError(f"cannot put {show_path(entry.path)} into the guest: {os.strerror(-result)}{hint}")


def share_mounts(root: str = ROOT) -> GuestScript:
    """Show the guest's own proc, sys and dev in the root, and make tmp and run if they are missing."""
    for name in ("proc", "sys", "dev", "tmp", "run"):
        yield from call("mkdir", f"{root}/{name}", 0o1777 if name == "tmp" else 0o755)
    for name in ("proc", "sys", "dev"):
        yield from must("mount", f"/{name}", f"{root}/{name}", 0, _BIND | _REC, 0)


def share_root(root: str) -> GuestScript:
    """Make the guest's own root file system, none of its mounts, the root at `root`: to be read only."""
    yield from must("mkdir", root, 0o755)
    yield from must("mount", "/", root, 0, _BIND, 0)
    yield from share_devices(root)
    yield from must("mount", 0, root, 0, _REMOUNT | _BIND | _RDONLY, 0)


def share_devices(root: str) -> GuestScript:
    """Show the guest's sys and devices in the root of a tenant with namespaces of its own, read-only where it could
    leave something for others.

    Such a tenant may take off what it mounts itself (proc, tmp, /dev/shm, its cgroup), so nothing that is the guest's
    may lie below that.
    """
    for name in ("proc", "sys", "dev", "tmp", "run"):
        yield from call("mkdir", f"{root}/{name}", 0o1777 if name == "tmp" else 0o755)
    for name in ("sys", "dev", "dev/pts"):
        yield from must("mount", f"/{name}", f"{root}/{name}", 0, _BIND, 0)
    yield from must("mount", 0, f"{root}/dev", 0, _REMOUNT | _BIND | _RDONLY | _NOSUID, 0)


def _target(entry: RootfsEntry, root: str) -> bytes:
    return root.encode() + b"/" + entry.path + b"\0"


def _make(agent: AgentChannel, entry: RootfsEntry, root: str, first_id: int) -> GuestScript:
    target = _target(entry, root)
    if entry.replaces:
        yield from call("unlink", target)
    if entry.kind is EntryKind.DIRECTORY:
        result = yield from call("mkdir", target, entry.mode & 0o7777)
        if result == -errno.EEXIST:
            result = 0
    elif entry.kind is EntryKind.FILE:
        result = yield from _write_file(agent, entry, target)
    elif entry.kind is EntryKind.SYMLINK:
        yield from call("unlink", target)
        result = yield from call("symlink", (entry.link_target or b"") + b"\0", target)
    elif entry.kind is EntryKind.HARDLINK:
        yield from call("unlink", target)
        source = root.encode() + b"/" + (entry.link_target or b"") + b"\0"
        result = yield from call("link", source, target)
        return result
    else:
        yield from call("unlink", target)
        major, minor = entry.device or (0, 0)
        number = (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12
        result = yield from call("mknod", target, _NODE_KINDS[entry.kind] | (entry.mode & 0o7777), number)
    if result < 0:
        return result
    if entry.uid or entry.gid or first_id:
        yield from call("lchown", target, entry.uid + first_id, entry.gid + first_id)
    if entry.kind is not EntryKind.SYMLINK:
        # After chown, which clears set-user-id bits.
        yield from call("chmod", target, entry.mode & 0o7777)
    if entry.capability is not None:
        yield from call("lsetxattr", target, _CAPABILITY, entry.capability, len(entry.capability), 0)
    times = b"".join(int(part).to_bytes(8, "little", signed=True) for part in (entry.mtime_s, 0, entry.mtime_s, 0))
    yield from call("utimensat", _AT_FDCWD, target, times, _AT_SYMLINK_NOFOLLOW)
    return 0


def _write_file(agent: AgentChannel, entry: RootfsEntry, target: bytes) -> GuestScript:
    handle = yield from call("open", target, _O_WRONLY_CREAT_TRUNC, 0o600)
    if handle < 0:
        return handle
    place = agent.area() + _BUFFER_AT
    for chunk in entry.read_chunks(CHUNK_BYTES):
        done = 0
        while done < len(chunk):
            agent.write(place, chunk[done:])
            count = yield from call("write", handle, place, len(chunk) - done)
            if count <= 0:
                yield from call("close", handle)
                return count or -errno.ENOSPC
            done += count
    yield from must("close", handle)
    return 0
