"""Where a kernel's types come from: its BTF, or else its DWARF, which is read once.

Why it exists: reading DWARF takes up to minutes, and what comes of it is a hundredth of it.

Rules of this file: what was read is kept in the cache as BTF, under the hash of the file it is of.
"""

import hashlib
from collections.abc import Callable

from thinbox.errors import KernelImageError
from thinbox.image.btf import RAW_MAGIC, TypeTable, locate_btf
from thinbox.image.cache import cache_dir, lock, read_sealed, store_sealed
from thinbox.image.dwarf import has_debug_info
from thinbox.image.dwarf_types import types_from_dwarf
from thinbox.image.kernel import KernelImage, parse_kernel_image
from thinbox.image.symbols import SymbolTable

Report = Callable[[str], None]
_VERSION = 1
"""Raise it whenever `dwarf_types` makes something else of the same file."""
_MOST_STRANGE = 300
"""One in so many of the functions that types describe may be strange to the kernel."""
_FIRST_TASK = b"swapper\0"
NO_TYPES = (
    "the kernel has no type information; it must be built with CONFIG_DEBUG_INFO_BTF=y, or its vmlinux with "
    "CONFIG_DEBUG_INFO_DWARF5=y be given (--types VMLINUX)"
)


def find_types(image: KernelImage, symbols: SymbolTable | None = None, say: Report | None = None) -> tuple[bytes, str]:
    """Return the types of a kernel as BTF, and what they were: "BTF" or "DWARF".

    Raises:
        KernelImageError: it has neither, or what it has is damaged.
        CacheError: what was read of DWARF cannot be kept.
    """
    offset, size_bytes = locate_btf(image, symbols)
    if size_bytes:
        return image.vmlinux[offset : offset + size_bytes], "BTF"
    if not has_debug_info(section.name for section in image.sections):
        raise KernelImageError(NO_TYPES)
    return _read_dwarf(image.vmlinux, say), "DWARF"


def _read_dwarf(vmlinux: bytes, say: Report | None) -> bytes:
    digest = hashlib.sha256(vmlinux).hexdigest()
    path = cache_dir() / "types" / f"{digest}.v{_VERSION}.btf"
    known = read_sealed(path)
    if known is not None:
        return known
    with lock(f"types-{digest[:16]}"):
        known = read_sealed(path)  # another process may have just read it
        if known is None:
            known = types_from_dwarf(vmlinux, say)
            store_sealed(path, known)
    return known


def read_types(data: bytes, say: Report | None = None) -> tuple[bytes, str]:
    """Return the types in a file beside a kernel, raw BTF or a kernel image; raises as `find_types`."""
    if data.startswith(RAW_MAGIC):
        return data, "BTF"
    try:
        image = parse_kernel_image(data)
    except KernelImageError as error:
        raise KernelImageError(f"it is neither a kernel nor raw BTF: {error}") from error
    return find_types(image, None, say)


def require_own(types: TypeTable, image: KernelImage, symbols: SymbolTable) -> None:
    """Raise unless types from elsewhere fit the kernel: it has their functions, and its first task's name is where they
    say.

    Of a kernel's own types all but one in nine hundred are among its symbols (Debian's 5.10 to 7.3), of its nearest
    neighbour's all but one in 150, or of the same release for real time all but one in 250. The name lies behind some
    hundred members that configurations leave out (init/init_task.c, INIT_TASK_COMM).

    Raises:
        KernelImageError: they are another kernel's.
    """
    described, known = types.function_names(), {name.partition(".")[0] for name in symbols.names}
    strange = len(described - known)
    if strange * _MOST_STRANGE > len(described):
        raise KernelImageError(
            f"they are not of this kernel: they describe {len(described):,} functions, and it lacks {strange:,} of them"
        )
    task = symbols.find("init_task")
    if task is None:
        return
    try:
        offset = types.offset_of("task_struct", "comm")
    except KeyError as error:
        raise KernelImageError(f"they are no kernel's types: {error}") from error
    if image.read_vaddr(task + offset, len(_FIRST_TASK)) != _FIRST_TASK:
        raise KernelImageError("they are not of this kernel: its first task's name is not where they say")
