"""Whose hands a place of the host is in: only ours and root's, or also those of others.

Why it exists: what lies in the cache is executed (machine code, Numba's pickles) or believed (facts, snapshots), and a
policy of the user's is executed too. A hash beside a file notices damage, not a person.

Rules of this file:
- What is opened is judged, by its descriptor; a name is looked up once, one component after the other.
- Believed are root (uid 0) and the effective user, nobody else: not the owner of a cache that `sudo` handed on.
- Nothing that its group or others may write is believed. An access control list shows in the group's bits.
- On the way to a place a folder with the sticky bit (/tmp) may be written by all: in it nobody replaces what is ours.

Sources: path_resolution(7); the same questions are asked by OpenSSH, misc.c, safe_path().
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from thinbox.errors import InputError, TrustError
from thinbox.host.files import read_bounded, reason, show

_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
"""Modes of what thinbox makes for itself."""


def open_private_folder(path: Path, root: Path, advice: str, *, make: bool = False) -> int:
    """Return a descriptor (O_PATH) of the folder `path`, which is `root` or below it.

    Links are followed on the way to `root`, where their owner is believed, and none from there on. With `make` missing
    folders are made, for us alone. The caller closes the descriptor. `advice` ends the messages.

    Raises:
        TrustError: a component is in the hands of others, or is a link below `root`.
        OSError: it is missing, or cannot be made.
    """
    walk = _Walk(advice, make=make)
    try:
        walk.go(root.parts[1:], links=True)
        walk.require_private()
        walk.go(path.relative_to(root).parts, links=False)
        walk.require_private()
        return os.dup(walk.handle)
    finally:
        os.close(walk.handle)


def open_private_file(folder: int, path: Path, advice: str) -> BinaryIO:
    """Return the file `path`.name of the open `folder`, open for reading.

    Raises:
        TrustError: it is in the hands of others, a link, or no regular file.
        OSError: it is missing, or cannot be read.
    """
    try:
        handle = os.open(path.name, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TrustError(f"{show(path)} is a link, and none is followed there; {advice}") from error
        raise
    try:
        require_private_file(os.fstat(handle), path, advice)
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def require_private_file(status: os.stat_result, path: Path, advice: str) -> None:
    """Raise TrustError unless what was opened is a regular file that only we and root may write."""
    _require_owner(status, path, advice)
    if not stat.S_ISREG(status.st_mode):
        raise TrustError(f"{show(path)} is not a regular file; {advice}")
    if status.st_mode & _OTHERS_WRITE:
        raise _written_by_others(status, path, advice)


def read_trusted(path: Path | str, limit_bytes: int) -> bytes:
    """Return the bytes of a file of the user's that decides what is allowed, or is executed.

    The user named it, so links are followed; judged are the file that was opened and the folder it was looked for in.

    Raises:
        InputError: it cannot be read, has more than `limit_bytes`, or (TrustError) others may write it or its folder.
    """
    path = Path(path)
    advice = "take a copy in a folder that only you may write"
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(folder)
            _require_owner(status, path.parent, advice)
            if status.st_mode & _OTHERS_WRITE:
                raise _written_by_others(status, path.parent, advice)
            handle = os.open(path.name, _FILE & ~os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {show(path)}: {reason(error)}") from error
    with open(handle, "rb") as file:
        require_private_file(os.fstat(handle), path, advice)
        return read_bounded(file, limit_bytes, str(path))


class _Walk:
    """The way from `/` down to a folder; `handle` is where it stands, and its user's to close."""

    def __init__(self, advice: str, *, make: bool) -> None:
        self.handle = os.open("/", _PLACE)
        self._advice, self._make = advice, make
        self._place = Path("/")
        self._require_way(os.fstat(self.handle))

    def go(self, parts: tuple[str, ...], *, links: bool) -> None:
        """Go down by `parts`."""
        todo, hops = list(parts[::-1]), 0
        while todo:
            name = todo.pop()
            child = self._open(name)
            self._place /= name
            try:
                status = os.fstat(child)
                self._require_owner(status)
                if stat.S_ISLNK(status.st_mode):
                    hops += 1
                    if not links:
                        raise TrustError(f"{show(self._place)} is a link, and none is followed there; {self._advice}")
                    if hops > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    target = Path(os.readlink("", dir_fd=child))
                    todo += target.parts[:0:-1] if target.is_absolute() else target.parts[::-1]
                    self._place = Path("/") if target.is_absolute() else self._place.parent
                    if target.is_absolute():
                        self._stand_on(os.open("/", _PLACE))
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                self._require_way(status)
                self._stand_on(os.dup(child))
            finally:
                os.close(child)

    def require_private(self) -> None:
        """Raise TrustError if others may write where it stands, a sticky folder included."""
        status = os.fstat(self.handle)
        if status.st_mode & _OTHERS_WRITE:
            raise _written_by_others(status, self._place, self._advice)

    def _open(self, name: str) -> int:
        try:
            return os.open(name, _PLACE, dir_fd=self.handle)
        except FileNotFoundError:
            if not self._make:
                raise
        with contextlib.suppress(FileExistsError):  # another thinbox was faster
            os.mkdir(name, PRIVATE_FOLDER, dir_fd=self.handle)
        return os.open(name, _PLACE, dir_fd=self.handle)

    def _stand_on(self, handle: int) -> None:
        os.close(self.handle)
        self.handle = handle

    def _require_owner(self, status: os.stat_result) -> None:
        _require_owner(status, self._place, self._advice)

    def _require_way(self, status: os.stat_result) -> None:
        if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
            raise _written_by_others(status, self._place, self._advice)


def _require_owner(status: os.stat_result, path: Path, advice: str) -> None:
    if status.st_uid not in (0, os.geteuid()):
        who = f"you (uid {os.geteuid()})" if os.geteuid() else "root, as whom thinbox runs"
        raise TrustError(f"{show(path)} belongs to uid {status.st_uid}, not to {who}; {advice}")


def _written_by_others(status: os.stat_result, path: Path, advice: str) -> TrustError:
    whom = "everybody" if status.st_mode & stat.S_IWOTH else "its group"
    return TrustError(f"{show(path)} may be written by {whom}; chmod go-w it if nobody else did, or {advice}")
