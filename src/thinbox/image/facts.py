"""What can be known from a kernel file without running it, worked out once and cached.

Why it exists: everything above this room asks for symbols, types and the system call table of one
kernel, and a second start may not pay the seconds it took to find them. `load_facts` is the door.
"""

import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from thinbox.errors import KernelImageError
from thinbox.image.btf import TypeTable, locate_btf, parse_types
from thinbox.image.cache import lock
from thinbox.image.companions import NONE, Companions, load_symbols, load_types
from thinbox.image.elf import ELF_MAGIC
from thinbox.image.facts_file import StoredFacts, read_facts, write_facts
from thinbox.image.kallsyms import parse_symbols
from thinbox.image.kernel import KernelImage, assemble_kernel_image, parse_kernel_image, read_kernel_file
from thinbox.image.source import KernelFile, Progress
from thinbox.image.symbols import SymbolTable
from thinbox.image.types import find_types

Config = dict[str, bool | str]

NOT_IMPLEMENTED = "sys_ni_syscall"
"""The end of the name of the handler of a number without a call (kernel/sys_ni.c)."""

_BANNER = re.compile(rb"Linux version ([0-9]\S{0,127}) \([^\n\0]{1,600}\n")
_BANNER_START = b"Linux version "
_BANNER_ROOM = 1 << 20
_MOST_SYSCALLS = 1024  # x86-64 has used 0 to 470 so far; x32 adds 512 to 547
_RELOCATABLE_OFFSET = 0x234 - 0x1F1  # setup header: relocatable_kernel


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The facts of one kernel.

    `release` is what uname -r prints, `build` what uname -v prints, `sha256` the hash of the kernel file.
    `sys_call_table[nr]` is the name of the function that handles call `nr`; a number without a call has
    one that ends in "sys_ni_syscall". `unimplemented` are those numbers, and those of calls this kernel
    was configured without (their handler is only the weak stub of kernel/sys_ni.c).
    `config` holds pti, kaslr, btf, kallsyms_all, smp, modules, relocatable (bool) and preempt
    ("none or voluntary", "full", "dynamic", "rt"), inferred from symbols and banner.
    `slide` is how many bytes `symbols` lie above where the file has them: 0 for the facts of a file.
    """

    release: str
    banner: str
    build: str
    sha256: str
    symbols: SymbolTable = field(repr=False)
    types: TypeTable = field(repr=False)
    config: Config
    sys_call_table: tuple[str, ...] = field(repr=False)
    unimplemented: frozenset[int] = field(repr=False)
    slide: int = 0

    def slid(self, delta: int) -> "KernelFacts":
        """Return the facts of this kernel moved by `delta` bytes (KASLR)."""
        return self if delta == 0 else replace(self, symbols=self.symbols.slid(delta), slide=self.slide + delta)


def load_facts(kernel: KernelFile | Path | str, progress: Progress | None = None) -> tuple[KernelImage, KernelFacts]:
    """Return the unpacked kernel and its facts, from the cache if they are there and undamaged.

    Raises:
        KernelImageError: the file is no usable kernel (see `load_kernel_image`, `parse_symbols`, `find_types`).
        CacheError: the facts cannot be written.
    """
    path = kernel.path if isinstance(kernel, KernelFile) else Path(kernel)
    say: Callable[[str], None] = progress or (lambda _line: None)
    data = read_kernel_file(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if isinstance(kernel, KernelFile) and kernel.data_sha256 != sha256:
        raise KernelImageError(f"{path} changed while it was being read; try again")
    companions = kernel.companions if isinstance(kernel, KernelFile) else NONE
    key = _key(sha256, companions)
    try:
        return _load_cached(data, sha256, key) or _build(data, (sha256, key), companions, say)
    except KernelImageError as error:
        raise KernelImageError(f"{path}: {error}") from error


def _key(sha256: str, companions: Companions) -> str:
    """Return the hash of a kernel and the files beside it: whoever has other symbols has another kernel."""
    if not companions:
        return sha256
    digest, known = hashlib.sha256(sha256.encode()), dict[Path, str]()
    for path in (companions.symbols, companions.types):
        if path is not None and path not in known:
            known[path] = hashlib.sha256(read_kernel_file(path)).hexdigest()
        digest.update(f" {known[path]}".encode() if path is not None else b" -")
    return digest.hexdigest()


def _load_cached(data: bytes, sha256: str, key: str) -> tuple[KernelImage, KernelFacts] | None:
    stored = read_facts(key)
    if stored is None:
        return None
    try:
        vmlinux = data[: len(data) - len(stored.relocs)] if stored.vmlinux is None else stored.vmlinux
        image = assemble_kernel_image(data, vmlinux, stored.relocs, sha256)
        symbols = SymbolTable(stored.starts, stored.names, stored.kinds)
        if stored.btf:
            types = TypeTable(stored.btf, stored.type_starts)
        else:
            types = parse_types(image, symbols, stored.type_starts)
        return image, KernelFacts(symbols=symbols, types=types, sha256=key, **_from_json(stored.header))
    except (KernelImageError, KeyError, TypeError, ValueError):
        return None  # written by something else than `write_facts`: build it again


def _build(
    data: bytes, hashes: tuple[str, str], companions: Companions, say: Callable[[str], None]
) -> tuple[KernelImage, KernelFacts]:
    sha256, key = hashes
    with lock(f"facts-{key[:16]}"):
        meanwhile = _load_cached(data, sha256, key)  # another process may have just built it
        if meanwhile is not None:
            return meanwhile
        say("unpacking the kernel")
        image = parse_kernel_image(data)
        say("reading the kernel's symbols and types")
        try:
            facts, btf = _read_facts(image, companions, say)
        except KernelImageError as error:
            raise KernelImageError(f"{error}; `thinbox kernel doctor` names all that a kernel lacks") from error
        if _key(sha256, companions) != key:
            raise KernelImageError("a file beside it changed while it was being read; try again")
        is_own = companions.types is None and locate_btf(image, facts.symbols)[1] > 0
        facts = replace(facts, sha256=key)
        stored = StoredFacts(
            header=_to_json(facts),
            starts=facts.symbols.starts,
            kinds=facts.symbols.kinds,
            names=facts.symbols.names,
            type_starts=facts.types.type_starts,
            btf=b"" if is_own else btf,
            relocs=image.relocs,
            vmlinux=None if image.compression == "none" and data.startswith(ELF_MAGIC) else image.vmlinux,
        )
        write_facts(key, stored)
    return image, facts


def _read_facts(image: KernelImage, companions: Companions, say: Callable[[str], None]) -> tuple[KernelFacts, bytes]:
    """Return the facts of a kernel with what lies beside it, and its types as BTF."""
    symbols = parse_symbols(image) if companions.symbols is None else load_symbols(companions.symbols, image)
    if companions.types is None:
        btf, _kind = find_types(image, symbols, say)
    else:
        btf, _kind = load_types(companions.types, image, symbols, say)
    return parse_facts(image, symbols, TypeTable(btf)), btf


def parse_facts(image: KernelImage, symbols: SymbolTable | None = None, types: TypeTable | None = None) -> KernelFacts:
    """Work out the facts of an unpacked kernel; takes seconds, `load_facts` remembers the result. `symbols` and `types`
    are used in place of its own symbols and BTF, if given.

    Raises:
        KernelImageError: no banner, no symbols, no types or no system call table is found.
    """
    symbols = parse_symbols(image) if symbols is None else symbols
    types = parse_types(image, symbols) if types is None else types
    release, banner = find_banner(image, symbols)
    table, unimplemented = read_call_table(image, symbols)
    return KernelFacts(
        release=release,
        banner=banner,
        build=banner[banner.rindex("#") :] if "#" in banner else "",
        sha256=image.sha256,
        symbols=symbols,
        types=types,
        config=_infer_config(image, symbols, banner),
        sys_call_table=table,
        unimplemented=unimplemented,
    )


def find_banner(image: KernelImage, symbols: SymbolTable | None) -> tuple[str, str]:
    """Return release and banner: `linux_banner` (init/version-timestamp.c), or the first such string.

    Raises:
        KernelImageError: there is none.
    """
    vaddr = symbols.find("linux_banner") if symbols is not None else None
    found = _BANNER.match(image.read_vaddr(vaddr, 1024)) if vaddr is not None else None
    # A string that is repeated a million times would be matched, nearly, a million times.
    start = image.vmlinux.find(_BANNER_START) if found is None else -1
    found = found or (_BANNER.search(image.vmlinux, start, start + _BANNER_ROOM) if start >= 0 else None)
    if found is None:
        raise KernelImageError("the kernel has no 'Linux version' banner; is it a Linux kernel?")
    return found[1].decode("ascii", "replace"), found[0].decode("utf-8", "replace").rstrip("\n")


def read_call_table(image: KernelImage, symbols: SymbolTable) -> tuple[tuple[str, ...], frozenset[int]]:
    """Read `sys_call_table` (arch/x86/entry/syscall_64.c): link-time addresses, one word for each number.

    It has no length of its own; it ends where the next symbol begins, or at the first word that is no
    function (padding).

    Raises:
        KernelImageError: there is none, or it holds no functions.
    """
    start = symbols.find("sys_call_table")
    if start is None:
        raise KernelImageError("the kernel has no symbol sys_call_table; it must be built with CONFIG_KALLSYMS_ALL=y")
    following = symbols.starts[symbols.starts > start]
    room_bytes = int(following[0]) - start if len(following) else 8 * _MOST_SYSCALLS
    raw = image.read_vaddr(start, min(room_bytes, 8 * _MOST_SYSCALLS))
    kinds = {name: kind for _, kind, name in symbols if kind in "Ww"}
    names: list[str] = []
    missing = set()
    for (entry,) in struct.iter_unpack("<Q", raw[: len(raw) & ~7]):
        aliases = symbols.names_at(entry) if symbols.is_text(entry) else ()
        if not aliases:
            break
        name = min(aliases, key=_call_name_rank)
        if name.endswith(NOT_IMPLEMENTED) or name in kinds:
            missing.add(len(names))
        names.append(name)
    if not names:
        raise KernelImageError("the kernel's sys_call_table holds no functions; fetch the kernel again")
    return tuple(names), frozenset(missing)


def _call_name_rank(name: str) -> tuple[bool, bool, str]:
    """A call without arguments has aliases (`__ia32_sys_getpid`, `__do_sys_getpid`); the x64 entry is meant."""
    return not name.startswith("__x64_"), "sys_" not in name, name


def _infer_config(image: KernelImage, symbols: SymbolTable, banner: str) -> Config:
    """Tell what the kernel was built with; Debian's holds no copy of its configuration (CONFIG_IKCONFIG)."""
    header = image.setup_header or b""
    relocatable = bool(header[_RELOCATABLE_OFFSET]) if len(header) > _RELOCATABLE_OFFSET else bool(image.relocs)
    return {
        "pti": "pti_init" in symbols,  # CONFIG_PAGE_TABLE_ISOLATION, arch/x86/mm/pti.c
        "kaslr": "kernel_randomize_memory" in symbols,  # CONFIG_RANDOMIZE_MEMORY needs RANDOMIZE_BASE
        "relocatable": relocatable,
        "btf": locate_btf(image, symbols)[1] > 0,
        "kallsyms_all": has_data_symbols(symbols),
        "smp": " SMP " in banner,
        "modules": "load_module" in symbols,
        "preempt": _preempt_model(banner),
    }


