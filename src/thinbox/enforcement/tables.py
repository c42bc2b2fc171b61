"""The SCI tables of one machine: made, counted, freed.

Why it exists: rules 1 to 3 and 8 are about the life of a table, from the shared pool to the tenant's record.

Rules of this file:
- Table pages come from memory hidden from the guest; the pool is one for all tenants.
- Each page made or freed is counted in the record of the task's tenant.
"""

from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import to_signed
from thinbox.enforcement.undo import RESERVED_BYTES
from thinbox.isolation import pagetable
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState


class Tables:
    """Makes and frees tables for one guest."""

    def __init__(self, target: "Target", tasks: "TaskList", *, undo: bool) -> None:
        self._target, self._tasks, self._memory, self._undo = target, tasks, target.memory, undo
        memory = self._memory
        self._pool = np.zeros(1 + (memory.total_bytes - memory.guest_bytes) // 4096, dtype=np.int64)
        frames = range(memory.guest_bytes, memory.total_bytes - (RESERVED_BYTES if undo else 0), 4096)
        self._pool[0] = len(frames)
        self._pool[1 : 1 + len(frames)] = list(reversed(frames))
        self._full = self._pool.copy()
        target.slot[slots.POOL] = target.cpu.keep_array(self._pool)

    def reset(self) -> None:
        """All frames are free again, after the machine was restored."""
        self._pool[:] = self._full

    def make(self, state: "TaskState", root: int) -> bool:
        """Rules 1 to 3: clone the baseline into a table of the task's own; False when the pool is empty."""
        record, before = state.tenant.record, int(self._pool[0])
        state.root = pagetable.take_frame(self._memory.words.each, self._pool)
        if state.root == 0:
            return False
        record.tables_made += 1
        is_whole = self._clone_baseline(state, root)
        state.pages_made = before - int(self._pool[0])
        record.table_pages_made += state.pages_made
        return is_whole

    def _clone_baseline(self, state: "TaskState", root: int) -> bool:
        target, memory = self._target, self._memory
        view = target.view
        state.stack = view.stack_of(state.task, root)
        for vaddr in target.sites.baseline.pages(state.stack, view.stack_bytes):
            leaf = memory.tables.lookup(root, to_signed(vaddr))
            if self._undo:
                leaf &= ~paging.WRITABLE
            bounds, place = (memory.guest_bytes, memory.total_bytes), (state.root, to_signed(vaddr))
            if leaf and pagetable.map_page(memory.words.each, *bounds, self._pool, *place, leaf) < 0:
                return False
        return True

    def note_pages(self, state: "TaskState") -> None:
        """Count table pages made since the last look: the pool shrinks only by them."""
        live = sum(task.pages_made for task in self._tasks.tasks.values() if task is not state)
        now = int(self._full[0]) - int(self._pool[0]) - live
        if state.root and now > state.pages_made:
            state.tenant.record.table_pages_made += now - state.pages_made
            state.pages_made = now

    def free(self, state: "TaskState") -> None:
        """Rule 8: the task is dead; its table's pages go back to the pool."""
        if not state.root:
            return
        memory = self._memory
        freed = pagetable.free_table(
            memory.words.each, memory.guest_bytes, memory.total_bytes, self._pool, state.root, whole=self._undo
        )
        state.tenant.record.tables_freed += 1
        state.tenant.record.table_pages_freed += freed
