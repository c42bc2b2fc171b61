"""The cached form of a kernel's gadgets: a JSON header and three arrays behind a checksum, no pickle.

Why it exists: a scan takes half a minute, a load may not be noticed. Starts are stored as 32-bit offsets into the
executable spans laid end to end, so a gadget takes six bytes. A file that was damaged, cut short or
written by another version is the same as no file.
"""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thinbox.image.cache import cache_dir, read_cached, store_bytes
from thinbox.surface.gadget_set import GadgetSet
from thinbox.surface.scan import Found

GADGETS_VERSION = 1
"""Raise it whenever the layout below, or what counts as a gadget, changes."""

_MAGIC = b"thinbox gadgets\n"
_PREFIX = struct.Struct("<16sII32s")  # magic, version, header bytes, SHA-256 of all that follows


def gadgets_path(kernel_sha256: str, key: str) -> Path:
    """Return where the gadgets of this kernel and live text (`key`, hex) are kept."""
    return cache_dir() / "gadgets" / f"{kernel_sha256[:32]}.{key[:32]}.v{GADGETS_VERSION}.gadgets"


def read_gadgets(path: Path, text_hash: str, spans: tuple[tuple[int, int], ...]) -> GadgetSet | None:
    """Return what was stored for a live text of these spans, or None if there is nothing usable."""
    try:
        raw = read_cached(path)
        magic, version, header_bytes, digest = _PREFIX.unpack_from(raw)
        body = memoryview(raw)[_PREFIX.size :]
        if magic != _MAGIC or version != GADGETS_VERSION or hashlib.sha256(body).digest() != digest:
            return None
        header = json.loads(bytes(body[:header_bytes]))
        if header != _header(text_hash, spans, header["count"]):
            return None
        count = header["count"]
        offsets = np.frombuffer(body, np.uint32, count, header_bytes)
        lengths = np.frombuffer(body, np.uint8, count, header_bytes + 4 * count)
        kinds = np.frombuffer(body, np.uint8, count, header_bytes + 5 * count)
        found = Found(_to_starts(offsets, spans), lengths, kinds)
        return GadgetSet(found, spans, text_hash, from_cache=True)
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error):
        return None


def write_gadgets(path: Path, gadgets: GadgetSet) -> None:
    """Store `gadgets`.

    Raises:
        CacheError: they cannot be written.
    """
    found = gadgets.found
    text = json.dumps(_header(gadgets.text_hash, gadgets.spans, gadgets.count)).encode()
    blobs = [
        text,
        _to_offsets(found.starts, gadgets.spans).tobytes(),
        found.lengths.tobytes(),
        found.kinds.tobytes(),
    ]
    digest = hashlib.sha256(b"".join(blobs)).digest()
    store_bytes(path, [_PREFIX.pack(_MAGIC, GADGETS_VERSION, len(text), digest), *blobs])


def _header(text_hash: str, spans: tuple[tuple[int, int], ...], count: int) -> dict[str, object]:
    return {"text": text_hash, "spans": [list(span) for span in spans], "count": count}


def _bases(spans: tuple[tuple[int, int], ...]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return the start of each span, and its offset when all are laid end to end."""
    starts = np.array([start for start, _end in spans], np.uint64)
    sizes = np.array([end - start for start, end in spans], np.uint64)
    return starts, np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes, dtype=np.uint64)[:-1]])


def _to_offsets(vaddrs: npt.NDArray[np.uint64], spans: tuple[tuple[int, int], ...]) -> npt.NDArray[np.uint32]:
    starts, offsets = _bases(spans)
    span = np.searchsorted(starts, vaddrs, side="right") - 1
    return (vaddrs - starts[span] + offsets[span]).astype(np.uint32)


def _to_starts(offsets: npt.NDArray[np.uint32], spans: tuple[tuple[int, int], ...]) -> npt.NDArray[np.uint64]:
    starts, bases = _bases(spans)
    wide = offsets.astype(np.uint64)
    span = np.searchsorted(bases, wide, side="right") - 1
    return np.asarray(wide - bases[span] + starts[span], np.uint64)
