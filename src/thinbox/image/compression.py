"""The compressed payload of a kernel image: recognised by its magic, unpacked within a limit.

Why it exists: a kernel may be packed in seven ways (arch/x86/boot/compressed/Makefile), a package's data
in three of them, and none of them may be able to fill the host's memory or raise anything but
`KernelImageError`.
"""

import bz2
import importlib
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any

from thinbox.errors import KernelImageError

MAX_UNPACKED_BYTES = 512 << 20
"""Most bytes one payload may unpack to.

arch/x86/include/asm/page_64_types.h gives the kernel image 512 MiB of address space without KASLR and
1 GiB with it, for text, data and bss together; a stripped vmlinux that reached half of that would be
eight times the size of Debian's largest today (66 MB)."""

_LZ4_LEGACY_BLOCK_BYTES = 8 << 20  # LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE, lib/decompress_unlz4.c
_LZ4_LEGACY_MAGIC = 0x184C2102
_LZO_BLOCK_BYTES = 256 << 10  # LZO_BLOCK_SIZE, lib/decompress_unlzo.c
_LZO_VERSION_WITH_LEVEL = 0x0940
_LZO_HAS_FILTER = 0x800


def detect_compression(payload: bytes) -> str | None:
    """Return the name of the format whose magic number `payload` starts with, or None.

    Source: the table in lib/decompress.c.
    """
    for name, magic, _ in _FORMATS:
        if payload.startswith(magic):
            return name
    return None


def decompress(payload: bytes, limit_bytes: int = MAX_UNPACKED_BYTES) -> bytes:
    """Unpack `payload`; bytes after the compressed stream are ignored.

    Raises:
        KernelImageError: unknown format, damaged or cut short, or more than `limit_bytes` unpacked.
    """
    for name, magic, unpack in _FORMATS:
        if not payload.startswith(magic):
            continue
        try:
            unpacked = unpack(payload, limit_bytes + 1)
        except (KernelImageError, ImportError):
            raise
        except Exception as error:  # the libraries share no base class: lz4, zstd, lzma, zlib, struct
            reason = " ".join(str(error).split()) or type(error).__name__
            raise KernelImageError(f"the {name} data is damaged ({reason}); fetch the file again") from error
        if len(unpacked) > limit_bytes:
            raise KernelImageError(f"the {name} data unpacks to more than {limit_bytes >> 20} MiB; not a kernel")
        return unpacked
    raise KernelImageError(f"unknown compression (the data starts with {payload[:6].hex(' ') or 'nothing'})")


def _complete(decompressor: Any, unpacked: bytes, most_bytes: int) -> bytes:
    """Return `unpacked`, unless the stream ended before its end mark."""
    if not decompressor.eof and len(unpacked) < most_bytes:
        raise EOFError("it ends too early")
    return unpacked


def _unpack_gzip(payload: bytes, most_bytes: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    return _complete(stream, stream.decompress(payload, most_bytes), most_bytes)


def _unpack_xz(payload: bytes, most_bytes: int) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_UNPACKED_BYTES)
    return _complete(stream, stream.decompress(payload, most_bytes), most_bytes)


def _unpack_lzma(payload: bytes, most_bytes: int) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_UNPACKED_BYTES)
    return _complete(stream, stream.decompress(payload, most_bytes), most_bytes)


def _unpack_bzip2(payload: bytes, most_bytes: int) -> bytes:
    stream = bz2.BZ2Decompressor()
    return _complete(stream, stream.decompress(payload, most_bytes), most_bytes)


def _unpack_zstd(payload: bytes, most_bytes: int) -> bytes:
    import zstandard  # late: a warm start needs no decompressor

    # The kernel is packed with `zstd -22 --ultra`, whose window is 128 MiB.
    stream = zstandard.ZstdDecompressor(max_window_size=128 << 20).decompressobj()
    pieces, total = [], 0
    view = memoryview(payload)
    # By pieces, so that a bomb is noticed while it unpacks: a 4-byte block may become 128 KiB (RFC 8878,
    # 3.1.1.2), so that 2 KiB of input become at most 64 MiB before the next look.
    for start in range(0, len(view), 2 << 10):
        piece = stream.decompress(view[start : start + (2 << 10)])
        pieces.append(piece)
        total += len(piece)
        if stream.eof or total >= most_bytes:
            break
    return _complete(stream, b"".join(pieces), most_bytes)


