"""`struct page`: how a page says what it is, and which larger page it is a part of.

Shapes, newest first:
- a tail page's word is `compound_info`: its head's address, or a mask that makes its own address its head's (7.1,
  include/linux/page-flags.h, `_compound_head`); before, `compound_head`, the address. Which of the two a word is, its
  value says (`isolation.view_rules.head_of`).
- a slab, a buddy and a page table are values of the upper byte of `page_type` (6.12, "mm: support only one page_type
  per page", PGTY_slab and its like); before 6.9 a slab is a flag, PG_slab, and a page's type has a bit cleared for
  what it is (PG_buddy 0x80, a macro).
- a page table's mm is `ptdesc.pt_mm` (6.6, "mm: add PAGE_TYPE_OP folio functions" and its series); before,
  `page.pt_mm`.

Source: include/linux/mm_types.h, include/linux/page-flags.h, include/asm-generic/memory_model.h.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import to_signed
from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "views cannot tell whose a page is"
_TYPE_SHIFT = 24
_CLEARED_BASE = 0xF0000000
_BUDDY_CLEARED = 1 << 7
_MOST_FLAGS = 64


@dataclass(frozen=True, slots=True)
class PageTypes:
    """What `page_type` is of a page that nobody refers to: bytes above bit 24, or with `cleared` bits that are 0.

    `table` is None where it is to be measured; `large` is None where such pages are counted.
    """

    buddy: int
    table: int | None
    large: int | None
    cleared: bool

    def is_buddy(self, value: int) -> bool:
        """Tell whether a page of this `page_type` is a free one, the first of its block."""
        if self.cleared:
            return value & _CLEARED_BASE == _CLEARED_BASE and not value & self.buddy
        return value >> _TYPE_SHIFT == self.buddy

    def is_large(self, value: int) -> bool:
        """Tell whether it is kernel memory of more than a slab holds (mm/slub.c, ___kmalloc_large_node)."""
        return self.large is not None and value >> _TYPE_SHIFT == self.large

    def table_key(self, value: int) -> int:
        """Return the part of a page table's `page_type` that says so."""
        return value if self.cleared else value >> _TYPE_SHIFT


@dataclass(frozen=True, slots=True)
class PageShape:
    """Offsets in `struct page`; a word at `slab_at`, under `slab_mask`, is `slab_value` of a slab's page."""

    page_bytes: int
    head_at: int
    flags_at: int
    count_at: int
    mapping_at: int
    private_at: int
    type_at: int
    table_mm_at: int
    reserved_mask: int
    slab_at: int
    slab_mask: int
    slab_value: int
    types: PageTypes


def probe_page(probe: Probe) -> PageShape:
    """Find it; what is missing is noted in `probe`."""
    probe.symbol("vmemmap_base")
    type_at, flags_at = probe.offset("page.page_type"), probe.offset("page.flags")
    slab = probe.enumerator("PGTY_slab", "PG_slab") or 0
    if probe.has_enumerator("PGTY_slab"):
        shift = 8 * (type_at & 7) + _TYPE_SHIFT
        slab_at, mask, value = type_at & ~7, 0xFF << shift, slab << shift
        large = probe.enumerator("PGTY_large_kmalloc") if probe.has_enumerator("PGTY_large_kmalloc") else None
        buddy, table = probe.enumerator("PGTY_buddy") or 0, probe.enumerator("PGTY_table")
        types = PageTypes(buddy, table, large, cleared=False)
    else:
        if slab >= _MOST_FLAGS:
            # Linux 6.9 to 6.11: a bit of page_type, by that very name.
            probe.lacks("page type or flag of a slab that is known (PGTY_slab, PG_slab)")
        slab_at, mask = flags_at, 1 << slab % _MOST_FLAGS
        value, types = mask, PageTypes(_BUDDY_CLEARED, None, None, cleared=True)
    return PageShape(
        page_bytes=probe.size("page"),
        head_at=probe.offset("page.compound_info", "page.compound_head"),
        flags_at=flags_at,
        count_at=probe.offset("page._refcount"),
        mapping_at=probe.offset("page.mapping"),
        private_at=probe.offset("page.private"),
        type_at=type_at,
        table_mm_at=probe.offset("ptdesc.pt_mm", "page.pt_mm"),
        reserved_mask=1 << (probe.enumerator("PG_reserved") or 0),
        slab_at=slab_at,
        slab_mask=to_signed(mask),
        slab_value=to_signed(value),
        types=types,
    )


def find_page_shape(facts: "KernelFacts") -> PageShape:
    """Return it; `MissingFactError` if this kernel's pages are kept in another way."""
    probe = Probe(facts, "pages", DISABLES)
    found = probe_page(probe)
    probe.check()
    return found
