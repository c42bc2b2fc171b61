"""What was judged of page cache: which tenant may read a page, which task may write it, while it is the same file's.

Why it exists: a shared library is looked at by every process of a tenant, at each of its accesses (rule W3) and in
each page table a call could have written (V7). Who may see a file changes with the file, not with the look.

Rules of this file:
- Page cache only. What else a page is may change before the next look, and is asked about again.
- What makes it the same file, `wall_rules.is_as_seen` says; it is read again at every look.
"""

from typing import TYPE_CHECKING

import numpy as np

from thinbox.address import PAGE_BYTES, to_signed
from thinbox.isolation import view_rules, wall_rules
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target


class SeenPages:
    """The table that the compiled hooks read, one row a page of RAM (`slots.WALL_SEEN`)."""

    def __init__(self, target: "Target", words: np.ndarray) -> None:
        self._memory, self._words = target.memory, words
        top = to_signed(target.view.symbols.address_of("init_top_pgt"))
        self._root = target.memory.tables.translate(target.kernel_root, top)
        self._rows = np.zeros((target.memory.guest_bytes // PAGE_BYTES, wall_rules.SEEN_WORDS), dtype=np.int64)
        self._numbers: dict[str, int] = {}
        target.slot[slots.WALL_SEEN] = target.cpu.keep_array(self._rows)
        target.slot[slots.WALL_ROOT] = self._root

    def number_of(self, tenant: str) -> int:
        """Return the number a tenant has in the rows, from 1."""
        return self._numbers.setdefault(tenant, len(self._numbers) + 1)

    def remember(self, frame: int, tenant: str, task: int = 0) -> None:
        """A user mapping of the page `frame` was granted to the tenant, and a store to its task number `task`, if any.

        Pages that are no page cache are not remembered.
        """
        memory, words, row = self._memory, self._words.data, self._rows[frame // PAGE_BYTES]
        where = (memory.words, memory.guest_bytes, self._root, words)
        at = view_rules.find_page(*where, frame)
        if at < 0 or not (wall_rules.is_as_seen(*where, row, at) or wall_rules.note_file(*where, row, at)):
            return
        row[wall_rules.SEEN_READ] = self.number_of(tenant)
        if task:
            row[wall_rules.SEEN_WRITE] = task

    def reset(self) -> None:
        """Forget all: the machine was restored."""
        self._rows[:] = 0
