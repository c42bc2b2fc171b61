"""Reads page tables in guest memory: whose entry maps an address, and where it lies.

Why it exists: the walks of `paging` are plain functions that compiled code shares; they are told the memory, its end
and the root each time. In Python this knows the first two.

Rules of this file:
- Whatever the guest's own tables name is bounded by the guest's RAM: hidden RAM is no memory of the guest's machine.
- Addresses are signed, as `paging` has them.

Source: Intel SDM vol. 3A, 4.5; the shape is that of gVisor's ring0 page tables (lookup, walk).
"""

from thinbox import paging
from thinbox.isolation import pagetable


class PageTables:
    """The tables in one memory: the guest's own, and SCI tables in hidden RAM."""

    def __init__(self, words: paging.Words, guest_bytes: int, total_bytes: int) -> None:
        self._words, self._guest_end, self._end = words, guest_bytes, total_bytes

    def lookup(self, root: int, vaddr: int) -> int:
        """Return the 4 KiB entry by which the guest's table `root` maps `vaddr`, 0 if it does not."""
        return paging.walk_leaf(self._words, self._guest_end, root, vaddr)

    def translate(self, root: int, vaddr: int) -> int:
        """Return the guest-physical address of `vaddr` under the guest's table `root`, -1 if there is none."""
        return paging.translate(self._words, self._guest_end, root, vaddr)

    def entry_index(self, root: int, vaddr: int) -> int:
        """Return the word index of the last-level entry of `vaddr` in the SCI table `root`, -1 if there is none.

        Preconditions: `root` is one of thinbox's own tables.
        """
        return paging.entry_index(self._words, self._end, root, vaddr)

    def is_executable(self, root: int, vaddr: int) -> bool:
        """Tell whether the SCI table `root` maps `vaddr`, executable. Preconditions: as `entry_index`."""
        return pagetable.is_executable(self._words, self._end, root, vaddr)