def _unpack_lz4_legacy(payload: bytes, most_bytes: int) -> bytes:
    """Unpack blocks of at most 8 MiB, each behind its 32-bit length (lib/decompress_unlz4.c)."""
    import lz4.block  # type: ignore[import-untyped]  # late: a warm start needs no decompressor

    pieces, total, at = [], 0, 4
    view = memoryview(payload)
    while at + 4 <= len(payload) and total < most_bytes:
        (length,) = struct.unpack_from("<I", payload, at)
        if length == _LZ4_LEGACY_MAGIC:  # concatenated archives
            at += 4
            continue
        if length == 0 or at + 4 + length > len(payload):
            break  # what follows is the unpacked size the kernel build appends, which the caller checks
        piece = lz4.block.decompress(view[at + 4 : at + 4 + length], uncompressed_size=_LZ4_LEGACY_BLOCK_BYTES)
        pieces.append(piece)
        total += len(piece)
        at += 4 + length
    if not pieces:
        raise EOFError("it holds no block")
    return b"".join(pieces)


def _unpack_lzo(payload: bytes, most_bytes: int) -> bytes:
    """Unpack the lzop framing, big-endian throughout (lib/decompress_unlzo.c)."""
    unpack_block = _find_lzo()
    flags, at = _parse_lzop_header(payload)
    pieces, total = [], 0
    while total < most_bytes:
        (unpacked_bytes,) = struct.unpack_from(">I", payload, at)
        if unpacked_bytes == 0:
            break
        (packed_bytes,) = struct.unpack_from(">I", payload, at + 4)
        at += 8
        if unpacked_bytes > _LZO_BLOCK_BYTES or packed_bytes > unpacked_bytes:
            raise ValueError("a block is too large")
        at += 4 * (flags & 3).bit_count()  # adler32 and crc32 of the unpacked block
        if packed_bytes < unpacked_bytes:
            at += 4 * (flags >> 8 & 3).bit_count()  # and of the packed one
        block = payload[at : at + packed_bytes]
        if len(block) < packed_bytes:
            raise EOFError("it ends too early")
        pieces.append(block if packed_bytes == unpacked_bytes else unpack_block(block, unpacked_bytes))
        total += unpacked_bytes
        at += packed_bytes
    return b"".join(pieces)


def _parse_lzop_header(payload: bytes) -> tuple[int, int]:
    """Return the flags, and where the first block starts."""
    version, _, _ = struct.unpack_from(">HHH", payload, 9)
    at = 15 + 1 + (version >= _LZO_VERSION_WITH_LEVEL)  # method, level
    (flags,) = struct.unpack_from(">I", payload, at)
    at += 4 + 4 * bool(flags & _LZO_HAS_FILTER) + 8  # flags, filter, mode, low half of mtime
    at += 4 * (version >= _LZO_VERSION_WITH_LEVEL)  # high half of mtime
    name_bytes = payload[at]
    return flags, at + 1 + name_bytes + 4


def _find_lzo() -> Callable[[bytes, int], bytes]:
    """Return a function that unpacks one raw LZO1X block, from whichever library is installed."""
    try:
        lzo = importlib.import_module("lzo")
    except ImportError:
        pass
    else:
        return lambda block, size: bytes(lzo.decompress(block, False, size))
    try:
        minilzo = importlib.import_module("minilzo")  # comes with vmlinux-to-elf from 1.3 on
    except ImportError:
        raise KernelImageError("the kernel is packed with lzo; install the extra: pip install 'thinbox[lzo]'") from None
    return lambda block, size: bytes(minilzo.decompress(block, size))


_FORMATS: tuple[tuple[str, bytes, Callable[[bytes, int], bytes]], ...] = (
    ("gzip", b"\x1f\x8b", _unpack_gzip),
    ("xz", b"\xfd7zXZ\x00", _unpack_xz),
    ("lz4", b"\x02\x21\x4c\x18", _unpack_lz4_legacy),
    ("zstd", b"\x28\xb5\x2f\xfd", _unpack_zstd),
    ("bzip2", b"BZh", _unpack_bzip2),
    ("lzma", b"\x5d\x00\x00", _unpack_lzma),
    ("lzo", b"\x89LZO\x00\r\n\x1a\n", _unpack_lzo),
)
