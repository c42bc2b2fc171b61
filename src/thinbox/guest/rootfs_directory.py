"""Reads a root file system out of a directory of the host, without following a single symlink.

Why it exists: the same tree must give the same guest on every machine, so the order is sorted, hard links
are found again, and a user who unpacked the tree without root gets files that belong to root.
"""

# ruff: noqa: PTH115, PTH118, PTH208 - names are bytes, which pathlib does not take

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from thinbox.errors import RootfsError
from thinbox.guest.rootfs_entry import (
    EntryKind,
    RootfsEntry,
    require_device_allowed,
    show_path,
)

_KINDS = {
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFCHR: EntryKind.CHAR,
    stat.S_IFBLK: EntryKind.BLOCK,
}


def read_directory(path: Path) -> Iterator[RootfsEntry]:
    """Yield what is below `path`, sorted by name bytes, every directory just before its content.

    Owners are kept as they are if we are root; otherwise our own uid and gid become 0 and others are
    kept. What is mounted inside the tree (a /proc, say) is left out, its mount point is not.
    Raises RootfsError as `open_rootfs` describes.
    """
    root = os.fsencode(path)
    try:
        device = path.stat().st_dev
    except OSError as error:
        raise _unreadable(root, error) from error
    yield from _Walk(root, device).entries(b"")


class _Walk:
    """One walk over one tree; remembers which inodes it has met."""

    __slots__ = ("_first_paths", "_gid_map", "_root", "_root_device", "_uid_map")

    def __init__(self, root: bytes, root_device: int) -> None:
        self._root = root
        self._root_device = root_device
        self._first_paths: dict[tuple[int, int], bytes] = {}
        as_root = os.geteuid() == 0
        self._uid_map = {} if as_root else {os.geteuid(): 0}
        self._gid_map = {} if as_root else {os.getegid(): 0}

    def entries(self, path: bytes) -> Iterator[RootfsEntry]:
        """Yield the content of the directory `path` (relative to the root, b"" is the root)."""
        directory = os.path.join(self._root, path)
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            raise _unreadable(path or self._root, error) from error
        for name in names:
            child = path + b"/" + name if path else name
            try:
                status = os.lstat(os.path.join(self._root, child))
            except OSError as error:
                raise _unreadable(child, error) from error
            kind = _KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is None:  # a socket
                continue
            yield self._entry(child, kind, status)
            if kind is EntryKind.DIRECTORY and status.st_dev == self._root_device:
                yield from self.entries(child)

    def _entry(self, path: bytes, kind: EntryKind, status: os.stat_result) -> RootfsEntry:
        full = os.path.join(self._root, path)
        target = None
        device = None
        if kind in (EntryKind.CHAR, EntryKind.BLOCK):
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
            require_device_allowed(path, kind, device)
        if kind is EntryKind.SYMLINK:
            try:
                target = os.readlink(full)
            except OSError as error:
                raise _unreadable(path, error) from error
        if kind is not EntryKind.DIRECTORY and status.st_nlink > 1:
            first = self._first_paths.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                kind, target, device = EntryKind.HARDLINK, first, None
        return RootfsEntry(
            path,
            kind,
            stat.S_IMODE(status.st_mode),
            self._uid_map.get(status.st_uid, status.st_uid),
            self._gid_map.get(status.st_gid, status.st_gid),
            status.st_mtime_ns // 1_000_000_000,
            size_bytes=status.st_size if kind is EntryKind.FILE else 0,
            link_target=target,
            device=device,
            chunk_source=_file_chunks(full, path),
        )


def _file_chunks(full: bytes, path: bytes) -> Callable[[int], Iterator[bytes]]:
    def chunks(chunk_bytes: int) -> Iterator[bytes]:
        try:
            # Whoever can write to the tree may swap the file for a symlink or fifo after it was listed.
            descriptor = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb", buffering=0) as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise RootfsError(f"{show_path(path)}: no regular file any more")
                while chunk := file.read(chunk_bytes):
                    yield chunk
        except OSError as error:
            raise _unreadable(path, error) from error

    return chunks


def _unreadable(path: bytes, error: OSError) -> RootfsError:
    return RootfsError(f"{show_path(path)}: cannot be read: {error.strerror or error}")
