"""The cached form of a kernel's facts: a JSON header and raw arrays behind a checksum, no pickle.

Why it exists: a second start must cost tens of milliseconds, so arrays are stored as they lie in memory,
and the unpacked kernel as it is (52 MB: reading it and its CRC take 40 ms; zstd makes it 12 MB, but takes 70).
A file that was damaged, cut short or written by another version is the same as no file.
"""

import contextlib
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thinbox.image.cache import cache_dir, read_cached, store_bytes

FACTS_VERSION = 2
"""Raise it whenever the layout below, or what the parsers put into it, changes."""

_MAGIC = b"thinbox facts\n"
_PREFIX = struct.Struct("<14sII32s")  # magic, version, header bytes, SHA-256 of all that follows
_SEPARATOR = "\0"  # the one byte no symbol name can hold


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """One kernel's facts as stored; `vmlinux` is None if the kernel file is one itself.

    `header` holds the JSON-able facts; the rest are the arrays of `SymbolTable` and `TypeTable`, and the types as BTF,
    empty if the kernel has it itself.
    """

    header: dict[str, Any]
    starts: npt.NDArray[np.uint64]
    kinds: str
    names: list[str]
    type_starts: npt.NDArray[np.uint32]
    btf: bytes
    relocs: bytes
    vmlinux: bytes | None


def read_facts(sha256: str) -> StoredFacts | None:
    """Return what was stored for the kernel with this hash, or None if there is nothing usable."""
    facts_path, vmlinux_path = _paths(sha256)
    try:
        raw = read_cached(facts_path)
        header, blobs = _split(raw)
        starts, kinds, names, type_starts, btf, relocs = blobs
        return StoredFacts(
            header,
            np.frombuffer(starts, np.uint64),
            kinds.decode("latin-1"),
            names.decode("utf-8").split(_SEPARATOR),
            np.frombuffer(type_starts, np.uint32),
            btf,
            relocs,
            _read_vmlinux(vmlinux_path, header["vmlinux_crc32"]) if header["packed"] else None,
        )
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def write_facts(sha256: str, facts: StoredFacts) -> None:
    """Store the facts of the kernel file with this hash.

    Raises:
        CacheError: they cannot be written.
    """
    blobs = [
        facts.starts.astype(np.uint64).tobytes(),
        facts.kinds.encode("latin-1"),
        _SEPARATOR.join(facts.names).encode("utf-8"),
        facts.type_starts.astype(np.uint32).tobytes(),
        facts.btf,
        facts.relocs,
    ]
    header = {**facts.header, "packed": facts.vmlinux is not None, "blob_bytes": [len(blob) for blob in blobs]}
    facts_path, vmlinux_path = _paths(sha256)
    if facts.vmlinux is not None:
        header["vmlinux_crc32"] = zlib.crc32(facts.vmlinux)
        store_bytes(vmlinux_path, facts.vmlinux)
    text = json.dumps(header).encode()
    digest = hashlib.sha256(text)
    for blob in blobs:
        digest.update(blob)
    store_bytes(facts_path, [_PREFIX.pack(_MAGIC, FACTS_VERSION, len(text), digest.digest()), text, *blobs])


def forget_facts(sha256: str) -> None:
    """Delete what is stored for the kernel with this hash, if anything."""
    for path in _paths(sha256):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _paths(sha256: str) -> tuple[Path, Path]:
    folder = cache_dir() / "facts"
    return folder / f"{sha256}.v{FACTS_VERSION}.facts", folder / f"{sha256}.v{FACTS_VERSION}.vmlinux"


def _split(raw: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Check the file and return its header and its blobs; raises ValueError if anything is off."""
    magic, version, header_bytes, digest = _PREFIX.unpack_from(raw)
    if magic != _MAGIC or version != FACTS_VERSION or hashlib.sha256(raw[_PREFIX.size :]).digest() != digest:
        raise ValueError("damaged")
    at = _PREFIX.size + header_bytes
    header = json.loads(raw[_PREFIX.size : at])
    blobs = []
    for size_bytes in header["blob_bytes"]:
        blobs.append(raw[at : at + size_bytes])
        at += size_bytes
    return header, blobs


def _read_vmlinux(path: Path, expected_crc: int) -> bytes:
    vmlinux = read_cached(path)
    if zlib.crc32(vmlinux) != expected_crc:
        raise ValueError("damaged")
    return vmlinux
