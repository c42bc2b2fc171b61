"""Reads the members of a tar archive, as one forward pass over a possibly compressed stream.

Why it exists: root file systems and the layers of container images are both tar archives, and tarfile trusts its
input more than a tool may that feeds it whatever a user downloaded. It takes a cut-off archive for a finished one,
and reads a header of any announced size into memory.

Rules of this file:
- whatever is wrong with the archive is a RootfsError that names the entry;
- memory stays constant in the size of the archive's contents, also for decompression bombs;
- the archive must end with its end marker, or have the hash that was asked for, and its compressed stream must end
  with a matching checksum.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO, cast

import zstandard

from thinbox.errors import RootfsError
from thinbox.guest.rootfs_entry import (
    EntryKind,
    RootfsEntry,
    require_device_allowed,
    show_path,
)
from thinbox.guest.rootfs_tree import normalise_name

HEADER_LIMIT_BYTES = 32 << 10
"""Most that one read may ask for. tarfile reads long names and pax headers whole: two names of 4 KiB and some
attributes. Its pax parser takes quadratic time (CVE-2024-6232; 22 s for 120 KiB here, 1.5 s for 32 KiB).
Contents are read in pieces of at most this too."""

_DRAIN_LIMIT_BYTES = 64 << 20
"""Padding after the end marker that is read to reach the checksum; tar pads to 10 KiB, or a tape's block."""

_BLOCK_BYTES = tarfile.BLOCKSIZE

_MAGICS: tuple[tuple[bytes, Callable[[BinaryIO], object]], ...] = (
    (b"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
    (
        b"\x28\xb5\x2f\xfd",
        lambda raw: zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True),
    ),
)
"""First bytes of each compressed format (RFC 1952, bzip2, xz and RFC 8878 specifications)."""

BROKEN = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    ValueError,
    OverflowError,
    MemoryError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)
"""What tarfile and the decompressors may raise on broken input; those from IndexError on come from tarfile's
parsing of malformed pax and GNU sparse headers, and of endless chains of extension headers."""

_KINDS = {
    tarfile.REGTYPE: EntryKind.FILE,
    tarfile.AREGTYPE: EntryKind.FILE,
    tarfile.CONTTYPE: EntryKind.FILE,
    tarfile.GNUTYPE_SPARSE: EntryKind.FILE,
    tarfile.DIRTYPE: EntryKind.DIRECTORY,
    tarfile.SYMTYPE: EntryKind.SYMLINK,
    tarfile.LNKTYPE: EntryKind.HARDLINK,
    tarfile.FIFOTYPE: EntryKind.FIFO,
    tarfile.CHRTYPE: EntryKind.CHAR,
    tarfile.BLKTYPE: EntryKind.BLOCK,
}


