"""Looks at the user page tables that a call of a tenant with a view may have changed, before the call returns (V7).

Why it exists: an entry written into a tenant's own page table makes any page its own memory, and what user code
reaches no SCI table judges. Which tables a call could write, its grants tell.

Rules of this file:
- Nothing is remembered of entries: a page that was the tenant's may be another's now, and its old entry written again.
  Of page cache it is remembered that the tenant may have it, while it is the same file's (`seen_pages`).
- A grant that was taken back during the call counts: it may have been written before.
- All processes of the tenant are looked at: a call may write a sibling's table too. What the tenant's own structures
  say may be forged: it is read without trust, and no error of the machine.
- A kernel's half is the kernel's own, entry for entry, or it would be user memory at a kernel address.

Source: Linux 6.1 arch/x86/mm/pgtable.c (pgd_ctor), arch/x86/include/asm/pgtable.h (clone_pgd_range),
arch/x86/kernel/ldt.c (map_ldt_struct), arch/x86/entry/vdso/vma.c, mm/memory.c (ZERO_PAGE), kernel/exit.c (exit_mm).
"""

from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import PAGE_BYTES, U64, to_signed
from thinbox.isolation import mappings
from thinbox.isolation.page_ownership import (
    FORGED_KERNEL_HALF,
    FORGED_SPACE,
    PLAIN_MAPPING,
    SHARED_WRITABLE,
    TABLE_MAPPING,
    TOO_MANY_TABLES,
    PageKind,
    ViewVerdict,
    check_lower_table,
    check_mapping,
)
from thinbox.kernel.open_files import find_file_shape
from thinbox.kernel.user_pages import find_user_pages

if TYPE_CHECKING:
    from thinbox.enforcement.grants import Grants
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.seen_pages import SeenPages
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState
    from thinbox.guest.memory_cgroups import MemoryCgroups

_MOST_TABLES = 1 << 14
_KERNEL_HALF = slice(paging.KERNEL_HALF_FIRST, paging.ENTRIES_PER_TABLE)
_LEGACY_END = 1 << 20
"""Below lie a PC's BIOS and video memory, which root may map (drivers/char/mem.c)."""
_EXITING = 4
"""PF_EXITING (include/linux/sched.h)."""


