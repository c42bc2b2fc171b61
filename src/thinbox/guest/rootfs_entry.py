"""One object of a root file system: what is created at which path, and where its content comes from.

Why it exists: directories and archives are read by different modules, and the code that fills the guest
must not care which of them an entry came from.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from thinbox.errors import RootfsError

CHUNK_BYTES = 1 << 20
"""Content is read in pieces of this size unless the caller asks for another."""

PATH_MAX_BYTES = 4095
"""Longest path without its NUL (PATH_MAX is 4096, include/uapi/linux/limits.h)."""

NAME_MAX_BYTES = 255
"""Longest single name (NAME_MAX, include/uapi/linux/limits.h)."""

DEEPEST = 256
"""Most components of a path. The guest's kernel looks each of them up for every entry, so a chain of the 2,048 that
PATH_MAX holds takes time with the square of its length; the deepest trees known have some 60."""

ALLOWED_DEVICES = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)})
"""(major, minor) of null, zero, full, random, urandom, tty, console and ptmx (admin-guide/devices.txt).

The first six are what programs use; console and ptmx are in every tree debootstrap makes. Any other node
would reach a device of the guest that no tenant has business with, so it is refused.
"""


class EntryKind(enum.StrEnum):
    """What an entry creates. Sockets have no meaning without their server and are never yielded."""

    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symlink"
    HARDLINK = "hard link"
    FIFO = "fifo"
    CHAR = "character device"
    BLOCK = "block device"


def _no_chunks(_chunk_bytes: int) -> Iterator[bytes]:
    return iter(())


@dataclass(frozen=True, slots=True)
class RootfsEntry:
    """One object to create in the guest; entries come with parents first.

    `path` is relative to the root, normalised (no leading slash, no `.`, no `..`), at most 4095 bytes.
    `mode` holds the permission bits only (0 .. 0o7777). `mtime_s` counts seconds since 1970, UTC.
    `size_bytes` is the content's exact size for a FILE and 0 for everything else. `link_target` is the
    text of a SYMLINK (any bytes but NUL, never followed here), or for a HARDLINK the `path` of an earlier
    entry. `device` is (major, minor) of a CHAR or BLOCK. `replaces` says that an earlier entry, never a
    directory, must be unlinked first (an archive that was appended to). `capability` is a FILE's extended attribute
    `security.capability`, as the kernel stores it.
    """

    path: bytes
    kind: EntryKind
    mode: int
    uid: int
    gid: int
    mtime_s: int
    size_bytes: int = 0
    link_target: bytes | None = None
    device: tuple[int, int] | None = None
    replaces: bool = False
    capability: bytes | None = None
    chunk_source: Callable[[int], Iterator[bytes]] = field(default=_no_chunks, repr=False, compare=False)

    def read_chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the content in order, in pieces of 1 .. `chunk_bytes`, `size_bytes` in all.

        What is no FILE has no content. Reads lazily, in constant memory. An archive's entry must be read
        before the next one is taken from the iterator (ValueError otherwise). Raises RootfsError if the
        content cannot be read or is not as long as announced.
        """
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be positive, not {chunk_bytes}")
        if self.kind is not EntryKind.FILE:
            return
        left_bytes = self.size_bytes
        for chunk in self.chunk_source(chunk_bytes):
            if len(chunk) > left_bytes:  # a file of a directory may grow while it is read
                chunk = chunk[:left_bytes]
            left_bytes -= len(chunk)
            if chunk:
                yield chunk
            if left_bytes == 0:
                break
        if left_bytes:
            raise RootfsError(f"{show_path(self.path)}: content ends {left_bytes} bytes early")


def show_path(path: bytes) -> str:
    """Return `path` as text for a one-line message: control and undecodable bytes are escaped."""
    text = path.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def require_device_allowed(path: bytes, kind: EntryKind, device: tuple[int, int]) -> None:
    """Raise RootfsError unless the node is one of `ALLOWED_DEVICES`."""
    if kind is not EntryKind.CHAR or device not in ALLOWED_DEVICES:
        major, minor = device
        raise RootfsError(
            f"{show_path(path)}: {kind} {major}:{minor} is not one of null, zero, full, random, urandom, "
            "tty, console, ptmx; remove it from the root file system"
        )
