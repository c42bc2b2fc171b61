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
    from thinbox.enforcement.grants import Grants
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList


class Shootdown:
    """Watches the kernel's unmap and flush functions for one guest."""

    def __init__(self, target: "Target", tasks: "TaskList", grants: "Grants") -> None:
        self._target, self._tasks, self._grants = target, tasks, grants
        self._memory, self._cpu, self._slot = target.memory, target.cpu, target.slot

    def install(self) -> None:
        """Hook the functions."""
        sites = self._target.sites
        for vaddr in sites.range_teardowns:
            self._cpu.add_code_hook(vaddr, self._drop_range)
        for vaddr in sites.whole_teardowns:
            self._cpu.add_code_hook(vaddr, self._drop_changed)
        self._cpu.add_code_hook(sites.user_teardown, self._sync_user_half)

    def _drop_range(self) -> None:
        """`(start, end)` of kernel mappings goes away."""
        if not self._tasks.tasks:
            return
        start, end = to_signed(self._cpu.regs[registers.RDI]), to_signed(self._cpu.regs[registers.RSI])
        self._drop(lambda rows: (rows[:, fault.LOG_VADDR] >= start & ~0xFFF) & (rows[:, fault.LOG_VADDR] < end))

    def _drop_changed(self) -> None:
        """The kernel flushes everything: keep only what its own table still maps alike."""
        if not self._tasks.tasks:
            return
        kernel_root, words, end = self._target.kernel_root, self._memory.quads, self._memory.total_bytes
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
        dropped, running = False, self._tasks.running
        if running is not None and running.call is not None and running.call.isolated:
            self._grants.drain(running, running.call)
        for _state, call in self._tasks.isolated():
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
            pagetable.sync_user_half(self._memory.quads, self._slot[slots.SCI_ROOT], self._slot[slots.KERNEL_ROOT])
            self._cpu.load_cr3(self._slot[slots.SCI_ROOT])
