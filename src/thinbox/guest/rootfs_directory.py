"""Reads a root file system out of a directory of the host, without following a single symlink.

Why it exists: the same tree must give the same guest on every machine, so the order is sorted, hard links
are found again, and a user who unpacked the tree without root gets files that belong to root. And whoever may write
the tree may swap a folder for a link to elsewhere while it is read.

Rules of this file:
- A name is looked up in the descriptor of its directory, never by a path, and must still be what it was.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from thinbox.errors import InputError, RootfsError
from thinbox.guest.rootfs_entry import (
    DEEPEST,
    EntryKind,
    RootfsEntry,
    require_device_allowed,
    show_path,
)
from thinbox.host.files import Folder

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFCHR: EntryKind.CHAR,
    stat.S_IFBLK: EntryKind.BLOCK,
}


def read_directory(path: Path, *, any_device: bool = False) -> Iterator[RootfsEntry]:
    """Yield what is below `path`, sorted by name bytes, every directory just before its content.

    Owners are kept as they are if we are root; otherwise our own uid and gid become 0 and others are
    kept. What is mounted inside the tree (a /proc, say) is left out, its mount point is not.
    With `any_device` the caller judges device nodes.
    Raises RootfsError as `open_rootfs` describes, and if a directory or file is swapped meanwhile.
    """
    try:
        root = Folder(path)
    except OSError as error:
        raise _unreadable(os.fsencode(path), error) from error
    yield from _Walk(root, os.fsencode(path), any_device=any_device).entries()


class _Walk:
    """One walk over one tree; remembers which inodes it has met.

    `_way` has the names and open descriptors of the directories that are being read, the root's first.
    """

    __slots__ = ("_any_device", "_first_paths", "_gid_map", "_name", "_root", "_root_device", "_uid_map", "_way")

    def __init__(self, root: Folder, name: bytes, *, any_device: bool) -> None:
        self._root = root
        self._any_device = any_device
        self._name = name
        self._root_device = os.fstat(root.fileno()).st_dev
        self._first_paths: dict[tuple[int, int], bytes] = {}
        self._way: list[tuple[bytes, int, list[bytes]]] = []
        as_root = os.geteuid() == 0
        self._uid_map = {} if as_root else {os.geteuid(): 0}
        self._gid_map = {} if as_root else {os.getegid(): 0}

    def entries(self) -> Iterator[RootfsEntry]:
        """Yield the content of the tree; without recursion, for every level would pass every entry up."""
        try:
            self._enter(b"", os.dup(self._root.fileno()))
            while self._way:
                path, handle, names = self._way[-1]
                if not names:
                    os.close(self._way.pop()[1])
                    continue
                name = names.pop()
                child = path + b"/" + name if path else name
                try:
                    status = os.stat(name, dir_fd=handle, follow_symlinks=False)
                except OSError as error:
                    raise _unreadable(child, error) from error
                kind = _KINDS.get(stat.S_IFMT(status.st_mode))
                if kind is None:  # a socket
                    continue
                yield self._entry(child, kind, status, handle)
                if kind is EntryKind.DIRECTORY and status.st_dev == self._root_device:
                    self._descend(child, name, handle, status)
        finally:
            for _path, handle, _names in self._way:
                os.close(handle)

    def _descend(self, path: bytes, name: bytes, folder: int, status: os.stat_result) -> None:
        if len(self._way) > DEEPEST:
            raise RootfsError(f"{show_path(path)}: more than {DEEPEST} directories deep, which no root file system is")
        try:
            handle = os.open(name, _FOLDER, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _swapped(path) from error
            raise _unreadable(path, error) from error
        found = os.fstat(handle)
        if (found.st_dev, found.st_ino) != (status.st_dev, status.st_ino):
            os.close(handle)
            raise _swapped(path)
        self._enter(path, handle)

    def _enter(self, path: bytes, handle: int) -> None:
        try:
            names = sorted(map(os.fsencode, os.listdir(handle)), reverse=True)
        except OSError as error:
            os.close(handle)
            raise _unreadable(path or self._name, error) from error
        self._way.append((path, handle, names))

    def _entry(self, path: bytes, kind: EntryKind, status: os.stat_result, folder: int) -> RootfsEntry:
        target = None
        device = None
        if kind in (EntryKind.CHAR, EntryKind.BLOCK):
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
            if not self._any_device:
                require_device_allowed(path, kind, device)
        if kind is EntryKind.SYMLINK:
            try:
                target = os.readlink(path.rpartition(b"/")[2], dir_fd=folder)
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
            chunk_source=_file_chunks(self._root, path, (status.st_dev, status.st_ino)),
        )


def _file_chunks(root: Folder, path: bytes, inode: tuple[int, int]) -> Callable[[int], Iterator[bytes]]:
    """Return what reads the file `path`, long after the walk: from the root, through no link, to the same inode."""

    def chunks(chunk_bytes: int) -> Iterator[bytes]:
        try:
            with root.open_file(path) as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != inode:
                    raise _swapped(path)
                while chunk := file.read(chunk_bytes):
                    yield chunk
        except OSError as error:
            raise _unreadable(path, error) from error
        except RootfsError:
            raise
        except InputError as error:
            raise RootfsError(f"{show_path(path)}: cannot be read: {error}") from error

    return chunks


def _swapped(path: bytes) -> RootfsError:
    return RootfsError(f"{show_path(path)}: cannot be read: something else came in its place meanwhile")


def _unreadable(path: bytes, error: OSError) -> RootfsError:
    return RootfsError(f"{show_path(path)}: cannot be read: {error.strerror or error}")
