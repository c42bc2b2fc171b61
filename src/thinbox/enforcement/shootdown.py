"""Mappings the kernel takes away while a call runs: no SCI table keeps them (rule 9).

Why it exists: an SCI table holds copies. Where the kernel unmaps or changes a page, the copy must go
before the page can be used for something else. The kernel says so at the functions hooked here.

Rules of this file:
- Dropping too much costs a fault, dropping too little is a hole: a range is dropped without a look.
- A table in use is reloaded after a drop, for the engine caches translations.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import to_signed
from thinbox.isolation import fault
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList


class Shootdown:
    """Tells what goes where the kernel unmaps and flushes, for one guest."""

    def __init__(self, target: "Target", tasks: "TaskList") -> None:
        self._target, self._tasks, self._memory = target, tasks, target.memory

    def of_range(self) -> "Iterator[np.ndarray]":
        """`(start, end)` of kernel mappings goes away: yield the rows of grants to be dropped."""
        regs = self._target.cpu.regs
        return self._between(to_signed(regs[registers.RDI]), to_signed(regs[registers.RSI]))

    def of_sized_range(self) -> "Iterator[np.ndarray]":
        """`(start, bytes)` of kernel mappings goes away: yield the rows of grants to be dropped."""
        regs = self._target.cpu.regs
        start = to_signed(regs[registers.RDI])
        return self._between(start, start + to_signed(regs[registers.RSI]))

    def _between(self, start: int, end: int) -> "Iterator[np.ndarray]":
        return self._rows(lambda rows: (rows[:, fault.LOG_VADDR] >= start & ~0xFFF) & (rows[:, fault.LOG_VADDR] < end))

    def of_changes(self) -> "Iterator[np.ndarray]":
        """The kernel flushes everything: yield the rows of what its own table does not map alike any more."""
        kernel_root, words, tables = self._target.kernel_root, self._memory.words, self._memory.tables
        compared = paging.FRAME_MASK | paging.WRITABLE | paging.USER

        def changed(rows: np.ndarray) -> np.ndarray:
            out = []
            for vaddr, index in rows[:, (fault.LOG_VADDR, fault.LOG_INDEX)].tolist():
                leaf, own = tables.lookup(kernel_root, vaddr), words[index]
                # Data grants are NX where the kernel's page is not; the other way round it was taken away.
                lost_execute = leaf & paging.NO_EXECUTE and not own & paging.NO_EXECUTE
                out.append(not leaf or bool((leaf ^ own) & compared) or bool(lost_execute))
            return np.array(out, dtype=bool)

        return self._rows(changed)

    def of_user_half(self) -> "Iterator[np.ndarray]":
        """User page-table pages may be freed: yield the rows of the user half, where that is mapped on demand."""
        return self._rows(lambda rows: rows[:, fault.LOG_VADDR] >= 0)

    def _rows(self, goes: Callable[[np.ndarray], np.ndarray]) -> "Iterator[np.ndarray]":
        for _state, call in self._tasks.isolated():
            for rows in call.rows:
                gone = rows[goes(rows)]
                if len(gone):
                    yield gone
