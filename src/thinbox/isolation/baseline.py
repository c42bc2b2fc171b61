"""Rule 1: what an SCI page table holds before its call touches anything.

Almost the PTI user page table: `cpu_entry_area`, the entry text, the task's kernel stack, and the page of
the function that goes on after the switch. The user half is copied at each entry (`sync_user_half`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from thinbox.address import PAGE_BYTES, page_align_up, page_start

CPU_ENTRY_AREA = 0xFFFF_FE00_0000_0000
"""Start of the cpu_entry_area region (Documentation/arch/x86/x86_64/mm.rst): the read-only IDT, then each CPU's own."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The ranges (start, exclusive end) every SCI table begins with, the stack aside."""

    entry_areas: tuple[tuple[int, int], ...]
    entry_text: tuple[int, int]
    call_entries: tuple[int, ...]

    def pages(self, stack: int, stack_bytes: int) -> Iterator[int]:
        """Yield the address of each page to clone for a task whose kernel stack starts at `stack`."""
        for start, end in (*self.entry_areas, self.entry_text, (stack, stack + stack_bytes)):
            yield from range(page_start(start), page_align_up(end), PAGE_BYTES)
        for entry in self.call_entries:
            yield page_start(entry)
