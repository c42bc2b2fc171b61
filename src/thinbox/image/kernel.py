"""A kernel image: the bytes of a bzImage or vmlinux, taken apart into what a boot loader needs.

Why it exists: loading and configuring are separate stages. This one knows the file formats and returns
one value, `KernelImage`; where things go in guest memory is decided later. Whatever is wrong with a file,
the only exception is `KernelImageError`.

Source: Documentation/arch/x86/boot.rst; arch/x86/boot/header.S.
"""

import hashlib
import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

from thinbox.address import PAddr
from thinbox.errors import KernelImageError
from thinbox.image.bundle import is_bundle, unpack_bundle
from thinbox.image.compression import decompress, detect_compression
from thinbox.image.elf import ELF_MAGIC, Section, Segment, parse_elf

MAX_FILE_BYTES = 1 << 30
"""Most bytes a kernel file may have: a vmlinux with debugging data (Debian's -dbg package) has about 0.6 GiB."""

SETUP_HEADER_OFFSET = 0x1F1
"""Where the setup header starts in a bzImage, and in the boot_params page."""

_MAGIC_OFFSET = 0x202
_VERSION_OFFSET = 0x206
_PAYLOAD_OFFSET = 0x248
_OLDEST_PROTOCOL = 0x20C  # 2.12 (Linux 3.8): the first to say whether there is a 64-bit entry
_XLOADFLAGS_OFFSET = 0x236
_XLF_KERNEL_64 = 1
_INIT_SIZE_OFFSET = 0x260
_SECTOR_BYTES = 512
_BUNDLE = "libkrunfw"

MAX_INIT_BYTES = 1 << 30
"""Most memory a bzImage may want while it starts (`init_size`): KERNEL_IMAGE_SIZE with KASLR
(arch/x86/include/asm/page_64_types.h); Debian's wants 60 MiB."""


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel, unpacked. `entry_paddr` is the ELF entry, which is `startup_64`: the 64-bit entry point.

    `setup_header` is the real-mode header from 0x1f1 on (None for a bare vmlinux), `bzimage` the file it
    came from, `vmlinux` the ELF file, `relocs` what follows it in the payload (the relocation table KASLR
    uses), `sha256` the hash of the input file, `compression` the payload's format ("none" for an ELF file, "libkrunfw"
    for that library).
    """

    setup_header: bytes | None = field(repr=False)
    bzimage: bytes | None = field(repr=False)
    vmlinux: bytes = field(repr=False)
    relocs: bytes = field(repr=False)
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...] = field(repr=False)
    entry_paddr: PAddr
    sha256: str
    compression: str

    def offset_of_vaddr(self, vaddr: int) -> int | None:
        """Return where in `vmlinux` the byte at link-time address `vaddr` is, or None if the file has none."""
        for segment in self.segments:
            if segment.vaddr <= vaddr < segment.vaddr + segment.file_bytes:
                return vaddr - segment.vaddr + segment.offset
        return None

    def read_vaddr(self, vaddr: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` of the file's bytes at link-time `vaddr`; empty if there are none."""
        offset = self.offset_of_vaddr(vaddr)
        return b"" if offset is None else self.vmlinux[offset : offset + size_bytes]

    def section(self, name: str) -> Section | None:
        """Return the section called `name`, or None (also when the section table was stripped)."""
        return next((section for section in self.sections if section.name == name), None)


def load_kernel_image(path_or_bytes: Path | str | bytes) -> KernelImage:
    """Read a bzImage, a vmlinux, a compressed vmlinux, or a libkrunfw.so, and unpack it.

    Raises:
        KernelImageError: the file cannot be read, or is no x86-64 kernel, or is damaged.
    """
    if isinstance(path_or_bytes, bytes):
        return parse_kernel_image(path_or_bytes)
    path = Path(path_or_bytes)
    data = read_kernel_file(path)
    try:
        return parse_kernel_image(data)
    except KernelImageError as error:
        raise KernelImageError(f"{path}: {error}") from error


