"""Mappings the kernel takes away while a call runs: no SCI table keeps them (rule 9).

Why it exists: an SCI table holds copies. Where the kernel unmaps or changes a page, the copy must go
before the page can be used for something else. The kernel says so at the functions hooked here.

Rules of this file:
- Dropping too much costs a fault, dropping too little is a hole: a range is dropped without a look.
- A table in use is reloaded after a drop, for the engine caches translations.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import to_signed
from thinbox.isolation import fault, pagetable
from thinbox.machine import cpu as registers
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.session.enforcer import Enforcer


class Teardown:
    """Watches the kernel's unmap and flush functions for one enforcer."""

    def __init__(self, enforcer: "Enforcer") -> None:
        self._enforcer = enforcer
        self._memory, self._cpu, self._slot = enforcer.memory, enforcer.cpu, enforcer.slot

    def install(self) -> None:
        """Hook the functions."""
        sites = self._enforcer.sites
        for vaddr in sites.range_teardowns:
            self._cpu.add_code_hook(vaddr, self._drop_range)
        for vaddr in sites.whole_teardowns:
            self._cpu.add_code_hook(vaddr, self._drop_changed)
        self._cpu.add_code_hook(sites.user_teardown, self._sync_user_half)

    def _drop_range(self) -> None:
        """`(start, end)` of kernel mappings goes away."""
        if not self._enforcer.tasks:
            return
        start, end = to_signed(self._cpu.regs[registers.RDI]), to_signed(self._cpu.regs[registers.RSI])
        self._drop(lambda rows: (rows[:, fault.LOG_VADDR] >= start & ~0xFFF) & (rows[:, fault.LOG_VADDR] < end))

    def _drop_changed(self) -> None:
        """The kernel flushes everything: keep only what its own table still maps alike."""
        if not self._enforcer.tasks:
            return
        kernel_root, words, end = self._enforcer.kernel_root, self._memory.quads, self._memory.guest_bytes
        compared = paging.FRAME_MASK | paging.WRITABLE | paging.USER

        def changed(rows: np.ndarray) -> np.ndarray:
            out = []
            for vaddr, index in rows[:, (fault.LOG_VADDR, fault.LOG_INDEX)].tolist():
                leaf, own = paging.walk_leaf(words, end, kernel_root, vaddr), words[index]
                # Data grants are NX where the kernel's page is not; the other way round it was taken away.
                lost_execute = leaf & paging.NO_EXECUTE and not own & paging.NO_EXECUTE
                out.append(not leaf or bool((leaf ^ own) & compared) or bool(lost_execute))
            return np.array(out, dtype=bool)

        self._drop(changed)

    def _drop(self, goes: Callable[[np.ndarray], np.ndarray]) -> None:
        dropped = False
        for _state, call in self._enforcer.isolated_calls():
            for rows in call.rows:
                gone = rows[goes(rows)]
                if len(gone):
                    self._memory.words[gone[:, fault.LOG_INDEX]] = 0
                    dropped = True
        if dropped and self._slot[slots.ACTIVE]:
            self._cpu.load_cr3(self._cpu.cr3)

    def _sync_user_half(self) -> None:
        """`flush_tlb_mm_range`: user page-table pages may be freed behind it; follow the kernel's table."""
        if self._slot[slots.UNDO_MODE]:
            self._drop(lambda rows: rows[:, fault.LOG_VADDR] >= 0)
        elif self._slot[slots.ACTIVE]:
            words, end, slot = self._memory.quads, self._memory.guest_bytes, self._slot
            pagetable.sync_user_half(words, end, slot[slots.SCI_ROOT], slot[slots.KERNEL_ROOT])
            self._cpu.load_cr3(self._slot[slots.SCI_ROOT])
