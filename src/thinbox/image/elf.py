"""The few facts of an ELF file a kernel is loaded by: its segments, sections and where it ends.

Why it exists: the vmlinux inside a kernel image is read on every start, so this is a handful of
`struct` calls on the bytes; and it returns or raises `KernelImageError`, nothing else.
"""

import struct
from dataclasses import dataclass

from thinbox.address import PAddr, VAddr
from thinbox.errors import KernelImageError

ELF_MAGIC = b"\x7fELF"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr
_SEGMENT = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr
_PT_LOAD = 1
_SHT_NOBITS = 8
_CLASS64_LITTLE = b"\x02\x01"
_MACHINE_X86_64 = 62
_LONGEST_NAME = 256
_TYPES = (2, 3)  # ET_EXEC, ET_DYN
_OBJECT = 1  # ET_REL


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD segment: `file_bytes` bytes at `offset` go to `paddr`, the rest up to `memory_bytes` is zero.

    The per-CPU segment's `vaddr` is 0 on kernels before 6.15 (its symbols are offsets). `flags` are PF_X=1,
    PF_W=2, PF_R=4.
    """

    paddr: PAddr
    vaddr: VAddr
    offset: int
    file_bytes: int
    memory_bytes: int
    flags: int


@dataclass(frozen=True, slots=True)
class Section:
    """A section: `size_bytes` bytes at `offset` of the file, seen by the kernel at `vaddr` (0: not loaded)."""

    name: str
    kind: int
    vaddr: VAddr
    offset: int
    size_bytes: int
    link: int


@dataclass(frozen=True, slots=True)
class ElfLayout:
    """What `parse_elf` found; `end_bytes` is the length of the ELF file itself, without what follows it."""

    entry_paddr: PAddr
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    end_bytes: int


def parse_elf(data: bytes) -> ElfLayout:
    """Parse the headers of a 64-bit little-endian x86 ELF file.

    Raises:
        KernelImageError: anything else, or a header that points outside `data`.
    """
    if not data.startswith(ELF_MAGIC):
        raise KernelImageError("the kernel does not unpack to an ELF file; is it a Linux kernel?")
    if len(data) < _HEADER.size:
        raise KernelImageError("the kernel's ELF header is cut short; fetch the file again")
    header = _HEADER.unpack_from(data)
    ident, kind, machine = header[:3]
    if ident[4:6] != _CLASS64_LITTLE or machine != _MACHINE_X86_64:
        raise KernelImageError("the kernel is not for x86-64; give an amd64 kernel")
    if kind not in _TYPES:
        raise KernelImageError("the ELF file is no linked kernel (an object file?); give a vmlinux or a bzImage")
    entry, phoff, shoff = header[4:7]
    phentsize, phnum, shentsize, shnum, shstrndx = header[9:14]
    segments = _parse_segments(data, phoff, phentsize, phnum)
    sections = _parse_sections(data, shoff, shentsize, shnum, shstrndx)
    ends = [_HEADER.size, phoff + phentsize * phnum, shoff + shentsize * shnum if shnum else 0]
    ends += [segment.offset + segment.file_bytes for segment in segments]
    ends += [section.offset + section.size_bytes for section in sections if section.kind != _SHT_NOBITS]
    return ElfLayout(PAddr(entry), segments, sections, max(ends))


def parse_object_sections(data: bytes) -> tuple[Section, ...]:
    """Parse the sections of a 64-bit little-endian x86 object file (ET_REL), as a kernel module is.

    Raises:
        KernelImageError: anything else, or a header that points outside `data`.
    """
    if not data.startswith(ELF_MAGIC) or len(data) < _HEADER.size:
        raise KernelImageError("it is no ELF file")
    header = _HEADER.unpack_from(data)
    if header[0][4:6] != _CLASS64_LITTLE or header[2] != _MACHINE_X86_64 or header[1] != _OBJECT:
        raise KernelImageError("it is no object file for x86-64")
    return _parse_sections(data, header[6], *header[11:14])


def _parse_segments(data: bytes, phoff: int, entry_bytes: int, count: int) -> tuple[Segment, ...]:
    if entry_bytes != _SEGMENT.size or phoff + entry_bytes * count > len(data):
        raise KernelImageError("the kernel's ELF program headers lie outside the file; fetch it again")
    segments = []
    for index in range(count):
        kind, flags, offset, vaddr, paddr, file_bytes, memory_bytes, _ = _SEGMENT.unpack_from(
            data, phoff + entry_bytes * index
        )
        if kind != _PT_LOAD:
            continue
        if offset + file_bytes > len(data) or memory_bytes < file_bytes:
            raise KernelImageError("a segment of the kernel lies outside the file; fetch it again")
        segments.append(Segment(PAddr(paddr), VAddr(vaddr), offset, file_bytes, memory_bytes, flags))
    # The kernel's linker script lays segments one behind the other; those that overlap multiply what is loaded.
    if sum(segment.file_bytes for segment in segments) > len(data):
        raise KernelImageError("the kernel's segments lie over one another; fetch it again")
    if not segments:
        raise KernelImageError("the kernel's ELF file has nothing to load; give a vmlinux or a bzImage")
    return tuple(segments)


def _parse_sections(data: bytes, shoff: int, entry_bytes: int, count: int, names_index: int) -> tuple[Section, ...]:
    """Sections are optional: a kernel that was stripped of their table still boots."""
    if count == 0:
        return ()
    if entry_bytes != _SECTION.size or shoff + entry_bytes * count > len(data) or names_index >= count:
        raise KernelImageError("the kernel's ELF section headers lie outside the file; fetch it again")
    raw = [_SECTION.unpack_from(data, shoff + entry_bytes * index) for index in range(count)]
    if any(entry[1] != _SHT_NOBITS and entry[4] + entry[5] > len(data) for entry in raw):
        raise KernelImageError("a section of the kernel lies outside the file; fetch it again")
    names_start = raw[names_index][4]
    names = data[names_start : names_start + raw[names_index][5]]
    return tuple(
        Section(_name_at(names, entry[0]), entry[1], VAddr(entry[3]), entry[4], entry[5], entry[6]) for entry in raw
    )


def _name_at(names: bytes, start: int) -> str:
    # Bounded, for thousands of sections may name the same megabytes.
    return names[start : start + _LONGEST_NAME].partition(b"\0")[0].decode("ascii", "replace")
