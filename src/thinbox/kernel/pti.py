"""Whether page-table isolation is on in a running kernel, measured at its page tables.

Why it exists: with it, user code runs on the second page of an 8 KiB pair, so bit 12 of CR3 is set
(arch/x86/include/asm/pgtable.h, PTI_PGTABLE_SWITCH_BIT). Without it the bit is chance where a PGD is one page
(arch/x86/mm/pgtable.c, since 6.15 "x86/mm: Only allocate 8k PGDs when PTI is enabled"; earlier kernels always take a
pair). What tells is the user's table itself: it maps the entry code and, on some CPUs, all of the kernel's text and
read-only data (arch/x86/mm/pti.c, `pti_clone_kernel_text`), but never its writable data.
"""

from collections.abc import Callable

from thinbox.errors import MissingFactError

USER_TABLE_BIT = 1 << 12
_FRAME = ~0xFFF & (1 << 52) - 1
WITNESS = "init_task"
"""Writable data that no user table maps."""


def measure_pti(cr3: int, witness: int, is_mapped: Callable[[int, int], bool]) -> bool:
    """Tell whether `cr3`, taken while user code runs, is the user's half of an isolated pair.

    `is_mapped(root, vaddr)` says whether a table maps an address; `witness` is where `WITNESS` lies.

    Raises:
        MissingFactError: neither the table nor the other one of its pair is the kernel's.
    """
    root = cr3 & _FRAME
    if is_mapped(root, witness):
        return False
    if root & USER_TABLE_BIT and is_mapped(root ^ USER_TABLE_BIT, witness):
        return True
    raise MissingFactError(
        "the kernel's own page table cannot be found from the user's; the kernel does not match its symbols"
    )
