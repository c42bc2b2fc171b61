"""`struct page`: how a page says what it is, and which larger page it is a part of.

Shapes, newest first:
- a tail page's word is `compound_info`: its head's address, or a mask that makes its own address its head's (7.1,
  include/linux/page-flags.h, `_compound_head`); before, `compound_head`, the address. Which of the two a word is, its
  value says (`isolation.view_rules.head_of`).
- a slab, a buddy and a page table are values of the upper byte of `page_type` (6.12, "mm: support only one page_type
  per page", PGTY_slab and its like).
- each is a bit of `page_type`, cleared in a page of the kind, and so is PAGE_TYPE_BASE, set in every page that has a
  type: enumerators, of other values in 6.11 than in 6.10 (6.10, commit 46df8e73a4a3 "mm: free up PG_slab", and "mm:
  convert page type macros to enum").
- a slab is a flag, PG_slab; the other two are such bits, but macros: PG_buddy is 0x80, of a page table it is measured.
  Before 5.11 a page of the kernel's that is charged has one more, PG_kmemcg (`thinbox.kernel.memcg`), so that is not
  looked at where a page table is told.
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
TYPE_BASE = 0xF0000000
"""PAGE_TYPE_BASE of kernels that have it as a macro: these bits are set in a page that has a type (4.18 to 6.9)."""
KMEM_BIT = 0x200
"""PG_kmemcg: cleared in a page of the kernel's that is charged (4.18 to 5.10)."""
_TYPE_SHIFT = 24
_BUDDY_BIT = 0x80
_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class TypeTest:
    """What `page_type` is, under a mask, of a page of one kind that nobody refers to."""

    mask: int
    wanted: int

    def holds(self, value: int) -> bool:
        """Tell whether a page of this `page_type` is of the kind."""
        return value & self.mask == self.wanted

    @classmethod
    def of_byte(cls, value: int) -> "TypeTest":
        """The kind is a value of the upper byte."""
        return cls(0xFF << _TYPE_SHIFT, value << _TYPE_SHIFT)

    @classmethod
    def of_bit(cls, bit: int, base: int) -> "TypeTest":
        """The kind is a bit that is cleared, where those of `base` are set."""
        return cls(base | bit, base)


@dataclass(frozen=True, slots=True)
class PageTypes:
    """Tests of `page_type`: `table` is None where it is to be measured, `large` where such pages are counted.

    `counts_tables`: a page table is referred to as other pages are. `ignored` are bits that say something else of it.
    """

    buddy: TypeTest
    table: TypeTest | None
    large: TypeTest | None
    counts_tables: bool
    ignored: int = 0

    def is_buddy(self, value: int) -> bool:
        """Tell whether a page of this `page_type` is a free one, the first of its block."""
        return self.buddy.holds(value)

    def is_large(self, value: int) -> bool:
        """Tell whether it is kernel memory of more than a slab holds (mm/slub.c, ___kmalloc_large_node)."""
        return self.large is not None and self.large.holds(value)

    def measured_table(self, value: int) -> TypeTest:
        """Return the test for pages of the kind of a page table that has this `page_type`."""
        mask = _WORD & ~self.ignored
        return TypeTest(mask, value & mask)


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


def _slab_and_types(probe: Probe) -> tuple[TypeTest | None, PageTypes]:
    """Return how `page_type` tells a slab, None if a flag does, and the other kinds."""
    if probe.has_enumerator("PGTY_slab"):
        value = probe.enumerator("PGTY_slab", "PG_slab") or 0
        large = probe.enumerator("PGTY_large_kmalloc") if probe.has_enumerator("PGTY_large_kmalloc") else None
        buddy, table = probe.enumerator("PGTY_buddy") or 0, probe.enumerator("PGTY_table") or 0
        return TypeTest.of_byte(value), PageTypes(
            TypeTest.of_byte(buddy),
            TypeTest.of_byte(table),
            None if large is None else TypeTest.of_byte(large),
            counts_tables=False,
        )
    if probe.has_enumerator("PAGE_TYPE_BASE"):
        base, slab = probe.enumerator("PAGE_TYPE_BASE") or 0, probe.enumerator("PGTY_slab", "PG_slab") or 0
        buddy, table = probe.enumerator("PG_buddy") or 0, probe.enumerator("PG_table") or 0
        if any(bit.bit_count() != 1 or bit & base for bit in (slab, buddy, table)) and not probe.missing:
            probe.lacks("page types of one bit each (PG_slab, PG_buddy, PG_table)")
        return TypeTest.of_bit(slab, base & _WORD), PageTypes(
            TypeTest.of_bit(buddy, base & _WORD), TypeTest.of_bit(table, base & _WORD), None, counts_tables=True
        )
    ignored = KMEM_BIT if probe.has_member("page.mem_cgroup") else 0
    return None, PageTypes(TypeTest.of_bit(_BUDDY_BIT, TYPE_BASE), None, None, counts_tables=True, ignored=ignored)


def _slab_flag(probe: Probe) -> int:
    """Return the mask of the flag of a slab's page."""
    flag = probe.enumerator("PGTY_slab", "PG_slab") or 0
    if flag >= probe.member_size("page.flags") * 8 and not probe.missing:
        probe.lacks("page type or flag of a slab that is known (PGTY_slab, PG_slab)")
        return 0
    return 1 << flag


def probe_page(probe: Probe) -> PageShape:
    """Find it; what is missing is noted in `probe`."""
    probe.symbol("vmemmap_base")
    type_at, flags_at = probe.offset("page.page_type"), probe.offset("page.flags")
    slab, types = _slab_and_types(probe)
    if slab is None:
        slab_at, mask = flags_at, _slab_flag(probe)
        value = mask
    else:
        shift = 8 * (type_at & 7)
        slab_at, mask, value = type_at & ~7, slab.mask << shift, slab.wanted << shift
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
