"""`struct cpu_entry_area`: what the CPU itself must reach when it enters the kernel, its task state segment among it.

One shape is known, of Linux 5.10 to 7.3. Where it lies is random since 6.2 (commit 97e3d26b5e5f "x86/mm: Randomize
per-cpu entry area"), so it is found from the segment in use.

Source: arch/x86/include/asm/cpu_entry_area.h, arch/x86/include/asm/processor.h (`struct tss_struct`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "what a call needs to be left cannot be kept in its table"


@dataclass(frozen=True, slots=True)
class EntryArea:
    """Its bytes, and where the task state segment lies in it."""

    area_bytes: int
    task_state_at: int


def probe_entry_area(probe: Probe) -> EntryArea:
    """Find it; what is missing is noted in `probe`."""
    return EntryArea(
        area_bytes=probe.size("cpu_entry_area"),
        task_state_at=probe.offset("cpu_entry_area.tss") + probe.offset("tss_struct.x86_tss"),
    )


def find_entry_area(facts: "KernelFacts") -> EntryArea:
    """Return it; `MissingFactError` if this kernel keeps it in another way."""
    probe = Probe(facts, "a CPU's entry area", DISABLES)
    found = probe_entry_area(probe)
    probe.check()
    return found
