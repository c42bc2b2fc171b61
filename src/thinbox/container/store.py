"""Where an image's files lie: in a folder, or in a tar archive, by name.

Why it exists: an image's layers are read in an order of their own, and twice; an archive is therefore indexed once and
each file opened at its place. A compressed archive is unpacked to an unnamed temporary file first.

Rules of this file:
- a name leads to a file of the image or nowhere: no symlink of a folder is followed out of it;
- whatever is wrong is a RootfsError of one line.
"""

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from thinbox.errors import InputError, RootfsError
from thinbox.guest.rootfs_entry import show_path
from thinbox.guest.tar_members import BROKEN, HEADER_LIMIT_BYTES, ForwardStream, ReadLimit, open_decompressed
from thinbox.host.files import Folder, open_file

MAX_UNPACKED_BYTES = 4 << 30
"""Most bytes an image unpacks to, all layers together; no guest has more than 3 GiB of memory."""

MAX_DOCUMENT_BYTES = 4 << 20
"""Most bytes of a manifest or config. containerd's limit for a manifest is 8 MiB, registries' 4 MiB."""

_MAX_FILES = 10_000
_MAX_LINKS = 8
MARKS = ("manifest.json", "oci-layout")
"""Files at the top of docker-archive and OCI images."""
ROOT_NAMES = frozenset(
    "bin boot dev etc home lib lib64 media mnt opt proc root run sbin srv sys tmp usr var".split()  # noqa: SIM905
)
"""Names at the top of a root file system (Filesystem Hierarchy Standard 3.0, section 3.2)."""


class Store(Protocol):
    """An image's files by name, such as `index.json` or `blobs/sha256/…`."""

    def has(self, name: str) -> bool:
        """Whether the image has that file."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; raises RootfsError if it is not there."""


def read_document(store: Store, name: str) -> bytes:
    """Return the bytes of a manifest or config; raises RootfsError if it is missing or larger than 4 MiB."""
    with store.open(name) as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise RootfsError(f"{name}: larger than {MAX_DOCUMENT_BYTES >> 20} MiB, which no manifest or config is")
    return data


class FolderStore:
    """An image unpacked into a folder: an OCI layout, or what `docker save` writes, unpacked."""

    def __init__(self, path: Path) -> None:
        self._root = Folder(path)

    def has(self, name: str) -> bool:
        """Whether the image has that file."""
        return self._root.has_file(name, links=True)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; raises RootfsError if it is not there or lies outside.

        `docker save` of old wrote links for layers it had written already; those that stay in the folder are followed.
        """
        try:
            return self._root.open_file(name, links=True)
        except InputError as error:
            raise RootfsError(f"the image's folder: {error}") from error


class ArchiveStore:
    """An image in a tar archive that lies uncompressed in `file`."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        file.seek(0)
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        for count, member in enumerate(_members(_CappedFile(file), where)):
            if count == _MAX_FILES:
                raise RootfsError(f"{where}: more than {_MAX_FILES} files, which no image archive has")
            name = os.path.normpath(member.name)
            if member.isreg() and not member.issparse():
                self._places[name] = (member.offset_data, member.size)
            elif member.issym() or member.islnk():
                # `docker save` of old wrote one layer under several names.
                folder = name.rpartition("/")[0] if member.issym() else ""
                self._links[name] = os.path.normpath(f"{folder}/{member.linkname}").lstrip("/")

    def _follow(self, name: str) -> str:
        name = os.path.normpath(name)
        for _hop in range(_MAX_LINKS):
            if name in self._places or name not in self._links:
                break
            name = self._links[name]
        return name

    def has(self, name: str) -> bool:
        """Whether the image has that file."""
        return self._follow(name) in self._places

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; raises RootfsError if it is not there."""
        place = self._places.get(self._follow(name))
        if place is None:
            raise RootfsError(f"{show_path(name.encode('utf-8', 'surrogateescape'))}: is not in the image")
        return cast("BinaryIO", _Part(self._file, *place))


class _Part(io.RawIOBase):
    """A stretch of a file as a file; every read seeks, so parts may be read in turns."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to `offset` from the beginning (or, for `whence` 1 and 2, from here or the end)."""
        base = (0, self._at, self._size)[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill `buffer` as far as the stretch goes."""
        count = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _CappedFile:
    """A seekable file that hands tarfile no header larger than its limit."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes unless the file ends."""
        if not 0 <= size <= HEADER_LIMIT_BYTES:
            raise tarfile.ReadError(f"a header announces {size} bytes of itself")
        return self._file.read(size)


def _members(file: "_CappedFile | ForwardStream", where: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of the tar archive `file` stands before; raises RootfsError for a damaged one."""
    try:
        tar = tarfile.TarFile(fileobj=cast("BinaryIO", file), encoding="utf-8", errors="surrogateescape")
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # missing from typeshed
            yield member
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RootfsError(f"{where}: not a tar archive, or damaged: {reason[:200]}") from error


def archive_is_image(path: Path, where: str) -> bool:
    """Whether the tar archive `path`, compressed or not, is an image and not a root file system; reads its first names.

    Raises RootfsError if it is no tar archive.
    """
    with _opened(path, where) as raw:
        stream = ForwardStream(open_decompressed(raw), limit=ReadLimit(MAX_UNPACKED_BYTES))
        for member in _members(stream, where):
            name = os.path.normpath(member.name)
            if name in MARKS and member.isreg():
                return True
            if name.split("/")[0] in ROOT_NAMES:
                return False
    return False


@contextmanager
def _opened(path: Path, where: str) -> Iterator[BinaryIO]:
    try:
        with open_file(path) as raw:
            yield raw
    except RootfsError:
        raise
    except InputError as error:
        raise RootfsError(f"{where}: {error}") from error
    except OSError as error:
        raise RootfsError(f"{where}: cannot be read: {error.strerror or error}") from error


def open_archive(path: Path, where: str) -> ArchiveStore:
    """Return the image archive `path`; a compressed one is unpacked to a temporary file that has no name.

    Raises RootfsError for a damaged one, and for one that unpacks to more than `MAX_UNPACKED_BYTES`.
    """
    try:
        raw = open_file(path)
    except InputError as error:
        raise RootfsError(f"{where}: {error}") from error
    source = open_decompressed(raw)
    if source is raw:
        return ArchiveStore(raw, where)
    spool = cast("BinaryIO", tempfile.TemporaryFile(prefix="thinbox-image-"))
    limit = ReadLimit(MAX_UNPACKED_BYTES)
    try:
        while piece := source.read(1 << 20):
            limit.use(len(piece))
            spool.write(piece)
    except BROKEN as error:
        raise RootfsError(f"{where}: truncated or damaged: {' '.join(str(error).split())[:200]}") from error
    finally:
        raw.close()
    return ArchiveStore(spool, where)
