"""Symbols and types of a kernel from files beside it: its vmlinux, a System.map, or raw BTF.

Why it exists: a kernel of one's own may name its functions only, or nothing, and carry no types. What its build left
has both. A specification of a kernel may name them: `bzImage,symbols=System.map,types=vmlinux`; a build folder has all.

Rules of this file: whatever is wrong with a file, the only exception is `KernelImageError`. That the symbols are this
kernel's, its own banner must say.

Source: nm(1) (System.map); Documentation/bpf/btf.rst (`pahole --btf_encode_detached FILE vmlinux` writes raw BTF).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from thinbox.errors import KernelImageError
from thinbox.image.btf import TypeTable, parse_types
from thinbox.image.elf import ELF_MAGIC
from thinbox.image.kallsyms import parse_symbols
from thinbox.image.kernel import KernelImage, parse_kernel_image, read_kernel_file
from thinbox.image.symbols import SymbolTable

_BTF_MAGIC = b"\x9f\xeb"
_WORDS = ("symbols", "types")
_MAP_LINE = re.compile(rb"^([0-9a-f]{16}) ([A-Za-z?]) (\S{1,512})$", re.MULTILINE)
_IMAGE_IN_BUILD = ("arch/x86/boot/bzImage", "vmlinux")
_MOST_MAP_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Companions:
    """The files that have a kernel's symbols and types; None where the kernel's own are meant."""

    symbols: Path | None = None
    types: Path | None = None

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.symbols is not None or self.types is not None


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
    data = read_kernel_file(path)
    if data.startswith(ELF_MAGIC):
        symbols = parse_symbols(parse_kernel_image(data))
    else:
        rows = [(int(m[1], 16), m[2].decode(), m[3].decode("utf-8", "replace")) for m in _MAP_LINE.finditer(data)]
        if not rows or len(data) > _MOST_MAP_BYTES:
            raise KernelImageError(f"{path} is neither a vmlinux nor a System.map; give another --symbols file")
        symbols = SymbolTable.from_symbols(rows)
    banner = symbols.find("linux_banner")
    if banner is None or not image.read_vaddr(banner, 14).startswith(b"Linux version "):
        raise KernelImageError(f"{path} is not of this kernel: its banner is not where the symbols say")
    return symbols


def load_types(path: Path) -> TypeTable:
    """Return the types in a vmlinux with BTF, or in a file of raw BTF.

    Raises:
        KernelImageError: the file cannot be read, or has none.
    """
    data = read_kernel_file(path)
    if data.startswith(_BTF_MAGIC):
        return TypeTable(data)
    if not data.startswith(ELF_MAGIC):
        raise KernelImageError(f"{path} is neither a vmlinux nor BTF; give another file of types")
    try:
        return parse_types(parse_kernel_image(data))
    except KernelImageError as error:
        raise KernelImageError(
            f"{path}: {error}; of one with DWARF, `pahole --btf_encode_detached FILE {path.name}` makes a file of types"
        ) from error
