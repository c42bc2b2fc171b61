"""What of the kernel's image nobody writes once it has started, and the one address space by which it patches text.

Shapes, newest first:
- the address space is `text_poke_mm` (6.16, "x86/alternatives: Rename 'poking_mm' to 'text_poke_mm'"); before,
  `poking_mm` (5.2).
- text and read-only data lie between `_text`, `_etext`, `__start_rodata` and `__end_rodata` in all of them; what lies
  behind `_etext` up to the next 2 MiB is given back as free memory (arch/x86/mm/init_64.c, mark_rodata_ro).

Source: arch/x86/kernel/vmlinux.lds.S, arch/x86/mm/init_64.c, arch/x86/kernel/alternative.c.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import PAGE_BYTES
from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "a view cannot keep the kernel's text from being written"


@dataclass(frozen=True, slots=True)
class SealedImage:
    """Addresses: `text` and `read_only` from first to behind the last whole page; `poking_mm` holds a pointer to the
    address space by which text is patched, whose PGD is `pgd_at` bytes in it; `root` is the kernel's own PGD."""

    text: tuple[int, int]
    read_only: tuple[int, int]
    poking_mm: int
    pgd_at: int
    root: int
    patchers: tuple[int, ...]
    """First instructions of what writes text by that address space."""
    user_exception: int
    """The function that is called for a general protection fault."""


def probe_sealed(probe: Probe) -> SealedImage:
    """Find it; what is missing is noted in `probe`."""

    def to_page(vaddr: int) -> int:
        return vaddr + PAGE_BYTES - 1 & -PAGE_BYTES

    return SealedImage(
        text=(probe.symbol("_text"), to_page(probe.symbol("_etext"))),
        read_only=(probe.symbol("__start_rodata"), to_page(probe.symbol("__end_rodata"))),
        poking_mm=probe.symbol("text_poke_mm", "poking_mm"),
        pgd_at=probe.offset("mm_struct.pgd"),
        root=probe.symbol("init_top_pgt"),
        patchers=probe.symbols("__text_poke"),
        user_exception=probe.symbol("exc_general_protection"),
    )


def find_sealed(facts: "KernelFacts") -> SealedImage:
    """Return it; `MissingFactError` if this kernel's image is laid out in another way."""
    probe = Probe(facts, "sealed image", DISABLES)
    found = probe_sealed(probe)
    probe.check()
    return found