def has_data_symbols(symbols: SymbolTable) -> bool:
    """Tell whether the kernel names its data, too (CONFIG_KALLSYMS_ALL): without, kernel/kallsyms.c has text, and marks
    of the linker's (`__start_rodata`). Every kernel has its first task (init/init_task.c)."""
    return "init_task" in symbols


def _preempt_model(banner: str) -> str:
    """Source: scripts/mkcompile_h (init/Makefile since 6.1), which puts the model into the build string."""
    for word, model in (("PREEMPT_RT", "rt"), ("PREEMPT_DYNAMIC", "dynamic"), ("PREEMPT", "full")):
        if word in banner:
            return model
    return "none or voluntary"


def _to_json(facts: KernelFacts) -> dict[str, Any]:
    return {
        "release": facts.release,
        "banner": facts.banner,
        "build": facts.build,
        "config": facts.config,
        "sys_call_table": facts.sys_call_table,
        "unimplemented": sorted(facts.unimplemented),
    }


def _from_json(header: dict[str, Any]) -> dict[str, Any]:
    return {
        "release": str(header["release"]),
        "banner": str(header["banner"]),
        "build": str(header["build"]),
        "config": dict(header["config"]),
        "sys_call_table": tuple(header["sys_call_table"]),
        "unimplemented": frozenset(header["unimplemented"]),
    }
