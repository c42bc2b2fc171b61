"""An empty ext4 (or ext2) file system, as the blocks that are not zero.

Why it exists: a tenant's disk is memory of the guest, which holds no mkfs but busybox's for ext2. What mkfs writes is
some hundred kilobytes, the same for the same size, and is made here.

Rules of this file:
- No I/O: sizes in, blocks out. `e2fsck` is the oracle of its tests.
- Nothing is left for the kernel to do later (no lazy tables, no checksums): a run does the same every time.

Source: Documentation/filesystems/ext4 (super.rst, group_descr.rst, inodes.rst, ifork.rst, directory.rst, journal.rst).
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_BYTES = 4096
GROUP_BLOCKS = 8 * BLOCK_BYTES
"""Blocks that one block of bitmap counts."""
INODE_BYTES = 256
_INODES_IN_BLOCK = BLOCK_BYTES // INODE_BYTES
_BLOCKS_FOR_INODE = 4
"""mkfs's default, an inode for each 16 KiB."""
_ROOT, _JOURNAL, _LOST = 2, 8, 11
_FEW_JOURNAL, _MORE_JOURNAL = 1024, 4096
"""Blocks of a journal: the least that jbd2 takes (JBD2_MIN_JOURNAL_BLOCKS), and from 128 MiB on."""
_LEAST_GROUP = 64
"""Blocks that must be left in the last group behind its tables; a smaller one is left out."""
_HAS_JOURNAL, _EXT_ATTR, _DIR_INDEX = 4, 8, 0x20
_FILETYPE, _EXTENTS = 2, 0x40
_SPARSE_SUPER, _LARGE_FILE, _HUGE_FILE, _DIR_NLINK, _EXTRA_ISIZE = 1, 2, 8, 0x20, 0x40
_EXTENTS_FLAG = 0x80000
_JOURNAL_MAGIC, _JOURNAL_SUPER = 0xC03B3998, 4
_DIRECTORY, _FILE, _STICKY_FOR_ALL = 0o040000, 0o100000, 0o1777
_DIRECTORY_ENTRY = 2


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where things lie, in blocks: `count` blocks in `groups` groups, `inodes` of each in `table_blocks` blocks."""

    count: int
    groups: int
    inodes: int
    table_blocks: int
    journal_blocks: int

    def size_of(self, group: int) -> int:
        """Return how many blocks a group has."""
        return min(GROUP_BLOCKS, self.count - group * GROUP_BLOCKS)

    def tables_at(self, group: int) -> int:
        """Return where a group's block bitmap is; its inode bitmap and inode table follow."""
        return group * GROUP_BLOCKS + (2 if has_super(group) else 0)

    def data_at(self, group: int) -> int:
        """Return the first block behind a group's tables."""
        return self.tables_at(group) + 2 + self.table_blocks

    def used(self, group: int) -> int:
        """Return how many blocks of a group, its first ones, are in use."""
        own = 2 + self.journal_blocks if group == 0 else 0
        return self.data_at(group) - group * GROUP_BLOCKS + own


