"""Files of the host that the user, or a file of a stranger's, names: opened without waiting, read within a bound.

Why it exists: a name may lead to a FIFO, on which open waits for ever, to /dev/zero, which never ends, or through a
link to where the stranger has no business.

Rules of this file:
- Only regular files are read, told by the descriptor that is read.
- What a file names is looked for below a folder that is open, one component after the other; nothing leads out of it.
- Whatever is wrong is an `InputError` of one line.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, Self

from thinbox.errors import InputError
from thinbox.foreign_text import MAX_JSON_BYTES, MAX_TOML_BYTES, parse_json, parse_toml

_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
"""MAXSYMLINKS (include/linux/namei.h)."""


def open_file(path: Path | str) -> BinaryIO:
    """Return the regular file `path`, open for reading; links are followed, for the user named it.

    Raises:
        InputError: it cannot be opened, or is something else.
    """
    try:
        return require_regular(os.open(path, _FILE), str(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"cannot read {show(path)}: {reason(error)}") from error


def require_regular(handle: int, name: str) -> BinaryIO:
    """Return the open descriptor as a file; InputError, and it is closed, if it is none."""
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return open(handle, "rb")
    os.close(handle)
    found = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
    raise InputError(f"cannot read {show(name)}: it is {found}")


def read_file(path: Path | str, limit_bytes: int) -> bytes:
    """Return the bytes of a regular file; InputError if it cannot be read or has more than `limit_bytes`."""
    with open_file(path) as file:
        return read_bounded(file, limit_bytes, str(path))


def read_bounded(file: BinaryIO, limit_bytes: int, name: str) -> bytes:
    """Return what is left of `file`; InputError if that is more than `limit_bytes`, or cannot be read."""
    try:
        status = os.fstat(file.fileno())
        data = b"" if status.st_size > limit_bytes else file.read(limit_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read {show(name)}: {reason(error)}") from error
    if max(len(data), status.st_size) > limit_bytes:
        raise InputError(f"cannot read {show(name)}: it is larger than {limit_bytes / (1 << 20):g} MiB")
    return data


def load_json(path: Path | str) -> Any:
    """Return the value of the JSON file `path`; InputError as `read_file` and `foreign_text.parse_json`."""
    return parse_json(read_file(path, MAX_JSON_BYTES), show(path))


def load_toml(path: Path | str) -> dict[str, Any]:
    """Return the table of the TOML file `path`; InputError as `read_file` and `foreign_text.parse_toml`."""
    return parse_toml(read_file(path, MAX_TOML_BYTES), show(path))


class Folder:
    """A folder held open: what is opened below it is below it, whatever becomes of its name meanwhile."""

    def __init__(self, path: Path | str) -> None:
        """Open it; links are followed, for the user named it. Raises OSError."""
        self._handle = -1
        self._handle = os.open(path, _FOLDER)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._handle

    def open_file(self, name: str | bytes, *, links: bool = False) -> BinaryIO:
        """Return the regular file `name` below the folder; with `links`, those that stay below it are followed.

        Raises:
            InputError: an absolute name, one that leads out, a link, something else than a file, nothing at all.
        """
        shown = os.fsdecode(name)
        try:
            place = _find_below(self._handle, shown, links=links)
            try:
                if not stat.S_ISREG(os.fstat(place).st_mode):
                    raise InputError(f"cannot read {show(shown)}: it is not a regular file")
                # The place found, not its name once more.
                return open(os.open(f"/proc/self/fd/{place}", _FILE), "rb")
            finally:
                os.close(place)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {show(shown)}: {reason(error)}") from error

    def has_file(self, name: str, *, links: bool = False) -> bool:
        """Whether `open_file` would find a regular file."""
        try:
            place = _find_below(self._handle, name, links=links)
        except (InputError, OSError, ValueError):
            return False
        try:
            return stat.S_ISREG(os.fstat(place).st_mode)
        finally:
            os.close(place)


def read_below(folder: Path, name: str, limit_bytes: int) -> bytes:
    """Return the bytes of the regular file `name` below `folder`, without following a link from there on.

    Raises:
        InputError: as `Folder.open_file`, or it has more than `limit_bytes`.
    """
    try:
        opened = Folder(folder)
    except OSError as error:
        raise InputError(f"cannot read {show(folder)}: {reason(error)}") from error
    with opened, opened.open_file(name) as file:
        return read_bounded(file, limit_bytes, name)


def require_below(name: str, what: str) -> str:
    """Return `name` if it is a relative one without `..`; InputError that begins with `what` otherwise."""
    if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise InputError(f"{what} leads out of the folder of the file that names it; put what it names beside it")
    return name


def _find_below(root: int, name: str, *, links: bool) -> int:
    """Return a descriptor (O_PATH) of what `name` means below the folder `root`; raises OSError and InputError."""
    outside = InputError(f"{show(name)}: leads out of its folder")
    if name.startswith("/"):
        raise outside
    todo = [part for part in name.split("/") if part not in ("", ".")][::-1]
    trail = [os.dup(root)]
    hops = 0
    try:
        while todo:
            part = todo.pop()
            if part == "..":
                if len(trail) == 1:
                    raise outside
                os.close(trail.pop())
                continue
            found = os.open(part, _PLACE, dir_fd=trail[-1])
            trail.append(found)
            if not stat.S_ISLNK(os.fstat(found).st_mode):
                continue
            hops += 1
            if not links:
                raise InputError(f"{show(name)}: has a link in it, and none is followed here")
            if hops > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink("", dir_fd=found)
            if target.startswith("/"):
                raise outside
            os.close(trail.pop())
            todo += [part for part in target.split("/") if part not in ("", ".")][::-1]
        return os.dup(trail[-1])
    finally:
        for handle in trail:
            os.close(handle)


def reason(error: OSError | ValueError) -> str:
    """Return why, in the system's words."""
    return getattr(error, "strerror", None) or str(error)


def show(path: Path | str) -> str:
    """Return a path for a message of one line: what a terminal would not print is escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(path))
