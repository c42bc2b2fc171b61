"""Soft interrupts: the functions that run them, and the stack they run on.

Shapes, newest first:
- `handle_softirqs(ksirqd)`, and `__do_softirq()`, which calls it (6.10, and later releases of 6.1); before,
  `__do_softirq()` alone (kernel/softirq.c).
- the stack's end is the per-CPU variable `hardirq_stack_ptr` (also 5.8 to 6.1), or it is in `pcpu_hot` (6.2 to 6.14).

Source: kernel/softirq.c, arch/x86/include/asm/irq_stack.h (`call_on_irqstack`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "a view would judge soft interrupts as a call's own work"
FUNCTIONS = ("handle_softirqs", "__do_softirq")


@dataclass(frozen=True, slots=True)
class SoftIrqs:
    """The functions' first instructions; `stack_at` is the per-CPU address of the stack's end, 0 if there is none."""

    functions: tuple[int, ...]
    stack_at: int


def probe_softirq(probe: Probe) -> SoftIrqs:
    """Find them; what is missing is noted in `probe`."""
    functions = probe.symbols(*FUNCTIONS)
    if probe.has_symbol("hardirq_stack_ptr"):
        return SoftIrqs(functions, probe.symbol("hardirq_stack_ptr"))
    if probe.has_symbol("pcpu_hot") and probe.has_member("pcpu_hot.hardirq_stack_ptr"):
        return SoftIrqs(functions, probe.symbol("pcpu_hot") + probe.offset("pcpu_hot.hardirq_stack_ptr"))
    return SoftIrqs(functions, 0)


def find_softirq(facts: "KernelFacts") -> SoftIrqs:
    """Return them; `MissingFactError` if this kernel runs soft interrupts in another way."""
    probe = Probe(facts, "soft interrupts", DISABLES)
    found = probe_softirq(probe)
    probe.check()
    return found
