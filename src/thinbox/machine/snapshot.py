"""A whole machine, saved: CPU, devices, the pages that hold anything, and what its users noted.

Why it exists: a boot takes seconds, a restore a fraction of one. The file is written once and read in
every run, so it is laid out for reading: a JSON header, page numbers, then the pages in Zstandard frames
with checksums.

Rules of this file: a file that is damaged in any way raises `SnapshotError`, nothing else.
"""

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from thinbox.machine.machine import Machine

MAGIC = b"thinbox.snapshot/1\n"
_HEADER = struct.Struct("<QQQQ")
_LEVEL = 1
"""Against 3: a tenth larger, a third less time, and read as fast."""
_PACKERS = 2
_LARGEST_HEADER = 64 << 20
_DAMAGE = (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
"""What numbers and JSON that are not ours can raise below; sizes beyond ssize_t are an OverflowError."""


class SnapshotError(Exception):
    """The snapshot cannot be used; boot again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`pages` (n, 4096) uint8 go to page numbers `numbers`; `notes` belong to whoever took the snapshot."""

    memory_mib: int
    cpu: bytes
    devices: dict[str, Any]
    notes: dict[str, Any]
    numbers: np.ndarray
    pages: np.ndarray


def take_snapshot(machine: "Machine", notes: dict[str, Any]) -> Snapshot:
    """Copy the machine; it must stand between two runs."""
    numbers = machine.memory.used_pages()
    everything = np.frombuffer(machine.memory.map, dtype=np.uint8)[: machine.memory.guest_bytes].reshape(-1, 4096)
    return Snapshot(
        machine.memory_mib,
        machine.cpu.save(),
        machine.save_devices(),
        notes,
        numbers,
        everything[numbers],
    )


def restore_snapshot(machine: "Machine", snapshot: Snapshot) -> None:
    """Make `machine` (new, or used before) equal to the one saved."""
    machine.memory.clear()
    everything = np.frombuffer(machine.memory.map, dtype=np.uint8)[: machine.memory.guest_bytes].reshape(-1, 4096)
    everything[snapshot.numbers] = snapshot.pages
    machine.cpu.restore(snapshot.cpu)
    machine.restore_devices(snapshot.devices)


def pack_snapshot(snapshot: Snapshot) -> bytes:
    """Return the file's bytes."""
    import zstandard

    header = {
        "memory_mib": snapshot.memory_mib,
        "cpu": snapshot.cpu.hex(),
        "devices": snapshot.devices,
        "notes": snapshot.notes,
    }
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True, threads=_PACKERS)
    parts = [packer.compress(json.dumps(header).encode()), packer.compress(snapshot.numbers.astype("<i8").tobytes())]
    parts.append(packer.compress(np.ascontiguousarray(snapshot.pages).data))
    sizes = _HEADER.pack(*(len(part) for part in parts), len(snapshot.numbers))
    return MAGIC + sizes + b"".join(parts)


def unpack_snapshot(data: bytes) -> Snapshot:
    """Parse what `pack_snapshot` returned; `SnapshotError` for anything else."""
    import zstandard

    try:
        if not data.startswith(MAGIC):
            raise SnapshotError("not a snapshot of this version")
        *sizes, count = _HEADER.unpack_from(data, len(MAGIC))
        at = len(MAGIC) + _HEADER.size
        if at + sum(sizes) != len(data):
            raise SnapshotError("the file is cut short")
        unpacker = zstandard.ZstdDecompressor()
        parts = []
        for size, limit in zip(sizes, (_LARGEST_HEADER, 8 * count, 4096 * count), strict=True):
            parts.append(unpacker.decompress(memoryview(data)[at : at + size], max_output_size=limit))
            at += size
        header = json.loads(parts[0])
        numbers = np.frombuffer(parts[1], dtype="<i8")
        pages = np.frombuffer(parts[2], dtype=np.uint8).reshape(-1, 4096)
        if not len(numbers) == len(pages) == count or (
            count and not 0 <= int(numbers.min()) <= int(numbers.max()) < header["memory_mib"] << 8
        ):
            raise SnapshotError("the page list is inconsistent")
        cpu = bytes.fromhex(header["cpu"])
        return Snapshot(header["memory_mib"], cpu, header["devices"], header["notes"], numbers, pages)
    except (zstandard.ZstdError, struct.error, *_DAMAGE) as error:
        raise SnapshotError(f"the snapshot is damaged: {error}") from error
