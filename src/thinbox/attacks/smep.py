"""SMEP on a CPU that was booted without it, made as if it had it.

Why it exists: an exploit that clears CR4.SMEP shows nothing where the bit is not set. The engine enforces the bit
whatever CPUID says; the kernel keeps two copies of CR4's bits, which must agree with it.

Source: arch/x86/kernel/cpu/common.c, setup_smep, setup_cr_pinning, native_write_cr4, cr4_update_irqsoff.
"""

from typing import TYPE_CHECKING

from thinbox.address import to_signed

if TYPE_CHECKING:
    from thinbox.attacks.leak import Leak
    from thinbox.attacks.payload import LiveText
    from thinbox.machine.machine import Machine

SMEP = 1 << 20


def set_smep(machine: "Machine", leak: "Leak", text: "LiveText") -> None:
    """Set SMEP in CR4, in the per-CPU copy and in `cr4_pinned_bits`; between two runs of the CPU."""
    copy = leak.per_cpu("cpu_tlbstate")
    for vaddr in (copy + leak.offset("tlb_state", "cr4"), text.data("cr4_pinned_bits")):
        machine.memory.words[leak.paddr_of(vaddr) >> 3] = to_signed(leak.word(vaddr) | SMEP)
    machine.cpu.load_cr4(machine.cpu.cr4 | SMEP)
