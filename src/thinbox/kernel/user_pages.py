"""Pages of the kernel's own that every process may map: zeros, the vDSO, and the vDSO's data; the page of old calls.

Shapes, newest first:
- the vDSO's images are `vdso64_image` and its like (6.19, "x86/vdso: Rename vdso_image_* to vdso*_image"); before,
  `vdso_image_64`.
- its data are pages that pointers lead to, `vdso_k_time_data` and its like (6.15, lib/vdso/datastore.c); before,
  `__vvar_page` (arch/x86/kernel/vmlinux.lds.S).
- `__vsyscall_page` is mapped for all where the kernel emulates the calls of old (arch/x86/entry/vsyscall).
- the page of zeros is `empty_zero_page` in all of them.

Source: arch/x86/entry/vdso/vma.c (`vdso_fault`), arch/x86/include/asm/vdso.h (struct vdso_image).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import PAGE_BYTES
from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "views cannot tell the kernel's pages that all may map from others"
_IMAGES = (("vdso64_image", "vdso_image_64"), ("vdsox32_image", "vdso_image_x32"), ("vdso32_image", "vdso_image_32"))
_DATA_POINTERS = ("vdso_k_time_data", "vdso_k_rng_data", "vdso_k_arch_data")


@dataclass(frozen=True, slots=True)
class UserPages:
    """`fixed` lie there and are never written; `data`, which the kernel writes, too; `pointers` lead to a page of data
    each; `images` are the vDSO's, each a run of pages."""

    fixed: tuple[int, ...]
    data: tuple[int, ...]
    pointers: tuple[int, ...]
    images: tuple[int, ...]
    image_data_at: int
    image_size_at: int

    def addresses(self, read: Callable[[int], int]) -> Iterator[int]:
        """Yield the address of every such page; `read` returns a word of the kernel's."""
        yield from self.fixed
        yield from self.written(read)
        yield from self._image_pages(read)

    def written(self, read: Callable[[int], int]) -> Iterator[int]:
        """Yield the addresses of those that the kernel writes."""
        yield from self.data
        for pointer in self.pointers:
            yield read(pointer) & -PAGE_BYTES

    def unwritten(self, read: Callable[[int], int]) -> Iterator[int]:
        """Yield the addresses of those that nobody writes once the kernel has started."""
        yield from self.fixed
        yield from self._image_pages(read)

    def _image_pages(self, read: Callable[[int], int]) -> Iterator[int]:
        for image in self.images:
            start = read(image + self.image_data_at)
            yield from range(start, start + read(image + self.image_size_at), PAGE_BYTES)


def probe_user_pages(probe: Probe) -> UserPages:
    """Find them; what is missing is noted in `probe`."""
    probe.symbol(*_IMAGES[0])
    fixed, data, pointers = [probe.symbol("empty_zero_page")], [], []
    if probe.has_symbol("__vsyscall_page"):
        fixed.append(probe.symbol("__vsyscall_page"))
    if probe.has_symbol("__vvar_page"):
        data.append(probe.symbol("__vvar_page"))
    else:
        probe.symbol(_DATA_POINTERS[0], "__vvar_page")
        pointers = [probe.symbol(name) for name in _DATA_POINTERS if probe.has_symbol(name)]
    return UserPages(
        fixed=tuple(fixed),
        data=tuple(data),
        pointers=tuple(pointers),
        images=tuple(probe.symbol(name) for names in _IMAGES for name in names if probe.has_symbol(name)),
        image_data_at=probe.offset("vdso_image.data"),
        image_size_at=probe.offset("vdso_image.size"),
    )


def find_user_pages(facts: "KernelFacts") -> UserPages:
    """Return them; `MissingFactError` if this kernel has them in another way."""
    probe = Probe(facts, "pages for all to map", DISABLES)
    found = probe_user_pages(probe)
    probe.check()
    return found
