"""The kernel in libkrunfw's library, as an ELF file like any other.

Why it exists: microVM runtimes ship their kernel as `libkrunfw.so`: the segments of a vmlinux laid out as in memory, in
one object called KERNEL_BUNDLE, and where it goes and is entered as constants of one function.

Rules of this file: nothing of the library is run; its function is read as instructions.

Source: libkrunfw's bin2cbundle.py (`krunfw_get_kernel(&load_addr, &entry_addr, &size)`; before ABI 5 the entry is the
load address); ELF-64 object file format, figures 3 (symbols) and 2-1 (program headers).
"""

import struct
from dataclasses import dataclass

from thinbox.address import VAddr
from thinbox.errors import KernelImageError
from thinbox.image.elf import ELF_MAGIC, ElfLayout, parse_elf

_SHT_DYNSYM = 11
_SYMBOL = struct.Struct("<IBBHQQ")
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_IDENT = ELF_MAGIC + b"\x02\x01\x01" + bytes(9)
_ET_DYN = 3
_MOST_SYMBOLS = 1000
_KERNEL_BASE = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map
_PAGE = 0x1000
_BSS_BYTES = 64 << 20
"""Room for what the kernel wants behind its data, whose size the library does not say; Debian's wants 5 MiB."""
_HIGHEST = 1 << 30
_ARGUMENTS = {"rdi": 0, "rsi": 1, "rdx": 2}


@dataclass(frozen=True, slots=True)
class _Exported:
    vaddr: int
    size_bytes: int


def is_bundle(data: bytes) -> bool:
    """Tell whether a file is a shared library that says it holds a kernel."""
    return data.startswith(ELF_MAGIC) and data[16:18] == b"\x03\0" and b"\0KERNEL_BUNDLE\0" in data[: 1 << 16]


def unpack_bundle(data: bytes) -> bytes:
    """Return the library's kernel as an ELF file of one segment.

    Raises:
        KernelImageError: it is damaged, or gives its kernel in a way that is not known.
    """
    layout = parse_elf(data)
    exported = _exports(data, layout)
    bundle, function = exported.get(b"KERNEL_BUNDLE"), exported.get(b"krunfw_get_kernel")
    if bundle is None or function is None:
        raise KernelImageError("the library exports no kernel (KERNEL_BUNDLE, krunfw_get_kernel); give libkrunfw.so")
    stores = _constants(_bytes_at(data, layout, function), function.vaddr)
    load, entry = stores.get(0), stores.get(1)
    if 2 not in stores:
        entry = load
    if load is None or entry is None or load % _PAGE or not load <= entry < load + bundle.size_bytes <= _HIGHEST:
        raise KernelImageError("the library does not say in a known way where its kernel goes (krunfw_get_kernel)")
    flat = _bytes_at(data, layout, bundle)
    start = _PAGE
    header = _HEADER.pack(_IDENT, 2, 62, 1, entry, _HEADER.size, 0, 0, _HEADER.size, _SEGMENT.size, 1, 0, 0, 0)
    segment = _SEGMENT.pack(1, 7, start, _KERNEL_BASE + load, load, len(flat), len(flat) + _BSS_BYTES, _PAGE)
    return (header + segment).ljust(start, b"\0") + flat


def _exports(data: bytes, layout: ElfLayout) -> dict[bytes, _Exported]:
    table = next((section for section in layout.sections if section.kind == _SHT_DYNSYM), None)
    if table is None or table.link >= len(layout.sections) or table.size_bytes > _MOST_SYMBOLS * _SYMBOL.size:
        raise KernelImageError("the library has no table of what it exports; give libkrunfw.so as it was built")
    strings = layout.sections[table.link]
    names = data[strings.offset : strings.offset + strings.size_bytes]
    found = {}
    usable = table.size_bytes - table.size_bytes % _SYMBOL.size
    for name_at, _info, _other, index, value, size in _SYMBOL.iter_unpack(data[table.offset : table.offset + usable]):
        if index:
            found[names[name_at : name_at + 64].partition(b"\0")[0]] = _Exported(value, size)
    return found


def _bytes_at(data: bytes, layout: ElfLayout, wanted: _Exported) -> bytes:
    for segment in layout.segments:
        offset = wanted.vaddr - segment.vaddr
        if offset >= 0 and offset + wanted.size_bytes <= segment.file_bytes:
            return data[segment.offset + offset : segment.offset + offset + wanted.size_bytes]
    raise KernelImageError("what the library exports lies outside the file; fetch it again")


def _constants(code: bytes, vaddr: VAddr | int) -> dict[int, int]:
    """Return the constants a function stores where its arguments point, by the argument's number.

    What compilers make of it: arguments stay in their registers, or are put on the stack and taken from there.
    """
    import capstone  # late: few kernels lie in a library

    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    holders: dict[str, int] = dict(_ARGUMENTS)
    found: dict[int, int] = {}
    for insn in decoder.disasm(code, int(vaddr)):
        if insn.mnemonic not in ("mov", "movabs") or len(insn.operands) != 2:
            continue
        to, value = insn.operands
        if to.type == capstone.x86.X86_OP_MEM and value.type == capstone.x86.X86_OP_IMM:
            base = insn.reg_name(to.mem.base) or ""
            if base in holders and not to.mem.disp and not to.mem.index and to.size == 8:
                found[holders[base]] = int(value.imm)
            continue
        source, target = _place(insn, value), _place(insn, to)
        holders.pop(target, None)
        if source in holders:
            holders[target] = holders[source]
    return found


def _place(insn: object, operand: object) -> str:
    """Name a register, or a slot of the stack."""
    import capstone

    name = insn.reg_name  # type: ignore[attr-defined]
    if operand.type == capstone.x86.X86_OP_REG:  # type: ignore[attr-defined]
        return str(name(operand.reg))  # type: ignore[attr-defined]
    if operand.type == capstone.x86.X86_OP_MEM:  # type: ignore[attr-defined]
        return f"{name(operand.mem.base)}{operand.mem.disp:+d}"  # type: ignore[attr-defined]
    return ""