class ReadLimit:
    """How many bytes may still be unpacked, shared by the archives of one image; a bomb ends here."""

    __slots__ = ("_left_bytes", "_limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = self._left_bytes = limit_bytes

    def require(self, count: int) -> None:
        """Raise RootfsError unless `count` more bytes are allowed."""
        if count > self._left_bytes:
            raise RootfsError(f"it unpacks to more than {self._limit_bytes >> 20} MiB; no guest has memory for that")

    def use(self, count: int) -> None:
        """Count bytes that were unpacked; raises as `require`."""
        self.require(count)
        self._left_bytes -= count


class ForwardStream(io.RawIOBase):
    """A readable, seekable-forward view of a decompressed stream, the one tarfile is given."""

    def __init__(self, source: BinaryIO, *, hash_name: str | None = None, limit: ReadLimit | None = None) -> None:
        self._source = source
        self._limit = limit
        self._position_bytes = 0
        self._hash = None if hash_name is None else hashlib.new(hash_name)
        self.last_read = b""

    def digest(self) -> str | None:
        """Return the hash of everything read so far in hexadecimal, None if it was not asked for."""
        return self._hash.hexdigest() if self._hash is not None else None

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return exactly `size` bytes unless the stream ends first; refuses more than 32 KiB at once."""
        if size is None or not 0 <= size <= HEADER_LIMIT_BYTES:
            raise tarfile.ReadError(f"a header announces {size} bytes of itself")
        pieces: list[bytes] = []
        while size > 0 and (piece := self._source.read(size)):
            pieces.append(piece)
            size -= len(piece)
        self.last_read = b"".join(pieces)
        if self._hash is not None:
            self._hash.update(self.last_read)
        self._position_bytes += len(self.last_read)
        if self._limit is not None:
            self._limit.use(len(self.last_read))
        return self.last_read

    def tell(self) -> int:
        return self._position_bytes

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Skip forward to `offset`; stops at the end of the stream."""
        if whence != io.SEEK_SET or offset < self._position_bytes:
            raise tarfile.StreamError("the archive can only be read forward")
        if self._limit is not None:  # before the bytes of a bomb are skipped, not after
            self._limit.require(offset - self._position_bytes)
        while self._position_bytes < offset:
            if not self.read(min(HEADER_LIMIT_BYTES, offset - self._position_bytes)):
                break
        return self._position_bytes


def open_decompressed(raw: BinaryIO) -> BinaryIO:
    """Return a reader of what `raw` holds: gzip, bzip2, xz or zstd by its first bytes, else `raw` itself."""
    magic = raw.read(6)
    raw.seek(0)
    for prefix, opener in _MAGICS:
        if magic.startswith(prefix):
            return cast("BinaryIO", opener(raw))
    return raw


def read_members(
    raw: BinaryIO, where: str, *, digest: str | None = None, limit: ReadLimit | None = None, any_device: bool = False
) -> Iterator[RootfsEntry]:
    """Yield the members of the archive `raw` (plain, gzip, bzip2, xz or zstd) in its order, as they are named.

    The `path` is normalised but not resolved; that of the root itself is b"". A hard link's `link_target` is
    the name in the archive. Content must be read before the next member is taken. `raw` is read from its
    beginning. With `digest`, the hash of the uncompressed archive as `sha256:` or `sha512:` and digits, that decides
    whether the archive is whole, and no bytes at all are an empty one; without it, the end marker does. With
    `any_device` the caller judges device nodes. Raises RootfsError; `where` names the archive in its message.
    """
    source = open_decompressed(raw)
    try:
        stream = ForwardStream(source, hash_name=digest.partition(":")[0] if digest else None, limit=limit)
        yield from _MemberReader(stream, where, digest, any_device=any_device).members()
    except OSError as error:
        raise RootfsError(f"{where}: cannot be read: {error.strerror or error}") from error
    finally:
        if source is not raw:
            source.close()


class _MemberReader:
    """One pass over one archive: tarfile's members in, entries out."""

    __slots__ = ("_any_device", "_digest", "_generation", "_last_name", "_stream", "_where")

    def __init__(self, stream: ForwardStream, where: str, digest: str | None, *, any_device: bool) -> None:
        self._stream = stream
        self._where = where
        self._digest = digest
        self._any_device = any_device
        self._generation = 0
        self._last_name = ""

    def members(self) -> Iterator[RootfsEntry]:
        tar = self._open_tar()
        if tar is None:
            self._check_end()
            return
        while (member := self._next_member(tar)) is not None:
            self._generation += 1
            path = normalise_name(_name_bytes(member.name))
            self._last_name = f"{show_path(path)}: "
            yield self._entry(tar, member, path)
        self._check_end()

    def _open_tar(self) -> tarfile.TarFile | None:
        """Return the archive, None for no bytes where a hash says that there are none (Go's reader takes that)."""
        try:
            return tarfile.TarFile(fileobj=cast("BinaryIO", self._stream), encoding="utf-8", errors="surrogateescape")
        except BROKEN as error:
            if isinstance(error, tarfile.ReadError) and self._digest is not None and self._stream.tell() == 0:
                return None
            raise RootfsError(f"{self._where}: not a tar archive, or damaged: {_one_line(error)}") from error

    def _next_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        try:
            member = tar.next()
        except BROKEN as error:
            raise self._broken(error) from error
        # tarfile remembers every member for look-ups by name, which nobody here does.
        tar.members.clear()  # type: ignore[attr-defined]  # missing from typeshed
        return member

    def _broken(self, error: BaseException) -> RootfsError:
        after = f"after {self._last_name}" if self._last_name else ""
        return RootfsError(f"{self._where}: {after}truncated or damaged archive: {_one_line(error)}")

    def _check_end(self) -> None:
        """Raise RootfsError unless tarfile stopped at a zero block, and the rest of the stream is whole."""
        ends = (bytes(_BLOCK_BYTES),) if self._digest is None else (bytes(_BLOCK_BYTES), b"")
        if self._stream.last_read not in ends:
            raise self._broken(EOFError("no end marker"))
        try:
            for _ in range(_DRAIN_LIMIT_BYTES // HEADER_LIMIT_BYTES):
                if not self._stream.read(HEADER_LIMIT_BYTES):
                    break
        except BROKEN as error:
            raise self._broken(error) from error
        name, _colon, wanted = (self._digest or "").partition(":")
        if self._digest is not None and self._stream.digest() != wanted:
            shown = name.upper().replace("SHA", "SHA-")
            raise RootfsError(f"{self._where}: does not have the {shown} {wanted} its image gives; fetch it again")

    def _entry(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: bytes) -> RootfsEntry:
        kind = _KINDS.get(member.type)
        if kind is None:
            code = member.type.decode("latin-1")
            raise RootfsError(f"{show_path(path)}: tar entry type {code!r} is not supported")
        entry = self._attributes(member, path, kind)
        return replace(
            entry,
            link_target=_link_text(member, path, kind),
            capability=_capability(member) if kind is EntryKind.FILE else None,
            chunk_source=self._chunk_source(tar, member, path),
        )

    def _attributes(self, member: tarfile.TarInfo, path: bytes, kind: EntryKind) -> RootfsEntry:
        """Check what the header says and return it as an entry without place or content."""
        try:
            mtime_s = int(member.mtime)
        except (ValueError, OverflowError) as error:
            raise RootfsError(f"{show_path(path)}: modification time {member.mtime} makes no sense") from error
        size_bytes = member.size if kind is EntryKind.FILE else 0
        ids_fit = 0 <= member.uid < 1 << 32 and 0 <= member.gid < 1 << 32
        if not (ids_fit and 0 <= size_bytes < 1 << 63 and -(1 << 63) <= mtime_s < 1 << 63):
            raise RootfsError(f"{show_path(path)}: owner, size or time is out of range")
        device = None
        if kind in (EntryKind.CHAR, EntryKind.BLOCK):
            device = (member.devmajor, member.devminor)
            if not self._any_device:
                require_device_allowed(path, kind, device)
        mode = member.mode & 0o7777
        return RootfsEntry(path, kind, mode, member.uid, member.gid, mtime_s, size_bytes, device=device)

    def _chunk_source(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: bytes
    ) -> Callable[[int], Iterator[bytes]]:
        generation = self._generation

        def chunks(chunk_bytes: int) -> Iterator[bytes]:
            if generation != self._generation:
                raise ValueError(f"{show_path(path)}: read after the next entry was taken")
            try:
                content = tar.extractfile(member)
                piece_bytes = min(chunk_bytes, HEADER_LIMIT_BYTES)
                while content is not None and (chunk := content.read(piece_bytes)):
                    yield chunk
            except BROKEN as error:
                raise RootfsError(f"{show_path(path)}: truncated or damaged archive: {_one_line(error)}") from error

        return chunks


def _link_text(member: tarfile.TarInfo, path: bytes, kind: EntryKind) -> bytes | None:
    if kind not in (EntryKind.SYMLINK, EntryKind.HARDLINK):
        return None
    target = _name_bytes(member.linkname)
    if kind is EntryKind.SYMLINK and (not target or len(target) > 4095 or b"\0" in target):
        raise RootfsError(f"{show_path(path)}: symlink target is empty, too long or holds a NUL")
    return target


def _capability(member: tarfile.TarInfo) -> bytes | None:
    """Return the file capabilities a pax header gives (struct vfs_cap_data: 12, 20 or 24 bytes)."""
    value = member.pax_headers.get("SCHILY.xattr.security.capability")
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
    return data if len(data) in (12, 20, 24) else None


def _name_bytes(name: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeError as error:
        raise RootfsError(f"{name!a}: name is not valid UTF-8") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
