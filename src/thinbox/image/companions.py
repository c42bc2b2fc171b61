"""Symbols and types of a kernel from files beside it: its vmlinux, a System.map, or raw BTF.

Why it exists: a kernel of one's own may name its functions only, or nothing, and carry no types. What its build left
has both. A specification of a kernel may name them: `bzImage,symbols=System.map,types=vmlinux`; a build folder has all.

Rules of this file: whatever is wrong with a file, the only exception is `KernelImageError`. That the symbols are this
kernel's, its own banner must say; that the types are, its first task.

Source: nm(1) (System.map); Documentation/bpf/btf.rst.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from thinbox.errors import KernelImageError
from thinbox.image.btf import TypeTable
from thinbox.image.elf import ELF_MAGIC
from thinbox.image.kallsyms import parse_symbols
from thinbox.image.kernel import KernelImage, parse_kernel_image, read_kernel_file
from thinbox.image.symbols import SymbolTable
from thinbox.image.types import Report, read_types, require_own

_WORDS = ("symbols", "types")
_MAP_LINE = re.compile(rb"^([0-9a-f]{16}) ([A-Za-z?]) (\S{1,512})$", re.MULTILINE)
_IMAGE_IN_BUILD = ("arch/x86/boot/bzImage", "vmlinux")
_MOST_MAP_BYTES = 256 << 20
_BANNER = b"Linux version "


@dataclass(frozen=True, slots=True)
class Companions:
    """The files that have a kernel's symbols and types; None where the kernel's own are meant."""

    symbols: Path | None = None
    types: Path | None = None

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.symbols is not None or self.types is not None

    def over(self, other: "Companions") -> "Companions":
        """Return these files, and those of `other` for what is not named."""
        return Companions(self.symbols or other.symbols, self.types or other.types)


NONE = Companions()


def split_spec(spec: str) -> tuple[str, Companions]:
    """Return the kernel that a specification names, and the files beside it.

    Raises:
        KernelImageError: it has words that mean nothing.
    """
    kernel, *words = spec.split(",") if "=" in spec.rpartition(",")[2] else [spec]
    found: dict[str, Path] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _WORDS or not equals or not value or name in found:
            raise KernelImageError(f"{word!r} means nothing in {spec!r}; write KERNEL,symbols=FILE,types=FILE")
        found[name] = Path(value)
    return kernel, Companions(found.get("symbols"), found.get("types"))


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """What names a kernel: a specification (None: the default one), and files beside it that were named apart."""

    kernel: str | None = None
    beside: Companions = NONE

    def words(self) -> list[str]:
        """Return the options of a command that name the same."""
        named = {"kernel": self.kernel, "symbols": self.beside.symbols, "types": self.beside.types}
        return [word for name, value in named.items() if value is not None for word in (f"--{name}", str(value))]


def read_spec(spec: "str | KernelSpec | None") -> tuple[str | None, Companions]:
    """Return the kernel that is named, None for the default one, and the files beside it.

    Raises:
        KernelImageError: it has words that mean nothing, or names a file twice.
    """
    if not isinstance(spec, KernelSpec):
        spec = KernelSpec(spec)
    kernel, inside = (None, NONE) if spec.kernel is None else split_spec(spec.kernel)
    for name in _WORDS:
        if getattr(inside, name) is not None and getattr(spec.beside, name) is not None:
            raise KernelImageError(f"{spec.kernel!r} names the kernel's {name} already; leave --{name} out")
    return kernel, inside.over(spec.beside)


def find_build(folder: Path) -> tuple[Path, Companions]:
    """Return the kernel that was built in a folder, and its vmlinux as where its symbols and types are; its types, if a
    file `types.btf` is there, are that.

    Raises:
        KernelImageError: none was built there.
    """
    vmlinux, types = folder / "vmlinux", folder / "types.btf"
    for name in _IMAGE_IN_BUILD:
        if (folder / name).is_file():
            return folder / name, (
                Companions(vmlinux, types if types.is_file() else vmlinux) if vmlinux.is_file() else NONE
            )
    raise KernelImageError(f"{folder} has no {' and no '.join(_IMAGE_IN_BUILD)}; build the kernel there (make bzImage)")


def load_symbols(path: Path, image: KernelImage) -> SymbolTable:
    """Return the symbols in a vmlinux or a System.map; `image` is the kernel they must be of.

    Raises:
        KernelImageError: the file cannot be read, or it is another kernel's.
    """
    try:
        symbols = _parse_symbols(read_kernel_file(path))
    except KernelImageError as error:
        raise KernelImageError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    banner = symbols.find("linux_banner")
    if banner is None or not image.read_vaddr(banner, len(_BANNER)).startswith(_BANNER):
        raise KernelImageError(f"{path} is not of this kernel: its banner is not where the symbols say")
    return symbols


def _parse_symbols(data: bytes) -> SymbolTable:
    if data.startswith(ELF_MAGIC):
        return parse_symbols(parse_kernel_image(data))
    rows = [(int(m[1], 16), m[2].decode(), m[3].decode("utf-8", "replace")) for m in _MAP_LINE.finditer(data)]
    if not rows or len(data) > _MOST_MAP_BYTES:
        raise KernelImageError("it is neither a vmlinux nor a System.map; give another file of symbols")
    return SymbolTable.from_symbols(rows)


def load_types(
    path: Path, image: KernelImage, symbols: SymbolTable | None, say: Report | None = None
) -> tuple[bytes, str]:
    """Return the types in a vmlinux or in a file of raw BTF, as BTF and what they were; they must be those of `image`.

    Raises:
        KernelImageError: the file cannot be read, has none, or has another kernel's.
        CacheError: what was read of DWARF cannot be kept.
    """
    data = read_kernel_file(path)
    try:
        found, kind = read_types(data, say)
        types = TypeTable(found)
        if symbols is not None:
            require_own(types, image, symbols)
    except KernelImageError as error:
        raise KernelImageError(f"the types in {path} cannot be used: {error}") from error
    return found, kind