def has_super(group: int) -> bool:
    """Tell whether a group begins with a copy of superblock and descriptors (sparse_super: 0, 1, powers of 3, 5, 7)."""
    if group < 2:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def plan_ext4(size_bytes: int, *, journal: bool) -> Geometry:
    """Return the geometry of a file system on `size_bytes`.

    Preconditions:
    - 8 MiB to 16 GiB: the descriptors of all groups fit into one block.
    """
    count = size_bytes // BLOCK_BYTES
    groups = -(-count // GROUP_BLOCKS)
    inodes = -(-min(count, GROUP_BLOCKS) // _BLOCKS_FOR_INODE)
    table_blocks = -(-inodes // _INODES_IN_BLOCK)
    blocks = (_FEW_JOURNAL if count < GROUP_BLOCKS else _MORE_JOURNAL) if journal else 0
    found = Geometry(count, groups, table_blocks * _INODES_IN_BLOCK, table_blocks, blocks)
    last = groups - 1
    if last and found.size_of(last) < found.used(last) + _LEAST_GROUP:
        return plan_ext4(last * GROUP_BLOCKS * BLOCK_BYTES, journal=journal)
    return found


def build_ext4(size_bytes: int, name: str, owner: int = 0, *, ext2: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, block) of an empty file system on `size_bytes` of zeroes; all else on it stays zero.

    Its root directory belongs to user and group `owner`, and all may write there, as to /tmp. `name` makes its UUID.
    With `ext2` it has no journal and no extents. Preconditions as for `plan_ext4`.
    """
    plan = plan_ext4(size_bytes, journal=not ext2)
    uuid = hashlib.sha256(name.encode()).digest()[:16]
    root_at = plan.data_at(0)
    journal_at = root_at + 2
    inodes = {
        _ROOT: _inode(_DIRECTORY | _STICKY_FOR_ALL, owner, 3, (root_at, 1), ext2=ext2),
        _LOST: _inode(_DIRECTORY | 0o700, owner, 2, (root_at + 1, 1), ext2=ext2),
    }
    if not ext2:
        inodes[_JOURNAL] = _inode(_FILE | 0o600, 0, 1, (journal_at, plan.journal_blocks), ext2=False)
    descriptors = b"".join(_descriptor(plan, group) for group in range(plan.groups)).ljust(BLOCK_BYTES, b"\0")
    for group in range(plan.groups):
        if has_super(group):
            start = group * GROUP_BLOCKS
            block = _superblock(plan, group, uuid, inodes.get(_JOURNAL, b""))
            yield start * BLOCK_BYTES, (bytes(1024) + block if group == 0 else block).ljust(BLOCK_BYTES, b"\0")
            yield (start + 1) * BLOCK_BYTES, descriptors
        yield plan.tables_at(group) * BLOCK_BYTES, _bitmap(plan.used(group), plan.size_of(group))
        yield (plan.tables_at(group) + 1) * BLOCK_BYTES, _bitmap(_LOST if group == 0 else 0, plan.inodes)
    table = b"".join(inodes.get(number, bytes(INODE_BYTES)) for number in range(1, _INODES_IN_BLOCK + 1))
    yield (plan.tables_at(0) + 2) * BLOCK_BYTES, table
    yield root_at * BLOCK_BYTES, _directory((".", _ROOT), ("..", _ROOT), ("lost+found", _LOST))
    yield (root_at + 1) * BLOCK_BYTES, _directory((".", _LOST), ("..", _ROOT))
    if not ext2:
        fields = (_JOURNAL_MAGIC, _JOURNAL_SUPER, 0, BLOCK_BYTES, plan.journal_blocks, 1, 1, 0, 0, 0, 0, 0)
        yield journal_at * BLOCK_BYTES, (struct.pack(">12I", *fields) + uuid + struct.pack(">I", 1)).ljust(4096, b"\0")


def _bitmap(used: int, count: int) -> bytes:
    """Return a block of bits: the first `used` are set, and those from `count` on, which mean nothing."""
    value = (1 << used) - 1 | ((1 << GROUP_BLOCKS) - (1 << count))
    return value.to_bytes(BLOCK_BYTES, "little")


def _descriptor(plan: Geometry, group: int) -> bytes:
    at = plan.tables_at(group)
    free_blocks = plan.size_of(group) - plan.used(group)
    free_inodes, folders = (plan.inodes - _LOST, 2) if group == 0 else (plan.inodes, 0)
    return struct.pack("<3I4H12x", at, at + 1, at + 2, free_blocks, free_inodes, folders, 0)


def _superblock(plan: Geometry, group: int, uuid: bytes, journal: bytes) -> bytes:
    out = bytearray(1024)
    free = plan.count - sum(plan.used(number) for number in range(plan.groups))
    counts = (plan.inodes * plan.groups, plan.count, 0, free, plan.inodes * plan.groups - _LOST, 0, 2, 2)
    struct.pack_into("<8I", out, 0, *counts)
    struct.pack_into("<3I8x", out, 32, GROUP_BLOCKS, GROUP_BLOCKS, plan.inodes)
    # Never mounted, never checked by count; clean; go on after errors.
    struct.pack_into("<HHHHHH", out, 52, 0, 0xFFFF, 0xEF53, 1, 1, 0)
    struct.pack_into("<I4xIHH", out, 76, 1, _LOST, INODE_BYTES, group)
    if journal:
        compat, incompat = _HAS_JOURNAL | _EXT_ATTR | _DIR_INDEX, _FILETYPE | _EXTENTS
        read_only = _SPARSE_SUPER | _LARGE_FILE | _HUGE_FILE | _DIR_NLINK | _EXTRA_ISIZE
    else:
        compat, incompat, read_only = _EXT_ATTR, _FILETYPE, _SPARSE_SUPER | _LARGE_FILE
    struct.pack_into("<3I16s", out, 92, compat, incompat, read_only, uuid)
    struct.pack_into("<16sB", out, 236, uuid, 1)
    struct.pack_into("<I", out, 256, 4 | 8)  # user_xattr, acl
    struct.pack_into("<I", out, 352, 1)  # names are hashed as signed bytes
    if journal:
        struct.pack_into("<I", out, 224, _JOURNAL)
        out[253] = 1  # the journal's blocks are noted below
        out[268 : 268 + 60] = journal[40:100]
        struct.pack_into("<II", out, 328, 0, plan.journal_blocks * BLOCK_BYTES)
        struct.pack_into("<HH", out, 348, 32, 32)
    return bytes(out)


def _inode(mode: int, owner: int, links: int, place: tuple[int, int], *, ext2: bool) -> bytes:
    """Return an inode whose content is the blocks `place` (first, count)."""
    first, count = place
    if ext2:
        flags, blocks = 0, struct.pack("<15I", first, *([0] * 14))
    else:
        flags = _EXTENTS_FLAG
        blocks = struct.pack("<4HI", 0xF30A, 1, 4, 0, 0) + struct.pack("<IHHI", 0, count, 0, first)
    low = struct.pack(
        "<HHI16xHHII4x", mode, owner & 0xFFFF, count * BLOCK_BYTES, owner & 0xFFFF, links, count * 8, flags
    )
    high = struct.pack("<16x4xHH4x", owner >> 16, owner >> 16)
    return (low + blocks.ljust(60, b"\0") + high).ljust(128, b"\0") + (b"" if ext2 else b"\x20\0").ljust(128, b"\0")


def _directory(*entries: tuple[str, int]) -> bytes:
    """Return a block of a directory's entries, the last as long as the rest of the block."""
    out = b""
    for index, (name, inode) in enumerate(entries):
        size = BLOCK_BYTES - len(out) if index == len(entries) - 1 else (8 + len(name) + 3) & ~3
        entry = struct.pack("<IHBB", inode, size, len(name), _DIRECTORY_ENTRY) + name.encode()
        out += entry.ljust(size, b"\0")
    return out


__all__ = ["BLOCK_BYTES", "Geometry", "build_ext4", "plan_ext4"]
