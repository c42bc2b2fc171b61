"""What a process is told of its machine: the names of its UTS namespace, its limits, its personality, memory and tasks.

One shape is known, of Linux 5.10 to 7.3. The three counts may be missing, and are then not told.

Source: kernel/sys.c (`newuname`, `do_sysinfo`, `do_prlimit`), include/linux/utsname.h, include/linux/sched/signal.h.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "names and limits of a process cannot be read, so no plan may emulate them"
_COUNTS = ("_totalram_pages", "vm_zone_stat", "nr_threads")


@dataclass(frozen=True, slots=True)
class ProcessShape:
    """Offsets; the last three are addresses of all pages, of free pages and of how many tasks there are, 0 if there is
    no such count."""

    personality_at: int
    namespaces_at: int
    uts_at: int
    names_at: int
    signal_at: int
    limits_at: int
    pages_at: int
    free_pages_at: int
    task_count_at: int


def probe_process(probe: Probe) -> ProcessShape:
    """Find it; what is missing is noted in `probe`."""
    pages, free, tasks = (probe.symbol(name) if probe.has_symbol(name) else 0 for name in _COUNTS)
    return ProcessShape(
        personality_at=probe.offset("task_struct.personality"),
        namespaces_at=probe.offset("task_struct.nsproxy"),
        uts_at=probe.offset("nsproxy.uts_ns"),
        names_at=probe.offset("uts_namespace.name"),
        signal_at=probe.offset("task_struct.signal"),
        limits_at=probe.offset("signal_struct.rlim"),
        pages_at=pages,
        free_pages_at=free,
        task_count_at=tasks,
    )


def find_process(facts: "KernelFacts") -> ProcessShape:
    """Return it; `MissingFactError` if this kernel keeps it in another way."""
    probe = Probe(facts, "names and limits of a process", DISABLES)
    found = probe_process(probe)
    probe.check()
    return found
