"""The kernel's list of every function that can be traced: groups of pages of records, one for each function.

One shape is known, of Linux 5.10 to 7.3. A kernel without `ftrace_pages_start` has no list (CONFIG_DYNAMIC_FTRACE=n).

Source: kernel/trace/ftrace.c (`struct ftrace_page`), include/linux/ftrace.h (`struct dyn_ftrace`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "functions that are only traced cannot be told from those that are called by pointer"
HEAD = "ftrace_pages_start"


@dataclass(frozen=True, slots=True)
class FtracePages:
    """`head_at` points to the first group; in a group lie pointers to the next and to its records, and how many there
    are (32 bits). A record has `record_bytes`."""

    head_at: int
    next_at: int
    records_at: int
    count_at: int
    record_bytes: int


def probe_ftrace_pages(probe: Probe) -> FtracePages | None:
    """Find it, None if this kernel has no such list; what is missing is noted in `probe`."""
    if not probe.has_symbol(HEAD):
        return None
    return FtracePages(
        head_at=probe.symbol(HEAD),
        next_at=probe.offset("ftrace_page.next"),
        records_at=probe.offset("ftrace_page.records"),
        count_at=probe.offset("ftrace_page.index"),
        record_bytes=probe.size("dyn_ftrace"),
    )


def find_ftrace_pages(facts: "KernelFacts") -> FtracePages | None:
    """Return it; `MissingFactError` if this kernel lists such functions in another way."""
    probe = Probe(facts, "list of traceable functions", DISABLES)
    found = probe_ftrace_pages(probe)
    probe.check()
    return found
