"""A kernel module made by hand: the smallest relocatable ELF file that Linux loads.

Why it exists: the cases of init_module need a module of the very kernel that runs, and nothing is compiled here. It
has no `vermagic` and no symbol versions; a kernel with CONFIG_MODULE_FORCE_LOAD takes it all the same (and says
that it is tainted). Format: kernel/module/main.c, `load_module`.
"""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinbox.kernel.module_file import ModuleFileShape

_PROGBITS, _SYMTAB, _STRTAB, _RELA = 1, 2, 3, 4
_WRITE, _ALLOC, _EXEC = 1, 2, 4
_R_X86_64_64 = 1
_GLOBAL_FUNCTION = 0x12
_TEXT = b"\x31\xc0\xc3".ljust(16, b"\x90") + b"\xc3"
"""`xor eax, eax; ret` for init_module at 0; `ret` for cleanup_module at 16."""


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    flags: int
    content: bytes
    link: int = 0
    info: int = 0
    entry_bytes: int = 0


def build_module(shape: "ModuleFileShape", name: str, *, has_code: bool) -> bytes:
    """Return a module called `name`; with `has_code`, its init function returns 0 and its exit function nothing."""
    module = bytearray(shape.module_bytes)
    module[shape.name_at : shape.name_at + len(name)] = name.encode()
    strings = b"\0init_module\0cleanup_module\0"
    symbols = bytes(24)
    relocations = b""
    if has_code:
        functions = (("init_module", shape.init_at, 0), ("cleanup_module", shape.exit_at, 16))
        for number, (symbol, place, value) in enumerate(functions, 1):
            symbols += struct.pack("<IBBHQQ", strings.index(symbol.encode()), _GLOBAL_FUNCTION, 0, 1, value, 1)
            if place is not None:
                relocations += struct.pack("<QQq", place, number << 32 | _R_X86_64_64, 0)
    this = ".gnu.linkonce.this_module"
    return _write_elf(
        (
            _Section("", 0, 0, b""),
            _Section(".text", _PROGBITS, _ALLOC | _EXEC, _TEXT),
            _Section(this, _PROGBITS, _ALLOC | _WRITE, bytes(module)),
            _Section(".rela" + this, _RELA, 0, relocations, 5, 2, 24),
            _Section(".modinfo", _PROGBITS, _ALLOC, b"license=GPL\0"),
            _Section(".symtab", _SYMTAB, 0, symbols, 6, 1, 24),
            _Section(".strtab", _STRTAB, 0, strings),
        )
    )


def _write_elf(sections: tuple[_Section, ...]) -> bytes:
    names = b"".join(section.name.encode() + b"\0" for section in sections) + b".shstrtab\0"
    sections = (*sections, _Section(".shstrtab", _STRTAB, 0, names))
    body, headers, name_at = bytearray(64), bytearray(), 0
    for section in sections:
        body += bytes(-len(body) % 64)
        fields = (name_at, section.kind, section.flags, 0, len(body), len(section.content), section.link, section.info)
        headers += struct.pack("<IIQQQQIIQQ", *fields, 64 if section.kind else 0, section.entry_bytes)
        body += section.content
        name_at += len(section.name) + 1
    body += bytes(-len(body) % 64)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    count = len(sections)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 1, 62, 1, 0, 0, len(body), 0, 64, 0, 0, 64, count, count - 1)
    return head + bytes(body[64:]) + bytes(headers)
