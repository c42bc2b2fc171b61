"""What the guest kernel knows of a physical page: what it is, and which memory cgroups it is charged to.

Why it exists: a view judges by owners, and the kernel's own accounting names them: `struct page` for whole pages, a
vector beside it for the objects of a slab. Read at the fault, so there is nothing to keep up to date.

Rules of this file:
- Every offset comes from the kernel's BTF; a kernel that keeps this otherwise is refused when a view is asked for.
- Nothing read here is trusted to be sane: a pointer that leads nowhere gives an unknown page.

Source: Linux 6.1 include/linux/memcontrol.h, include/linux/page-flags.h, mm/slab.h, fs/mount.h, arch/x86/mm/pgtable.c.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import U64, to_signed
from thinbox.errors import MachineError
from thinbox.guest.held_files import HeldFiles
from thinbox.guest.linked_caches import find_linked_caches
from thinbox.isolation import view_rules
from thinbox.isolation.page_ownership import PageFacts, PageKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory

_ANON, _MAPPING_FLAGS = 1, 3
"""Low bits of page->mapping (include/linux/page-flags.h, PAGE_MAPPING_ANON, PAGE_MAPPING_FLAGS)."""
_BUDDY = 1 << 7
"""A bit of page_type, cleared where set (include/linux/page-flags.h, PG_buddy; a macro, not in BTF)."""
_PAGE_TYPE_BASE = 0xF0000000
_MAX_ORDER = 11
_OTHERS_READ = 0o004
_MOST_MOUNTS = 4096
_NAME_BYTES = 64
"""Longest cache name shown."""


@dataclass(frozen=True, slots=True)
class _Page:
    """A struct page: its place, and its head's."""

    paddr: int
    head: int


