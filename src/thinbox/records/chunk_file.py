"""Compressed chunks of a record: the first few in memory, the rest in a temporary file without a name.

Why it exists: a tenant chooses how many calls it makes. What a run keeps of each must not grow in the host's memory.

Rules of this file:
- Nothing here fails a run. Without a temporary folder, with a full disk, or past the bound a chunk is not kept, `full`
  says why, and no later one is kept either.
- The file has no name, so nothing of it outlives the process, however that ends.
"""

import os
import tempfile
import weakref
from typing import BinaryIO

import zstandard

MEMORY_BYTES = 16 << 20
"""Compressed bytes kept in memory before there is a file: some 6 million calls of a getpid loop (2.6 bytes each)."""
FREE_BYTES = 256 << 20
"""Room left to others on the file system of the temporary folder."""
_LEVEL = 1
"""Of zstd. Level 3 takes twice the time, and saves 1 % (measured with calls, by planes of bytes)."""


class ChunkFile:
    """Chunks by number, from 0; at most `most_bytes` of them, compressed."""

    def __init__(self, most_bytes: int) -> None:
        self.full = ""
        """Why no more is kept; empty while there is room."""
        self._most = most_bytes
        self._in_memory: list[bytes] = []
        self._places: list[tuple[int, int]] = []
        self._bytes = self._end = 0
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._in_memory) + len(self._places)

    def append(self, plain: bytes) -> bool:
        """Keep a chunk as the next number; tell whether there was room."""
        if self.full:
            return False
        # Copied: what zstandard returns holds the room it reserved, that of the plain bytes and more.
        data = bytes(memoryview(zstandard.ZstdCompressor(level=_LEVEL).compress(plain)))
        if self._bytes + len(data) > self._most:
            self.full = f"its bound of {self._most >> 20:,} MiB is reached"
            return False
        if self._file is None and self._bytes + len(data) <= MEMORY_BYTES:
            self._in_memory.append(data)
        else:
            try:
                self._write(data)
            except OSError as error:
                self.full = f"the temporary folder takes no more ({error.strerror or error})"
                return False
        self._bytes += len(data)
        return True

    def read(self, number: int) -> bytes:
        """Return a chunk as it was; IndexError for one that there is not."""
        if number < len(self._in_memory):
            data = self._in_memory[number]
        else:
            assert self._file is not None
            offset, size = self._places[number - len(self._in_memory)]
            data = os.pread(self._file.fileno(), size, offset)
        return zstandard.ZstdDecompressor().decompress(data)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="thinbox-record-")
            weakref.finalize(self, self._file.close)
        descriptor = self._file.fileno()
        system = os.fstatvfs(descriptor)
        if system.f_bavail * system.f_frsize < FREE_BYTES + len(data):
            raise OSError(0, f"less than {FREE_BYTES >> 20} MiB are free there")
        view = memoryview(data)
        while view:
            view = view[os.pwrite(descriptor, view, self._end + len(data) - len(view)) :]
        self._places.append((self._end, len(data)))
        self._end += len(data)
