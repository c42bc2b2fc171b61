"""Disks of tenants: memory of the guest behind a block device (brd), a file system on each, mounted at /disk.

Why it exists: a tmpfs has no `user.*` attributes and no O_DIRECT, and nothing of a file system on a disk.

Rules of this file:
- What a disk holds is memory of the guest, charged to nobody; a disk never takes more than its size. Its blocks in the
  page cache are charged to its tenant.
- Only the agent mounts; what a tenant's root has at /disk is opened without following links.

Source: drivers/block/brd.c; Documentation/filesystems/ext4; mount(2).
"""

import os
import re
import struct
from dataclasses import dataclass

from thinbox.errors import InputError
from thinbox.guest.agent_channel import AgentChannel, GuestScript, call, must
from thinbox.guest.ext4_image import BLOCK_BYTES, build_ext4
from thinbox.guest.in_root import O_PATH, open_in_root
from thinbox.guest.populate import WORKING_BYTES

FOLDER = "/disk"
KINDS = ("ext4", "ext2")
DRIVER = "brd"
LEAST_BYTES, MOST_BYTES = 8 << 20, 2 << 30
_SIZE = re.compile(r"([1-9][0-9]{0,9})([KMG])(?::([a-z0-9]+))?")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_O_RDWR, _O_DIRECTORY, _O_NOFOLLOW = 2, 0o200000, 0o400000
_NOSUID, _NODEV = 2, 4
_BLKGETSIZE64 = 0x80081272
_BUFFER_AT = 192 << 10
_FREE_AT = 40
"""Offset of `freeram` in struct sysinfo (include/uapi/linux/sysinfo.h)."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk to make: its size, a multiple of 4 KiB, `ext4` or `ext2`, and which of the driver's devices it is."""

    size_bytes: int
    kind: str = "ext4"
    number: int = 0


def parse_disk(text: str, who: str = "") -> Disk:
    """Return the disk that `SIZE[:FS]` means; InputError, its message begun by `who`, for what cannot be meant."""
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InputError(f"{who}disk is SIZE or SIZE:FS, as 64M or 64M:ext4, not {text!r}")
    kind = found[3] or KINDS[0]
    if kind not in KINDS:
        raise InputError(f"{who}disk has one of {', '.join(KINDS)}, not {kind!r}")
    size = int(found[1]) * _UNITS[found[2]] // BLOCK_BYTES * BLOCK_BYTES
    if not LEAST_BYTES <= size <= MOST_BYTES:
        raise InputError(f"{who}disk is {LEAST_BYTES >> 20}M to {MOST_BYTES >> 20}M, not {text.partition(':')[0]}")
    return Disk(size, kind)


def require_memory(agent: AgentChannel, disks: list[Disk], memory_mib: int) -> GuestScript:
    """Raise InputError, with the --memory to give, unless all disks fit beside what runs, full."""
    yield from must("sysinfo", bytes(112))
    (free_bytes,) = struct.unpack("<Q", agent.read(agent.area() + _FREE_AT, 8))
    need_bytes = sum(disk.size_bytes for disk in disks)
    lacking = need_bytes + WORKING_BYTES - free_bytes
    if lacking > 0:
        wanted = -(-(memory_mib + lacking * 65 // 64 // (1 << 20) + 1) // 64) * 64
        raise InputError(
            f"disks of {need_bytes >> 20} MiB lie in the guest's memory, and {free_bytes >> 20} MiB are free; "
            f"use --memory {wanted}"
        )


def driver_parameters(disks: list[Disk]) -> str:
    """Return the parameters of brd for these disks: how many, and the size of the largest (KiB)."""
    return f"rd_nr={len(disks)} rd_size={max(disk.size_bytes for disk in disks) >> 10}"


def give_disk(agent: AgentChannel, disk: Disk, root: str, owner: int = 0) -> GuestScript:
    """Make a disk and mount it where the tenant whose `/` is `root` has /disk; its root directory is `owner`'s.

    1. The blocks that are not zero. 2. The device is closed, which drops its page cache. 3. The mount reads the first
    blocks: they, and all that is read later, are charged to whoever reads; so the caller is in the tenant's cgroup.

    Raises:
        InputError: the guest lacks memory, the driver or the file system; or there is no folder at /disk.
    """
    device = f"/dev/ram{disk.number}"
    handle = yield from call("open", device, _O_RDWR, 0)
    if handle < 0:
        raise InputError(f"the guest has no {device} for a disk: {os.strerror(-handle).lower()}")
    yield from must("ioctl", handle, _BLKGETSIZE64, bytes(8))
    (found,) = struct.unpack("<Q", agent.read(agent.area(), 8))
    if found < disk.size_bytes:
        raise InputError(
            f"the kernel's own {device} has {found >> 20} MiB; boot it with "
            f"--append {DRIVER}.rd_size={disk.size_bytes >> 10}"
        )
    place = agent.area() + _BUFFER_AT
    for offset, block in build_ext4(disk.size_bytes, device, owner, ext2=disk.kind == "ext2"):
        agent.write(place, block)
        if (yield from call("pwrite64", handle, place, len(block), offset)) != len(block):
            raise InputError(f"the guest has no memory for {device}; use a larger --memory")
    yield from must("close", handle)
    yield from _mount(device, disk, root)


def _mount(device: str, disk: Disk, root: str) -> GuestScript:
    prefix = "" if root == "/" else root
    # A root that is shared for reading has it already, from the guest's own.
    yield from call("mkdir", prefix + FOLDER, 0o755)
    handle = yield from open_in_root(root, FOLDER, O_PATH | _O_DIRECTORY | _O_NOFOLLOW)
    if handle < 0:
        raise InputError(
            f"the disk cannot be mounted at {FOLDER}: {os.strerror(-handle).lower()}; remove what is there"
        )
    result = yield from call("mount", device, f"/proc/self/fd/{handle}", disk.kind, _NOSUID | _NODEV, "")
    if result < 0:
        raise InputError(f"the kernel does not mount a disk with {disk.kind}: {os.strerror(-result).lower()}")
    yield from must("close", handle)


__all__ = ["DRIVER", "FOLDER", "KINDS", "Disk", "driver_parameters", "give_disk", "parse_disk", "require_memory"]
