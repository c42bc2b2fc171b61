"""Files out of a Debian package, without dpkg and without touching the disk.

Why it exists: kernels and the programs a guest runs come as .deb files, and the machine thinbox runs on
may have no dpkg, or one that does not know zstd. Whatever is wrong with a package, the only exception is
`KernelImageError`.

Source: deb(5), ar(5).
"""

import bz2
import contextlib
import gzip
import io
import lzma
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from thinbox.errors import KernelImageError
from thinbox.image.kernel import read_kernel_file

MAX_MEMBER_BYTES = 1 << 30
"""Most bytes one packaged file may have; as for a kernel file, the largest known is a 0.6 GiB vmlinux."""

MAX_UNPACKED_BYTES = 4 << 30
"""Most bytes all files of a package may have together; Debian's kernel with debugging data has 1.1 GiB."""

_PIECE_BYTES = 1 << 20

DEB_MAGIC = b"!<arch>\n"


class NoMemberError(KernelImageError):
    """The package does not hold the file that was looked for."""


_LATEST_S = (1 << 32) - 1
"""A header may say any number; what a file system keeps at the least (ext4's inodes of 128 bytes) ends here."""


@dataclass(frozen=True, slots=True)
class DebEntry:
    """A file in a package: `path` is relative, without "./"; `mode` as in stat(2), file type included.

    `data` is empty unless it is a regular file; `link_target` is a symbolic link's text, or for a hard
    link the `path` of the other name (and `is_hard_link` is set). `mtime_s` is its time of change, Unix time.
    """

    path: str
    mode: int
    data: bytes = field(repr=False)
    link_target: str
    is_hard_link: bool
    mtime_s: int


def iter_deb_files(deb: Path) -> Iterator[DebEntry]:
    """Yield every file, folder and link of a package in its order.

    Raises:
        KernelImageError: the file cannot be read, is no package, or is damaged.
    """
    return _walk_entries(deb, lambda _path: True)


def iter_deb_files_where(deb: Path, wanted: Callable[[str], bool]) -> Iterator[DebEntry]:
    """As `iter_deb_files`, of the paths (relative, without "./") that are `wanted`; others' bodies are skipped."""
    return _walk_entries(deb, wanted)


def deb_member(deb: Path, predicate: Callable[[str], bool]) -> bytes:
    """Return the first regular file of a package whose path (relative, without "./") satisfies `predicate`.

    Raises:
        KernelImageError: as `iter_deb_files`; `NoMemberError`: no file satisfies it.
    """
    return find_deb_member(deb, predicate)[1]


def find_deb_member(deb: Path, predicate: Callable[[str], bool]) -> tuple[str, bytes]:
    """Return the path and the bytes of what `deb_member` returns; raises as it does."""
    for entry in _walk_entries(deb, predicate):
        if stat.S_ISREG(entry.mode) and not entry.is_hard_link:
            return entry.path, entry.data
    raise NoMemberError(f"{deb} does not hold the file that was looked for; give another package")


def _walk_entries(deb: Path, predicate: Callable[[str], bool]) -> Iterator[DebEntry]:
    """Yield the entries whose path satisfies `predicate`; the bodies of others are skipped."""
    raw = read_kernel_file(deb)
    if not raw.startswith(DEB_MAGIC):
        raise KernelImageError(f"{deb} is not a Debian package; give a .deb file")
    with _one_exception(deb), tarfile.TarFile(fileobj=cast("IO[bytes]", _Forward(_open_data(raw)))) as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # missing from typeshed; kept for look-ups by name
            path = _clean(info.name)
            if predicate(path):
                yield DebEntry(
                    path=path,
                    mode=_mode(info),
                    data=_read(deb, info, archive) if info.isreg() else b"",
                    link_target=_clean(info.linkname) if info.islnk() else info.linkname,
                    is_hard_link=info.islnk(),
                    mtime_s=min(max(int(info.mtime), 0), _LATEST_S),
                )


class _Forward:
    """The unpacked data of a package, seekable forward, as tarfile wants it: a bomb ends here.

    tarfile reads a header of any announced size whole, and skips a body of any size without end.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._at_bytes = 0

    def tell(self) -> int:
        return self._at_bytes

    def seek(self, offset: int) -> int:
        """Skip forward to `offset`, or to the end if that comes first."""
        if offset < self._at_bytes:
            raise ValueError("it can only be read forward")
        while self._at_bytes < offset and self.read(min(_PIECE_BYTES, offset - self._at_bytes)):
            pass
        return self._at_bytes

    def read(self, size: int) -> bytes:
        """Return `size` bytes unless the data ends before."""
        if not 0 <= size <= _PIECE_BYTES:
            raise ValueError(f"a header announces {size} bytes of itself")
        pieces = []
        while size > 0 and (piece := self._source.read(size)):
            pieces.append(piece)
            size -= len(piece)
        data = b"".join(pieces)
        self._at_bytes += len(data)
        if self._at_bytes > MAX_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
        return data


@contextlib.contextmanager
def _one_exception(deb: Path) -> Iterator[None]:
    """Turn whatever ar, tar and four decompressors raise, which share no base class, into ours."""
    try:
        yield
    except (KernelImageError, ImportError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise KernelImageError(f"the package {deb} is damaged ({reason}); fetch it again") from error


def _open_data(raw: bytes) -> IO[bytes]:
    from debian.arfile import ArFile  # late: a warm start opens no package

    for member in ArFile(fileobj=io.BytesIO(raw)).getmembers():
        name = member.name.rstrip("/")
        if name.startswith("data.tar"):
            return _decompressed(name, io.BytesIO(member.read()))
    raise ValueError("it has no data.tar member")


def _decompressed(name: str, packed: IO[bytes]) -> IO[bytes]:
    suffix = name.removeprefix("data.tar")
    if suffix == ".zst":
        import zstandard  # late: only recent Ubuntu packages need it

        return zstandard.ZstdDecompressor().stream_reader(packed)
    openers: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
        "": lambda stream: stream,
        ".gz": lambda stream: cast("IO[bytes]", gzip.GzipFile(fileobj=stream)),
        ".xz": lzma.LZMAFile,
        ".lzma": lzma.LZMAFile,
        ".bz2": bz2.BZ2File,
    }
    if suffix not in openers:
        raise ValueError(f"its data has an unknown format, {name}")
    return openers[suffix](packed)


def _read(deb: Path, info: tarfile.TarInfo, archive: tarfile.TarFile) -> bytes:
    if info.size > MAX_MEMBER_BYTES:
        raise KernelImageError(f"{info.name} in {deb} is larger than {MAX_MEMBER_BYTES >> 20} MiB; not a kernel")
    stream = archive.extractfile(info)
    data = b"".join(iter(lambda: stream.read(_PIECE_BYTES), b"")) if stream is not None else b""
    if len(data) != info.size:
        raise EOFError("it is cut short")
    return data


def _clean(name: str) -> str:
    return name.removeprefix("./").strip("/")


def _mode(info: tarfile.TarInfo) -> int:
    kinds = {
        tarfile.DIRTYPE: stat.S_IFDIR,
        tarfile.SYMTYPE: stat.S_IFLNK,
        tarfile.CHRTYPE: stat.S_IFCHR,
        tarfile.BLKTYPE: stat.S_IFBLK,
        tarfile.FIFOTYPE: stat.S_IFIFO,
    }
    return kinds.get(info.type, stat.S_IFREG) | stat.S_IMODE(info.mode)
