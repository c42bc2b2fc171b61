"""What a kernel module says of itself: its name, what it needs, what it is known as, which kernel it is of.

Why it exists: a package holds modules and no index of them (`depmod` makes that at installation); all that an index
needs stands in each file's section `.modinfo`.

Rules of this file: whatever is wrong with a file, the only exception is `KernelImageError`.

Source: include/linux/moduleparam.h and module.h (`MODULE_INFO`, `MODULE_ALIAS`, `MODULE_SOFTDEP`),
scripts/mod/modpost.c (`add_depends`, `name=`, `vermagic=`); kernel/module/signing.c (the mark behind a signed one).
"""

from dataclasses import dataclass

from thinbox.errors import KernelImageError
from thinbox.image.compression import decompress, detect_compression
from thinbox.image.elf import ELF_MAGIC, parse_object_sections

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
"""What kernel builds and distributions call modules (scripts/Makefile.modinst)."""
MOST_MODULE_BYTES = 128 << 20
"""The largest known, an unstripped GPU driver, has some 60 MB."""
_SECTION = ".modinfo"
_MOST_INFO_BYTES = 4 << 20
_SIGNED = b"~Module signature appended~\n"


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One module: names have underscores; `aliases` may hold wildcards as fnmatch has them.

    `depends` must be loaded before it, `before` and `after` should be, if they are there (softdeps). `release` is the
    kernel it was built for, as `uname -r` prints it.
    """

    name: str
    release: str
    depends: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    signed: bool = False


def plain_name(name: str) -> str:
    """Return a module's name as the kernel has it: dashes are underscores (but in sets of characters, as kmod)."""
    out, in_set = [], False
    for letter in name:
        in_set = (in_set or letter == "[") and letter != "]"
        out.append("_" if letter == "-" and not in_set else letter)
    return "".join(out)


def name_of_file(path: str) -> str | None:
    """Return the name of the module that a path means by its suffix, None if it means none."""
    file = path.rpartition("/")[2]
    for suffix in SUFFIXES:
        if file.endswith(suffix) and file != suffix:
            return plain_name(file.removesuffix(suffix))
    return None


def unpack_module(data: bytes) -> bytes:
    """Return a module's ELF bytes, a signature behind them included, whatever it was packed with.

    Raises:
        KernelImageError: it is packed in an unknown way, or damaged.
    """
    if data.startswith(ELF_MAGIC):
        return data
    if detect_compression(data) is None:
        raise KernelImageError("it is no kernel module: neither an ELF file nor one that is packed")
    return decompress(data, MOST_MODULE_BYTES)


def parse_module(data: bytes) -> ModuleInfo:
    """Return what an unpacked module says of itself.

    Raises:
        KernelImageError: it is no module for x86-64.
    """
    section = next((found for found in parse_object_sections(data) if found.name == _SECTION), None)
    if section is None or section.size_bytes > _MOST_INFO_BYTES:
        raise KernelImageError("it is no kernel module: it says nothing of itself (.modinfo)")
    pairs = parse_pairs(data[section.offset : section.offset + section.size_bytes])
    names, magic = pairs.get("name", ()), pairs.get("vermagic", ())
    if not names or not magic:
        raise KernelImageError("it is no kernel module: it names neither itself nor a kernel (.modinfo)")
    before, after = _softdeps(pairs.get("softdep", ()))
    return ModuleInfo(
        name=plain_name(names[0]),
        release=magic[0].partition(" ")[0],
        depends=_names(pairs.get("depends", ("",))[0].split(",")),
        before=before,
        after=after,
        aliases=tuple(plain_name(alias) for alias in pairs.get("alias", ())),
        signed=data.endswith(_SIGNED),
    )


def parse_pairs(raw: bytes) -> dict[str, tuple[str, ...]]:
    """Return the values of each word in NUL-terminated `word=value` texts."""
    found: dict[str, list[str]] = {}
    for text in raw.split(b"\0"):
        word, equals, value = text.decode("utf-8", "replace").partition("=")
        if equals:
            found.setdefault(word, []).append(value)
    return {word: tuple(values) for word, values in found.items()}


def _softdeps(texts: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules before and after it: "pre: a b post: c" (modprobe.d(5), softdep)."""
    found: dict[str, list[str]] = {"pre:": [], "post:": []}
    for text in texts:
        into: list[str] = []
        for word in text.split():
            if word in found:
                into = found[word]
            else:
                into.append(word)
    return _names(found["pre:"]), _names(found["post:"])


def _names(words: "list[str]") -> tuple[str, ...]:
    return tuple(plain_name(word) for word in words if word)


__all__ = [
    "MOST_MODULE_BYTES",
    "SUFFIXES",
    "ModuleInfo",
    "name_of_file",
    "parse_module",
    "parse_pairs",
    "plain_name",
    "unpack_module",
]
