"""The symbols a kernel carries: its ELF symbol table if it has one, otherwise its own kallsyms.

Why it exists: distributions strip the symbol table and ship a stub System.map, but the kernel still needs
its names at run time (kernel/kallsyms.c). vmlinux-to-elf finds that table in the unpacked image.
"""

import contextlib
import io
import logging
import struct
from collections.abc import Iterator

from thinbox.errors import KernelImageError
from thinbox.image.elf import Section
from thinbox.image.kernel import KernelImage
from thinbox.image.symbols import SymbolTable

_SHT_SYMTAB = 2
_ELF_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
_LONGEST_NAME = 512
"""KSYM_NAME_LEN (include/linux/kallsyms.h)."""
_MOST_SYMBOLS = 4_000_000
"""Debian's vmlinux with debugging data has 330,000."""
_SHN_ABS = 0xFFF1
_STT_SKIPPED = (3, 4)  # STT_SECTION, STT_FILE name nothing in memory


def parse_symbols(image: KernelImage) -> SymbolTable:
    """Return every symbol of `image`, duplicates included; takes seconds for a stripped kernel.

    Raises:
        KernelImageError: the kernel was built without kallsyms, or its table makes no sense.
    """
    for section in image.sections:
        if section.kind == _SHT_SYMTAB:
            return SymbolTable.from_symbols(list(_elf_symbols(image, section)))
    return SymbolTable.from_symbols(_find_kallsyms(image.vmlinux))


def _find_kallsyms(vmlinux: bytes) -> list[tuple[int, str, str]]:
    from vmlinux_to_elf.core.kallsyms import KallsymsFinder  # late: slow, and only a cold start needs it

    try:
        with _silence():
            found = KallsymsFinder(vmlinux, 64).symbols
            symbols = [
                (
                    int(symbol.virtual_address) & 0xFFFF_FFFF_FFFF_FFFF,
                    _letter(symbol.symbol_type.value, is_global=bool(symbol.is_global)),
                    str(symbol.name),
                )
                for symbol in found
            ]
    except Exception as error:  # the finder raises whatever its guesses run into
        raise KernelImageError(
            "no kallsyms found in the kernel; it must be built with CONFIG_KALLSYMS=y and CONFIG_KALLSYMS_ALL=y"
        ) from error
    return symbols


def _letter(letter: str, *, is_global: bool) -> str:
    return letter.upper() if is_global else letter.lower()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the finder's prints and log lines off the user's terminal, whatever logging is set up."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


def _elf_symbols(image: KernelImage, table: Section) -> Iterator[tuple[int, str, str]]:
    if table.link >= len(image.sections):
        raise KernelImageError("the kernel's ELF symbol table has no names; fetch the kernel again")
    strings = image.sections[table.link]
    names = image.vmlinux[strings.offset : strings.offset + strings.size_bytes]
    if table.size_bytes > _MOST_SYMBOLS * _ELF_SYMBOL.size:
        raise KernelImageError(
            f"the kernel's symbol table has more than {_MOST_SYMBOLS} entries; fetch the kernel again"
        )
    usable = table.size_bytes - table.size_bytes % _ELF_SYMBOL.size
    entries = memoryview(image.vmlinux)[table.offset : table.offset + usable]
    for name_at, info, _, section_index, value, _ in _ELF_SYMBOL.iter_unpack(entries):
        if info & 15 in _STT_SKIPPED or section_index == 0 or name_at == 0:
            continue
        name = names[name_at : name_at + _LONGEST_NAME].partition(b"\0")[0].decode("utf-8", "replace")
        yield value, _nm_letter(image, info, section_index), name


def _nm_letter(image: KernelImage, info: int, section_index: int) -> str:
    """Return the letter nm(1) would print: text, data or absolute, upper case if global, w if weak."""
    binding = info >> 4
    if section_index == _SHN_ABS:
        letter = "a"
    elif section_index < len(image.sections):
        name = image.sections[section_index].name
        letter = "t" if "text" in name or name == ".altinstr_aux" else "b" if "bss" in name else "d"
    else:
        letter = "d"
    if binding == 2:  # STB_WEAK
        return "W" if letter == "t" else "V"
    return letter.upper() if binding == 1 else letter