def read_kernel_file(path: Path) -> bytes:
    """Return the bytes of a regular file of at most `MAX_FILE_BYTES`.

    Raises:
        KernelImageError: missing, unreadable, a directory or device, or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block
        with open(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KernelImageError(f"{path} is not a regular file; give a bzImage, a vmlinux or a .deb")
            if status.st_size > MAX_FILE_BYTES:
                raise KernelImageError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; not a kernel")
            return stream.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise KernelImageError(f"cannot read the kernel {path}: {reason}") from error


def parse_kernel_image(data: bytes) -> KernelImage:
    """Unpack a kernel image held in memory; see `load_kernel_image`."""
    if not data:
        raise KernelImageError("the kernel image is empty")
    start, size_bytes, compression = find_payload(data)
    payload = data[start : start + size_bytes]
    if compression == _BUNDLE:
        unpacked = unpack_bundle(data)
    else:
        unpacked = payload if compression == "none" else decompress(payload)
    end = parse_elf(unpacked).end_bytes
    return assemble_kernel_image(data, unpacked[:end], unpacked[end:], hashlib.sha256(data).hexdigest())


def find_payload(data: bytes) -> tuple[int, int, str]:
    """Return what holds the vmlinux inside `data`: (offset, bytes, how it is packed, "none" for an ELF file).

    Raises:
        KernelImageError: `data` is no kernel image, or one without a 64-bit entry.
    """
    if is_bundle(data):
        return 0, len(data), _BUNDLE
    if data.startswith(ELF_MAGIC):
        return 0, len(data), "none"
    start, size_bytes = _bzimage_payload(data) if _is_bzimage(data) else (0, len(data))  # or a packed vmlinux
    magic = data[start : start + 16]
    compression = "none" if magic.startswith(ELF_MAGIC) else detect_compression(magic)
    if compression is None:
        raise KernelImageError("not a kernel image; give a bzImage (/boot/vmlinuz-…), a vmlinux or a .deb")
    return start, size_bytes, compression


def _is_bzimage(data: bytes) -> bool:
    return data[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] == b"HdrS" and not data.startswith(ELF_MAGIC)


def _bzimage_payload(data: bytes) -> tuple[int, int]:
    if len(data) < _INIT_SIZE_OFFSET + 4:
        raise KernelImageError("the bzImage is cut short; fetch the file again")
    (version,) = struct.unpack_from("<H", data, _VERSION_OFFSET)
    (xloadflags,) = struct.unpack_from("<H", data, _XLOADFLAGS_OFFSET)
    if version < _OLDEST_PROTOCOL or not xloadflags & _XLF_KERNEL_64:
        raise KernelImageError("the bzImage has no 64-bit entry; give an amd64 kernel of Linux 3.8 or later")
    setup_sectors = data[SETUP_HEADER_OFFSET] or 4  # 0 means 4, says boot.rst
    offset, size_bytes = struct.unpack_from("<II", data, _PAYLOAD_OFFSET)
    start = (setup_sectors + 1) * _SECTOR_BYTES + offset
    if size_bytes < 4 or start + size_bytes > len(data):
        raise KernelImageError("the bzImage is cut short; fetch the file again")
    (init_bytes,) = struct.unpack_from("<I", data, _INIT_SIZE_OFFSET)
    if init_bytes > MAX_INIT_BYTES:
        raise KernelImageError(
            f"the bzImage wants {init_bytes >> 20} MiB to start in, more than a kernel may have; fetch the file again"
        )
    return start, size_bytes


def assemble_kernel_image(data: bytes, vmlinux: bytes, relocs: bytes, sha256: str) -> KernelImage:
    """Join the input file `data`, whose hash is `sha256`, and its unpacked payload: the ELF file and what follows.

    A bzImage's payload ends with its unpacked size (scripts/Makefile.lib, size_append), so that a short or
    damaged one is noticed.

    Raises:
        KernelImageError: the payload is no x86-64 ELF file, or has another size than the image says.
    """
    start, size_bytes, compression = find_payload(data)
    is_bzimage = _is_bzimage(data)
    if is_bzimage and compression != "none":
        (expected_bytes,) = struct.unpack_from("<I", data, start + size_bytes - 4)
        unpacked_bytes = len(vmlinux) + len(relocs)
        if expected_bytes != unpacked_bytes:
            raise KernelImageError(
                f"the payload unpacks to {unpacked_bytes} bytes but should to {expected_bytes}; fetch the file again"
            )
    layout = parse_elf(vmlinux)
    header_end = _MAGIC_OFFSET + data[_MAGIC_OFFSET - 1] if is_bzimage else 0
    return KernelImage(
        setup_header=data[SETUP_HEADER_OFFSET:header_end] if is_bzimage else None,
        bzimage=data if is_bzimage else None,
        vmlinux=vmlinux,
        relocs=relocs,
        segments=layout.segments,
        sections=layout.sections,
        entry_paddr=layout.entry_paddr,
        sha256=sha256,
        compression=compression,
    )
