"""What the guest kernel knows of a physical page: what it is, and which memory cgroups it is charged to.

Why it exists: a view judges by owners, and the kernel's own accounting names them: `struct page` for whole pages, a
vector beside it for the objects of a slab. Read at the fault, so there is nothing to keep up to date.

Rules of this file:
- Where what lies, `thinbox.kernel` says; a kernel that keeps it otherwise is refused when a view is asked for.
- Nothing read here is trusted to be sane: a pointer that leads nowhere gives an unknown page.

Source: Linux 6.1 include/linux/memcontrol.h, include/linux/page-flags.h, mm/slab.h, arch/x86/mm/pgtable.c; other
kernels: the modules of `thinbox.kernel`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import PAGE_BYTES, U64, to_signed
from thinbox.errors import MachineError, MissingFactError
from thinbox.guest.held_files import HeldFiles
from thinbox.isolation import view_rules
from thinbox.isolation.page_ownership import PageFacts, PageKind
from thinbox.kernel.linked_caches import find_linked_caches
from thinbox.kernel.memcg import charges_by_objcg, find_memcg_shape
from thinbox.kernel.mount import find_mount_shape
from thinbox.kernel.open_files import find_file_shape
from thinbox.kernel.page import DISABLES, TypeTest, find_page_shape
from thinbox.kernel.sanitizer import require_no_quarantine
from thinbox.kernel.slab import find_slab_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.memory import Memory

_ANON, _MAPPING_FLAGS = 1, 3
"""Low bits of page->mapping (include/linux/page-flags.h, PAGE_MAPPING_ANON, PAGE_MAPPING_FLAGS)."""
_MAX_ORDER = 11
_OTHERS_READ = 0o004
_MOST_CHARGED = 64
"""User pages looked at to learn how they are charged."""
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
        facts = kernel.facts
        require_no_quarantine(facts)
        self._page, self._slab = find_page_shape(facts), find_slab_shape(facts)
        self._memcg, self._mounts = find_memcg_shape(facts), find_mount_shape(facts)
        self._files = find_file_shape(facts)
        self._held = HeldFiles(kernel, self._pointer)
        self._linked = frozenset(map(self._pointer, find_linked_caches(facts))) - {0}
        self._direct_map = self._pointer(kernel.symbols.address_of("page_offset_base"))
        self.words = self._find_layout()
        root = kernel.kernel_root
        self.words[view_rules.BY_OBJCG] = charges_by_objcg(
            self._charges(root), self._own_memcgs(root).__contains__, lambda objcg: self._memcg_of(objcg, root)
        )
        self._table = self._page.types.table or self._measure_table(root)

    def _find_layout(self) -> np.ndarray:
        """Return the words of `isolation.view_rules` for this kernel; rule and owner are 0, and so is BY_OBJCG."""
        page, slab, memcg = self._page, self._slab, self._memcg
        words = np.zeros(view_rules.WORD_COUNT, dtype=np.int64)
        words[view_rules.ROOT] = to_signed(self._pointer(memcg.root_at))
        words[view_rules.VMEMMAP] = to_signed(self._pointer(self._kernel.symbols.address_of("vmemmap_base")))
        words[view_rules.PAGE_BYTES] = page.page_bytes
        words[view_rules.HEAD_AT], words[view_rules.FLAGS_AT] = page.head_at, page.flags_at
        words[view_rules.MEMCG_AT], words[view_rules.MAPPING_AT] = memcg.data_at, page.mapping_at
        words[view_rules.COUNT_AT], words[view_rules.COUNT_SHIFT] = page.count_at & ~7, 8 * (page.count_at & 7)
        words[view_rules.OBJECTS_AT] = slab.objects_at
        words[view_rules.OBJECTS_SHIFT], words[view_rules.OBJECTS_MASK] = slab.objects_shift, slab.objects_mask
        words[view_rules.RESERVED] = page.reserved_mask
        words[view_rules.SLAB_AT], words[view_rules.SLAB_MASK] = page.slab_at, page.slab_mask
        words[view_rules.SLAB_VALUE] = page.slab_value
        words[view_rules.CACHE_AT] = slab.cache_at
        words[view_rules.CACHE_SIZE_AT] = slab.cache_size_at & ~7
        words[view_rules.CACHE_SIZE_SHIFT] = 8 * (slab.cache_size_at & 7)
        words[view_rules.OBJCG_MEMCG_AT], words[view_rules.POINTER_MASK] = memcg.objcg_memcg_at, ~memcg.flags
        words[view_rules.OWNER_BYTES], words[view_rules.OWNER_AT] = slab.owner_bytes, slab.owner_at
        words[view_rules.KERNEL_AT], words[view_rules.KERNEL_MASK] = memcg.kernel_at, memcg.kernel_mask
        words[view_rules.KERNEL_VALUE], words[view_rules.KERNEL_BY_OBJCG] = memcg.kernel_value, memcg.kernel_by_objcg
        words[view_rules.IN_OBJECT], words[view_rules.OWNED] = slab.in_object, slab.owned
        files = self._files
        words[view_rules.SUPER_AT] = files.inode_super_at
        words[view_rules.HOST_AT], words[view_rules.NUMBER_AT] = files.mapping_host_at, files.inode_number_at
        for at, shift, offset in (
            (view_rules.GENERATION_AT, view_rules.GENERATION_SHIFT, files.inode_generation_at),
            (view_rules.MODE_AT, view_rules.MODE_SHIFT, files.inode_mode_at),
            (view_rules.UID_AT, view_rules.UID_SHIFT, files.inode_owners_at[0]),
            (view_rules.GID_AT, view_rules.GID_SHIFT, files.inode_owners_at[1]),
        ):
            words[at], words[shift] = offset & ~7, 8 * (offset & 7)
        return words

    def _user_leaves(self, root: int) -> Iterator[int]:
        """Yield the frames that the running task's user half maps page by page."""
        wanted = paging.PRESENT | paging.USER

        def below(table: int, level: int) -> Iterator[int]:
            first = table >> 3
            count = paging.ENTRIES_PER_TABLE // 2 if level == 3 else paging.ENTRIES_PER_TABLE
            for entry in self._memory.words[first : first + count].tolist():
                if entry & wanted == wanted and (level == 0 or not entry & paging.LARGE):
                    frame = entry & paging.FRAME_MASK
                    if frame + PAGE_BYTES <= self._memory.guest_bytes:
                        yield from below(frame, level - 1) if level else (frame,)

        yield from below(root & paging.FRAME_MASK, 3)

    def _charges(self, root: int) -> Iterator[int]:
        """Yield what user pages of the running task have in `memcg_data`, flags taken off."""
        words = self.words.data
        for frame in islice(self._user_leaves(root), _MOST_CHARGED):
            page = self._find(frame, root)
            data = 0 if page is None else self._word(page.head + words[view_rules.MEMCG_AT])
            if page and data and not data & view_rules.DATA_FLAGS and not self._is_kernels(page.head):
                yield data & words[view_rules.POINTER_MASK] & U64

    def _own_memcgs(self, root: int) -> set[int]:
        """The memory cgroup of the running task and those above it, the root's among them."""
        shape = self._memcg
        css = self._pointer(self._pointer(self._kernel.current + shape.task_cgroups_at, root) + shape.set_css_at, root)
        return set(self.memcg_line((css - shape.memcg_css_at) & U64, root))

    def _measure_table(self, root: int) -> TypeTest:
        """Return what a page table's page_type is known by: what the last table of the running task's memory has.

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
            raise MissingFactError.of("pages", ["page_type of a page table"], DISABLES)
        return self._page.types.measured_table(self._type(page.head))

    @property
    def _pointer_mask(self) -> int:
        return ~self._memcg.flags & U64

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
        return int.from_bytes(self._memory.read(page + self._page.type_at, 4), "little")

    def _is_table(self, page: int) -> bool:
        return self._table.holds(self._type(page))

    def _is_kernels(self, page: int) -> bool:
        return view_rules.is_kernels(self._memory.words, self.words.data, page)

    def _is_slab(self, page: int) -> bool:
        return view_rules.is_slab(self._memory.words, self.words.data, page)

    # -- owners --------------------------------------------------------------------------------------
    def memcg_line(self, memcg: int, root: int) -> Iterator[int]:
        """Yield a memory cgroup and those above it."""
        for _ in range(64):
            if memcg == 0:
                return
            yield memcg
            css = self._pointer(memcg + self._memcg.memcg_css_at + self._memcg.css_parent_at, root)
            memcg = css - self._memcg.memcg_css_at if css else 0

    def facts(
        self,
        paddr: int,
        root: int,
        owner_of: "Callable[[int], str | None]",
        spaces: frozenset[int] = frozenset(),
        *,
        is_write: bool = False,
    ) -> PageFacts:
        """Return the facts of the page of `paddr` (the very address touched); `owner_of` names a cgroup's tenant.

        `root` is the kernel's table; what the mm_structs `spaces` have mapped counts as held. Whether a file may be
        written is looked for only if `is_write`.
        """
        page = self._find(paddr, root)
        if page is None:
            return PageFacts(PageKind.UNKNOWN)
        words, head = self.words.data, page.head
        flags, data = self._word(head + words[view_rules.FLAGS_AT]), self._word(head + words[view_rules.MEMCG_AT])
        if flags & words[view_rules.RESERVED]:
            return PageFacts(PageKind.STATIC)
        if self._is_slab(head):
            return self._slab_facts(page, paddr, data, root, owner_of)
        pointer = data & self._pointer_mask
        if data and self._is_kernels(head):
            kind = PageKind.TABLE if self._is_table(head) else PageKind.KERNEL
            return PageFacts(kind, frozenset({owner_of(self._memcg_of_kernels(data, root))}))
        mapping = self._word(head + words[view_rules.MAPPING_AT])
        if pointer or mapping:
            memcg = self._memcg_of(pointer, root) if pointer and words[view_rules.BY_OBJCG] else pointer
            owners = frozenset({owner_of(memcg) if memcg else None})
            if mapping & _ANON or not mapping & ~_MAPPING_FLAGS:
                return PageFacts(PageKind.MEMORY, owners)
            return self._file_facts(mapping & ~_MAPPING_FLAGS, owners, root, spaces, is_write=is_write)
        if (self._word(head + words[view_rules.COUNT_AT]) >> words[view_rules.COUNT_SHIFT]) & 0xFFFFFFFF == 0:
            return self._unreferenced_facts(page, paddr, root, owner_of)
        return PageFacts(PageKind.KERNEL)

    def _memcg_of(self, objcg: int, root: int) -> int:
        memory = self._memory
        found = view_rules.memcg_of_objcg(memory.words, memory.guest_bytes, root, self.words.data, to_signed(objcg))
        return found & U64

    def _memcg_of_kernels(self, data: int, root: int) -> int:
        memory = self._memory
        found = view_rules.memcg_of_kernels(memory.words, memory.guest_bytes, root, self.words.data, to_signed(data))
        return found & U64

    def _slab_facts(
        self, page: _Page, paddr: int, data: int, root: int, owner_of: "Callable[[int], str | None]"
    ) -> PageFacts:
        memory, words = self._memory, self.words.data
        cache = self._word(page.head + words[view_rules.CACHE_AT])
        detail = self._string(self._pointer(cache + self._slab.cache_name_at, root), root)
        vector = data & self._pointer_mask
        stride = view_rules.owner_stride(memory.words, memory.guest_bytes, root, words, page.head)
        if not data & view_rules.DATA_OBJCGS or not vector or stride <= 0:
            return PageFacts(PageKind.SLAB, detail=detail)
        count = (self._word(page.head + words[view_rules.OBJECTS_AT]) >> words[view_rules.OBJECTS_SHIFT]) & words[
            view_rules.OBJECTS_MASK
        ]
        named: dict[int, str | None] = {0: None}
        owners = []
        for i in range(count):
            objcg = self._pointer(vector + words[view_rules.OWNER_AT] + stride * i, root)
            if objcg not in named:
                named[objcg] = owner_of(self._memcg_of(objcg, root))
            owners.append(named[objcg])
        size = view_rules.object_size(memory.words, memory.guest_bytes, root, words, page.head)
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

    def _file_facts(
        self, mapping: int, owners: frozenset[str | None], root: int, spaces: frozenset[int], *, is_write: bool
    ) -> PageFacts:
        files = self._files
        inode = self._pointer(mapping + files.mapping_host_at, root)
        mode = self._pointer(inode + (files.inode_mode_at & ~7), root) >> 8 * (files.inode_mode_at & 7) & 0xFFFF
        superblock = self._pointer(inode + files.inode_super_at, root)
        public = bool(mode & _OTHERS_READ) and superblock in self._mounted(root)
        held = self._held.holds(mapping, root, spaces)
        may_write = is_write and self._held.may_write(mapping, inode, mode, root)
        return PageFacts(PageKind.FILE, owners, is_public=public, is_held=held, is_writable=may_write)

    def _mounted(self, root: int) -> set[int]:
        """Return the super blocks mounted in the running task's mount namespace."""
        return set(self._mounts.super_blocks(self._kernel.current, lambda vaddr: self._pointer(vaddr, root))) - {0}

    def _unreferenced_facts(
        self, page: _Page, paddr: int, root: int, owner_of: "Callable[[int], str | None]"
    ) -> PageFacts:
        """A page that nobody refers to and nobody pays for: free, or uncounted memory of the kernel's, or the second
        page of a PGD under PTI, or unknown."""
        words, number, types = self.words.data, paddr >> 12, self._page.types
        for order in range(_MAX_ORDER):
            first = self._find(number >> order << order << 12, root)
            is_free = first is not None and types.is_buddy(self._type(first.paddr))
            if first and is_free and self._word(first.paddr + self._page.private_at) >= order:
                return PageFacts(PageKind.FREE)
        if not types.counts_tables and self._is_table(page.head):
            return PageFacts(PageKind.TABLE)
        if types.is_large(self._type(page.head)):
            return PageFacts(PageKind.KERNEL)
        before = self._find((number & ~1) << 12, root) if number & 1 else None
        if before is None:
            return PageFacts(PageKind.UNKNOWN)
        data = self._word(before.paddr + words[view_rules.MEMCG_AT])
        owner = owner_of(self._memcg_of_kernels(data, root)) if data and self._is_kernels(before.paddr) else None
        mm = self._word(before.paddr + self._page.table_mm_at)
        if mm and self._pointer(mm + self._files.mm_pgd_at, root) == (self._direct_map + ((number & ~1) << 12)) & U64:
            return PageFacts(PageKind.TABLE, frozenset({owner}))
        # While a PGD is being made, it is not yet its mm's.
        return PageFacts(PageKind.UNKNOWN, here=owner)
