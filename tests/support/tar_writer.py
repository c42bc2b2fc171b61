"""Tar archives written member by member, broken ones included, and how tests look at a root file system."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from thinbox.errors import RootfsError
from thinbox.guest.rootfs import RootfsEntry, open_rootfs

Member = tuple[tarfile.TarInfo, bytes]

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def directory(name: str) -> Member:
    return member(name, kind=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Member:
    return member(name, kind=tarfile.LNKTYPE, linkname=target)


def tar_bytes(*members: Member, tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def write_tar(folder: Path, *members: Member) -> Path:
    path = folder / "root.tar"
    path.write_bytes(tar_bytes(*members))
    return path


def collect(path: Path) -> list[tuple[RootfsEntry, bytes]]:
    return [(entry, b"".join(entry.read_chunks())) for entry in open_rootfs(path)]


def paths(path: Path) -> list[bytes]:
    return [entry.path for entry in open_rootfs(path)]


def require_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 800


def require_refused(path: Path, match: str) -> None:
    with pytest.raises(RootfsError, match=match) as caught:
        collect(path)
    require_one_line(caught.value)
