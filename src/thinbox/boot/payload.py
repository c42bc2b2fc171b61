"""What is put into RAM of a kernel image, and where the CPU enters it.

Why it exists: there are two ways in. The unpacked kernel, at the address it was linked for, starts in half a second.
The bzImage's own decompressor is what moves a kernel to a random place (KASLR), so a boot with KASLR goes
through it, as any boot loader's would.

Source: Documentation/arch/x86/boot.rst; arch/x86/boot/header.S; arch/x86/boot/compressed/kaslr.c.
"""

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinbox.boot import layout
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.image.kernel import KernelImage


@dataclass(frozen=True, slots=True)
class Payload:
    """`pieces` are (guest-physical address, bytes); up to `end_paddr`, exclusive, RAM must be the kernel's alone."""

    pieces: tuple[tuple[int, bytes], ...] = field(repr=False)
    entry_paddr: int
    end_paddr: int


def unpacked_payload(image: "KernelImage") -> Payload:
    """Return the ELF segments of `image`, which are entered at `startup_64`."""
    pieces = tuple((s.paddr, image.vmlinux[s.offset : s.offset + s.file_bytes]) for s in image.segments)
    return Payload(pieces, image.entry_paddr, max(s.paddr + s.memory_bytes for s in image.segments))


def compressed_payload(image: "KernelImage") -> Payload:
    """Return the protected-mode part of the bzImage: the decompressor and what it unpacks.

    Raises:
        InputError: `image` is no bzImage, or was built without KASLR (it has no relocations).
    """
    if image.bzimage is None or image.setup_header is None:
        raise InputError("--kaslr needs a bzImage, whose decompressor moves the kernel; a vmlinux has none")
    if not image.relocs:
        raise InputError("this kernel was built without KASLR (CONFIG_RANDOMIZE_BASE); leave --kaslr out")
    header = image.setup_header
    sectors = header[0] or 4  # 0 means 4, says boot.rst
    base = layout.ZERO_PAGE_HEADER
    try:
        (alignment,) = struct.unpack_from("<I", header, layout.HEADER_KERNEL_ALIGNMENT - base)
        (preferred,) = struct.unpack_from("<Q", header, layout.HEADER_PREFERRED_ADDRESS - base)
        (init_bytes,) = struct.unpack_from("<I", header, layout.HEADER_INIT_BYTES - base)
    except struct.error:
        raise InputError("the bzImage's setup header is cut short; fetch the file again") from None
    code = image.bzimage[(sectors + 1) * layout.SECTOR_BYTES :]
    if not alignment or preferred % alignment or preferred < layout.HIGH_MEMORY or init_bytes < len(code):
        raise InputError("the bzImage's setup header makes no sense (alignment, address or size); fetch the file again")
    return Payload(((preferred, code),), preferred + layout.ENTRY_64, preferred + init_bytes)
