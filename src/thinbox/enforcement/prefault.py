"""`--prefault`: pages a call is known to need are mapped at its entry, before it asks.

Why it exists: most faults of a call are the same each time. Mapping them at once saves the faults, and gives an
exploit, from the first instruction on, what the policy would have judged one by one. Both are counted.

Rules of this file: a page is mapped as its grant would be (same bits, one page, forgotten at the end); the
policy is not asked, which is the point and the price.
"""

from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import PAGE_BYTES, to_signed

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target
    from thinbox.records.profile import KnownPages


class Prefault:
    """The lists of known pages, as the compiled hook wants them."""

    def __init__(self, target: "Target", known: "KnownPages", text_start: int) -> None:
        self._sci = target.sci
        self._lists: dict[str, tuple[int, int]] = {}
        for name, pages in known.calls.items():
            pairs = [(text_start + PAGE_BYTES * page, paging.FAULT_FETCH) for page in pages.code]
            pairs += [(vaddr, 0) for vaddr in pages.data]
            if pairs:
                array = np.array([(to_signed(vaddr), error) for vaddr, error in pairs], dtype=np.int64)
                self._lists[name] = (target.cpu.keep_array(array), len(pairs))

    def enter(self, name: str) -> None:
        """A call of that name is on its SCI table now: map what it is known to need."""
        found = self._lists.get(name)
        if found is not None:
            self._sci.prefault(*found)