class PageReader:
    """Reads `struct page` on one kernel."""

    def __init__(self, kernel: "KernelView", memory: "Memory") -> None:
        self._kernel, self._memory = kernel, memory
        types, symbols = kernel.facts.types, kernel.symbols
        try:
            self.words = self._find_layout()
            self._mapping_at = types.offset_of("page", "mapping")
            self._private_at = types.offset_of("page", "private")
            self._type_at = types.offset_of("page", "page_type")
            self._pgd_mm_at = types.offset_of("page", "pt_mm")
            self._pgd_at = types.offset_of("mm_struct", "pgd")
            self._cache_at = types.offset_of("slab", "slab_cache")
            self._cache_name_at = types.offset_of("kmem_cache", "name")
            self._cache_size_at = types.offset_of("kmem_cache", "size")
            self._host_at = types.offset_of("address_space", "host")
            self._mode_at, self._super_at = types.offset_of("inode", "i_mode"), types.offset_of("inode", "i_sb")
            self._nsproxy_at = types.offset_of("task_struct", "nsproxy")
            self._mounts_at = types.offset_of("nsproxy", "mnt_ns"), types.offset_of("mnt_namespace", "list")
            mount_link = types.offset_of("mount", "mnt_list")
            self._mount_super_at = types.offset_of("mount", "mnt.mnt_sb") - mount_link
            self._held = HeldFiles(kernel, self._pointer)
            self._parent_at = types.offset_of("cgroup_subsys_state", "parent")
            self._css_at = types.offset_of("mem_cgroup", "css")
            self._linked = find_linked_caches(kernel, self._pointer)
            self._direct_map = self._pointer(symbols.address_of("page_offset_base"))
            self._table_type = self._find_table_type(kernel.kernel_root)
        except KeyError as error:
            raise MachineError(f"this kernel does not keep owners of pages as a view needs it: {error}") from error

    def _find_layout(self) -> np.ndarray:
        """Return the words of `isolation.view_rules` for this kernel; rule and owner are 0."""
        types, symbols = self._kernel.facts.types, self._kernel.symbols
        words = np.zeros(view_rules.WORD_COUNT, dtype=np.int64)
        for name, value in (("MEMCG_DATA_OBJCGS", view_rules.DATA_OBJCGS), ("MEMCG_DATA_KMEM", view_rules.DATA_KMEM)):
            if types.enum_value(name) != value:
                raise KeyError(name)
        count_at = types.offset_of("page", "_refcount")
        objects_bit, objects_bits = types.bits_of("slab", "objects")
        words[view_rules.ROOT] = to_signed(self._pointer(symbols.address_of("root_mem_cgroup")))
        words[view_rules.VMEMMAP] = to_signed(self._pointer(symbols.address_of("vmemmap_base")))
        words[view_rules.PAGE_BYTES] = types.size_of("page")
        words[view_rules.HEAD_AT] = types.offset_of("page", "compound_head")
        words[view_rules.FLAGS_AT] = types.offset_of("page", "flags")
        words[view_rules.MEMCG_AT] = types.offset_of("page", "memcg_data")
        words[view_rules.COUNT_AT], words[view_rules.COUNT_SHIFT] = count_at & ~7, 8 * (count_at & 7)
        words[view_rules.OBJECTS_AT] = objects_bit // 64 * 8
        words[view_rules.OBJECTS_SHIFT], words[view_rules.OBJECTS_MASK] = objects_bit % 64, (1 << objects_bits) - 1
        words[view_rules.MAPPING_AT] = types.offset_of("page", "mapping")
        words[view_rules.RESERVED] = 1 << types.enum_value("PG_reserved")
        words[view_rules.SLAB] = 1 << types.enum_value("PG_slab")
        words[view_rules.CACHE_AT] = types.offset_of("slab", "slab_cache")
        size_at = types.offset_of("kmem_cache", "size")
        words[view_rules.CACHE_SIZE_AT], words[view_rules.CACHE_SIZE_SHIFT] = size_at & ~7, 8 * (size_at & 7)
        words[view_rules.OBJCG_MEMCG_AT] = types.offset_of("obj_cgroup", "memcg")
        return words

    def _find_table_type(self, root: int) -> int:
        """Return the page_type of a page table: what the last table of the running task's memory has.

        The lower two levels have it (include/linux/mm.h, pgtable_pte_page_ctor, pgtable_pmd_page_ctor), and their pages
        have no other use of the word.
        """
        quads, table = self._memory.words, root & paging.FRAME_MASK
        for _level in range(3):
            entries = (quads[(table >> 3) + i] for i in range(paging.ENTRIES_PER_TABLE // 2))
            wanted = paging.PRESENT | paging.USER
            lower = next((e for e in entries if e & wanted == wanted and not e & paging.LARGE), 0)
            table = lower & paging.FRAME_MASK
        page = self._find(table, root) if table else None
        if page is None:
            raise KeyError("page_type of a page table")
        return self._type(page.head)

    # -- reading -------------------------------------------------------------------------------------
    def _pointer(self, vaddr: int, root: int | None = None) -> int:
        """Return the word at a kernel address; 0 where nothing is mapped."""
        return self._memory.word_at(self._kernel.kernel_root if root is None else root, vaddr)

    def _find(self, paddr: int, root: int) -> _Page | None:
        memory, words = self._memory, self.words.data
        vaddr = words[view_rules.VMEMMAP] + (paddr >> 12) * words[view_rules.PAGE_BYTES]
        at = memory.tables.translate(root, vaddr)
        head = view_rules.find_page(memory.words, memory.guest_bytes, root, words, paddr)
        return None if at < 0 or head < 0 else _Page(at, head)

    def _word(self, paddr: int) -> int:
        return self._memory.words[paddr >> 3] & U64

    def _type(self, page: int) -> int:
        return int.from_bytes(self._memory.read(page + self._type_at, 4), "little")

    def _has_type(self, page: int, bit: int) -> bool:
        found = self._type(page)
        return found & _PAGE_TYPE_BASE == _PAGE_TYPE_BASE and not found & bit

    # -- owners --------------------------------------------------------------------------------------
    def memcg_line(self, memcg: int, root: int) -> Iterator[int]:
        """Yield a memory cgroup and those above it."""
        for _ in range(64):
            if memcg == 0:
                return
            yield memcg
            css = self._pointer(memcg + self._css_at + self._parent_at, root)
            memcg = css - self._css_at if css else 0

    def facts(self, paddr: int, root: int, owner_of: "Callable[[int], str | None]") -> PageFacts:
        """Return the facts of the page of `paddr` (the very address touched); `owner_of` names a cgroup's tenant.

        `root` is the kernel's table.
        """
        page = self._find(paddr, root)
        if page is None:
            return PageFacts(PageKind.UNKNOWN)
        words, head = self.words.data, page.head
        flags, data = self._word(head + words[view_rules.FLAGS_AT]), self._word(head + words[view_rules.MEMCG_AT])
        if flags & words[view_rules.RESERVED]:
            return PageFacts(PageKind.STATIC)
        if flags & words[view_rules.SLAB]:
            return self._slab_facts(page, paddr, data, root, owner_of)
        pointer = data & ~view_rules.DATA_FLAGS
        if data & view_rules.DATA_KMEM:
            kind = PageKind.TABLE if self._type(head) == self._table_type else PageKind.KERNEL
            return PageFacts(kind, frozenset({owner_of(self._memcg_of(pointer, root))}))
        mapping = self._word(head + self._mapping_at)
        if pointer or mapping:
            owners = frozenset({owner_of(pointer) if pointer else None})
            if mapping & _ANON or not mapping & ~_MAPPING_FLAGS:
                return PageFacts(PageKind.MEMORY, owners)
            return self._file_facts(mapping & ~_MAPPING_FLAGS, owners, root)
        if (self._word(head + words[view_rules.COUNT_AT]) >> words[view_rules.COUNT_SHIFT]) & 0xFFFFFFFF == 0:
            return self._unreferenced_facts(paddr, root, owner_of)
        return PageFacts(PageKind.KERNEL)

    def _memcg_of(self, objcg: int, root: int) -> int:
        memory = self._memory
        found = view_rules.memcg_of_objcg(memory.words, memory.guest_bytes, root, self.words.data, to_signed(objcg))
        return found & U64

    def _slab_facts(
        self, page: _Page, paddr: int, data: int, root: int, owner_of: "Callable[[int], str | None]"
    ) -> PageFacts:
        words = self.words.data
        cache = self._word(page.head + self._cache_at)
        detail = self._string(self._pointer(cache + self._cache_name_at, root), root)
        if not data & view_rules.DATA_OBJCGS:
            return PageFacts(PageKind.SLAB, detail=detail)
        count = (self._word(page.head + words[view_rules.OBJECTS_AT]) >> words[view_rules.OBJECTS_SHIFT]) & words[
            view_rules.OBJECTS_MASK
        ]
        vector = data & ~view_rules.DATA_FLAGS
        named: dict[int, str | None] = {0: None}
        owners = []
        for i in range(count):
            objcg = self._pointer(vector + 8 * i, root)
            if objcg not in named:
                named[objcg] = owner_of(self._memcg_of(objcg, root))
            owners.append(named[objcg])
        size = self._pointer(cache + (self._cache_size_at & ~7), root) >> 8 * (self._cache_size_at & 7) & 0xFFFFFFFF
        index = self._index_of(page, paddr) // size if size else 0
        here = owners[index] if 0 <= index < len(owners) else None
        return PageFacts(PageKind.SLAB, frozenset(owners or [None]), here, detail, is_linked=cache in self._linked)

    def _index_of(self, page: _Page, paddr: int) -> int:
        """Return the bytes from the start of a compound page to `paddr`."""
        # Struct pages of one compound page lie in one run of the array, and its physical pages likewise.
        return (page.paddr - page.head) // self.words.data[view_rules.PAGE_BYTES] * 4096 + (paddr & 0xFFF)

    def _string(self, vaddr: int, root: int) -> str:
        try:
            raw = self._memory.read_virtual(root, to_signed(vaddr), _NAME_BYTES)
        except (LookupError, MachineError):
            return ""
        return raw.split(b"\0")[0].decode("ascii", "replace")

    def _file_facts(self, mapping: int, owners: frozenset[str | None], root: int) -> PageFacts:
        inode = self._pointer(mapping + self._host_at, root)
        mode = self._pointer(inode + (self._mode_at & ~7), root) >> 8 * (self._mode_at & 7) & 0xFFFF
        superblock = self._pointer(inode + self._super_at, root)
        public = bool(mode & _OTHERS_READ) and superblock in self._mounted(root)
        held = self._held.holds(mapping, root)
        may_write = self._held.may_write(mapping, inode, mode, root)
        return PageFacts(PageKind.FILE, owners, is_public=public, is_held=held, is_writable=may_write)

    def _mounted(self, root: int) -> set[int]:
        """Return the super blocks mounted in the running task's mount namespace."""
        namespace_at, list_at = self._mounts_at
        nsproxy = self._pointer(self._kernel.current + self._nsproxy_at, root)
        head = self._pointer(nsproxy + namespace_at, root) + list_at
        link, found = self._pointer(head, root), set[int]()
        for _ in range(_MOST_MOUNTS):
            if link in (0, head):
                break
            found.add(self._pointer(link + self._mount_super_at, root))
            link = self._pointer(link, root)
        return found - {0}

    def _unreferenced_facts(self, paddr: int, root: int, owner_of: "Callable[[int], str | None]") -> PageFacts:
        """A page that nobody refers to and nobody pays for: free, or the second page of a PGD under PTI, or unknown."""
        words, number = self.words.data, paddr >> 12
        for order in range(_MAX_ORDER):
            first = self._find(number >> order << order << 12, root)
            if first and self._has_type(first.paddr, _BUDDY) and self._word(first.paddr + self._private_at) >= order:
                return PageFacts(PageKind.FREE)
        before = self._find((number & ~1) << 12, root) if number & 1 else None
        if before is None:
            return PageFacts(PageKind.UNKNOWN)
        data = self._word(before.paddr + words[view_rules.MEMCG_AT])
        owner = owner_of(self._memcg_of(data & ~view_rules.DATA_FLAGS, root)) if data & view_rules.DATA_KMEM else None
        mm = self._word(before.paddr + self._pgd_mm_at)
        if mm and self._pointer(mm + self._pgd_at, root) == (self._direct_map + ((number & ~1) << 12)) & U64:
            return PageFacts(PageKind.TABLE, frozenset({owner}))
        # While a PGD is being made, it is not yet its mm's.
        return PageFacts(PageKind.UNKNOWN, here=owner)