class UserTables:
    """The user page tables of the tenants of one machine."""

    def __init__(
        self, target: "Target", tasks: "TaskList", grants: "Grants", cgroups: "MemoryCgroups", seen: "SeenPages"
    ) -> None:
        self._target, self._task_list, self._grants, self._cgroups = target, tasks, grants, cgroups
        self._seen = seen
        self._memory, self._cpu, self._kernel = target.memory, target.cpu, target.view
        types, files, root = target.view.facts.types, find_file_shape(target.view.facts), target.kernel_root
        self._mm_at, self._pgd_at = files.task_mm_at, files.mm_pgd_at
        self._flags_at, self._kernel_top = types.offset_of("task_struct", "flags"), self._find_kernel_top(root)
        self._shared = self._find_shared(root)
        self._roots: dict[str, dict[int, int]] = {}
        self._sought = np.zeros(0, dtype=np.int64)
        self._tables: frozenset[int] | None = None
        self._holders: frozenset[int] = frozenset()

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        self._roots.clear()

    def _find_kernel_top(self, root: int) -> int:
        """Where the kernel's own PGD lies, whose upper half every process's has (`swapper_pg_dir`)."""
        return self._memory.tables.translate(root, to_signed(self._kernel.symbols.address_of("init_top_pgt")))

    def _find_shared(self, root: int) -> frozenset[int]:
        """Return the frames of the kernel's own that every process may map: zeros, the vDSO and its data."""
        pages = find_user_pages(self._kernel.facts)
        vaddrs = pages.addresses(lambda vaddr: self._kernel.read_u64(vaddr, root))
        return frozenset(self._memory.tables.translate(root, to_signed(vaddr)) for vaddr in vaddrs)

    # -- one call ------------------------------------------------------------------------------------
    def check(
        self, state: "TaskState", call: "OpenCall", rule: int, *, is_dead: bool = False
    ) -> tuple[ViewVerdict, int] | None:
        """Judge what the call changed in its tenant's page tables; return the first refusal, and where the entry is.

        Preconditions: the call is about to return (`is_dead`: its task is dead, and has no address space any more), its
        log drained; `slots.VIEW` is its tenant's.
        """
        own, kernel_root = state.tenant.name, self._target.kernel_root & paging.FRAME_MASK
        space = state.task + self._mm_at
        if not is_dead and self._pgd_of(self._word(space)) != kernel_root:
            # User code would go on in an address space that is not its own; or has none, and borrows the next one's.
            return FORGED_SPACE, space & U64
        frames = self._grants.written_frames(call)
        if len(frames) == 0:
            return None
        roots = [] if is_dead else [kernel_root]
        spaces = self._mms(state)
        for task in spaces.pop(0, ()):
            if self._task_list.tasks[task].has_program and not self._is_exiting(task):
                return FORGED_SPACE, (task + self._mm_at) & U64
        # Of a tenant's address spaces only those that are there now are remembered: another may be made where one was.
        known, self._roots[own] = self._roots.get(own, {}), {}
        for mm in spaces:
            root = self._pgd_of(mm)
            if root != known.get(mm):
                found_root = check_lower_table(own, self._cgroups.facts(root, self._target.kernel_root), is_typed=False)
                if not found_root.verdict.granted:
                    return found_root, (mm + self._pgd_at) & U64
            self._roots[own][mm] = root
            roots.append(root)
        # A dead task holds nothing any more: what it could write is its living siblings', and holds what they hold.
        self._holders = frozenset(spaces) if is_dead else frozenset()
        self._sought, self._tables = np.array(sorted(set(roots)), dtype=np.int64), None
        found = self._target.sci.touched_tables(frames, self._sought, pti=self._kernel.uses_pti, most=_MOST_TABLES)
        if len(found) > _MOST_TABLES:
            return TOO_MANY_TABLES, 0
        tops = found[found[:, 1] >= mappings.TOP, 0]
        # The kernel marks no table of this level: what it holds is looked at with the entry that names it.
        pairs = [*found.tolist(), *((frame, mappings.UPPER) for frame in self._below(tops, paging.KERNEL_HALF_FIRST))]
        for frame, level in pairs:
            refused = self._check_table(own, rule, frame, level)
            if refused is not None:
                return refused
        return None

    def _paddr(self, vaddr: int) -> int:
        """Where a kernel address lies; negative if nowhere."""
        return self._memory.tables.translate(self._target.kernel_root, to_signed(vaddr & U64))

    def _word(self, vaddr: int) -> int:
        return self._memory.word_at(self._target.kernel_root, vaddr)

    def _mms(self, state: "TaskState") -> dict[int, list[int]]:
        """The address spaces of the tenant's tasks, and the tasks of each."""
        found: dict[int, list[int]] = {}
        for task in self._task_list.tasks.values():
            if task.tenant is state.tenant:
                found.setdefault(self._word(task.task + self._mm_at), []).append(task.task)
        return found

    def _is_exiting(self, task: int) -> bool:
        at = task + self._flags_at
        return bool(self._word(at & ~7) >> 8 * (at & 7) & _EXITING)

    def _pgd_of(self, mm: int) -> int:
        """Where the PGD of an address space lies; 0, which is no page of tables, if nowhere."""
        paddr = self._paddr(self._word(mm + self._pgd_at))
        return paddr & ~0xFFF if paddr >= 0 else 0

    def _check_table(self, own: str, rule: int, frame: int, level: int) -> tuple[ViewVerdict, int] | None:
        first = frame >> 3
        entries = self._memory.words[first : first + paging.ENTRIES_PER_TABLE].copy()
        if level >= mappings.TOP:
            strange = self._strange_entry(entries[_KERNEL_HALF], level)
            if strange is not None:
                return FORGED_KERNEL_HALF, self._direct_map(8 * (first + strange))
            # The one entry there that is a process's own.
            kept, entries[_KERNEL_HALF] = entries[mappings.LDT_SLOT], 0
            entries[mappings.LDT_SLOT] = kept
        judge = self._judge_leaf if level == mappings.LAST else self._judge_entry
        if level > mappings.LAST or self._target.sci.drop_plain(entries, self._seen.number_of(own)):
            for at in np.flatnonzero(entries & paging.PRESENT).tolist():
                found = judge(own, rule, int(entries[at]), level)
                if not found.verdict.granted:
                    return found, self._direct_map(8 * (first + at))
        return None

    def _strange_entry(self, entries: np.ndarray, level: int) -> int | None:
        """The number of an entry in the kernel half of a PGD that is not the kernel's own, None if there is none."""
        first = self._kernel_top + (PAGE_BYTES if level == mappings.TOP_OF_USER else 0) >> 3
        own = self._memory.words[first : first + paging.ENTRIES_PER_TABLE][_KERNEL_HALF]
        differs = (entries ^ own) & ~(paging.ACCESSED | paging.DIRTY) != 0
        differs &= entries & paging.PRESENT != 0
        differs[mappings.LDT_SLOT - paging.KERNEL_HALF_FIRST] = False
        found = np.flatnonzero(differs)
        return paging.KERNEL_HALF_FIRST + int(found[0]) if len(found) else None

    def _below(self, tables: np.ndarray, end: int = paging.ENTRIES_PER_TABLE) -> list[int]:
        """The frames of the tables that the first `end` entries of `tables` (frames) name."""
        rows = self._memory.words.pages
        entries = rows[tables >> 12, :end].ravel()
        frames = entries[entries & (paging.PRESENT | paging.LARGE) == paging.PRESENT] & paging.FRAME_MASK
        return sorted(set(frames[frames < self._memory.guest_bytes].tolist()))

    def _unmarked_tables(self) -> frozenset[int]:
        """Page tables that `struct page` does not show to be some: the tenant's upper ones, and all of the kernel's."""
        if self._tables is None:
            step = PAGE_BYTES if self._kernel.uses_pti else 0
            tops = np.union1d(self._sought, self._sought + step)
            uppers = self._below(tops)
            kernels = np.array([self._kernel_top, self._kernel_top + step], dtype=np.int64)
            halves = set(self._below(kernels)) | set(self._below(tops)) - set(
                self._below(tops, paging.KERNEL_HALF_FIRST)
            )
            middles = self._below(np.array(sorted(halves), dtype=np.int64))
            lasts = self._below(np.array(middles, dtype=np.int64))
            self._tables = frozenset((*tops.tolist(), *uppers, *halves, *middles, *lasts))
        return self._tables

    def _direct_map(self, paddr: int) -> int:
        base = self._kernel.read_u64(self._kernel.symbols.address_of("page_offset_base"), self._target.kernel_root)
        return (base + paddr) & U64

    def judge_access(self, state: "TaskState", rule: int, frame: int, *, is_write: bool) -> ViewVerdict:
        """Judge an access of user code to the page `frame`, while its task runs (rule W3)."""
        roots = (self._target.kernel_root & paging.FRAME_MASK, *map(self._pgd_of, self._mms(state)))
        self._sought, self._tables = np.array(sorted(set(roots)), dtype=np.int64), None
        self._holders = frozenset()
        return self._judge_leaf(state.tenant.name, rule, frame, mappings.LAST, is_write=is_write)

    def _judge_leaf(self, own: str, rule: int, entry: int, _level: int, *, is_write: bool = False) -> ViewVerdict:
        frame = entry & paging.FRAME_MASK
        if frame in self._shared:
            return SHARED_WRITABLE if is_write or entry & paging.WRITABLE else PLAIN_MAPPING
        if frame < _LEGACY_END:
            return PLAIN_MAPPING
        facts = self._cgroups.facts(frame, self._target.kernel_root, self._holders, is_write=is_write)
        if facts.kind is PageKind.KERNEL and frame in self._unmarked_tables():
            return TABLE_MAPPING
        found = check_mapping(rule, own, facts, is_write=is_write)
        if found.verdict.granted and facts.kind is PageKind.FILE:
            self._seen.remember(frame, own)
        return found

    def _judge_entry(self, own: str, rule: int, entry: int, level: int) -> ViewVerdict:
        """An entry above the last level: the next table, or a large page, each part of which is judged."""
        frame = entry & paging.FRAME_MASK
        if entry & paging.LARGE and level < mappings.TOP:
            pages = 1 << 9 * (level - 1)
            parts = frame + PAGE_BYTES * np.arange(pages, dtype=np.int64) | paging.PRESENT
            self._target.sci.drop_plain(parts, self._seen.number_of(own))
            judged = (self._judge_leaf(own, rule, part, level) for part in parts[np.flatnonzero(parts)].tolist())
            return next((found for found in judged if not found.verdict.granted), PLAIN_MAPPING)
        facts = self._cgroups.facts(frame, self._target.kernel_root)
        return check_lower_table(own, facts, is_typed=level <= mappings.UPPER)
