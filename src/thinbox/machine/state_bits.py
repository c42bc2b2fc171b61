"""Bits of the CPU state, by name: what both the compiled hooks and Python need to know."""

CPL_MASK = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32_SS32 = (1 << 4) | (1 << 5)
HF_ADDSEG = 1 << 6
HF_LONG_MODE = 1 << 14
HF_CS64 = 1 << 15
"""Bits of QEMU's `hflags` (target/i386/cpu.h, HF_*_SHIFT)."""

RF, NT, TF, IF, VM, AC = 1 << 16, 1 << 14, 1 << 8, 1 << 9, 1 << 17, 1 << 18
"""Bits of RFLAGS (SDM vol. 1, 3.4.3)."""

CR4_SMAP = 1 << 21
"""A bit of CR4 (SDM vol. 3A, 2.5)."""

DEBUG_WORDS = 12
"""DR0 to DR7, and four pointers of the engine's, in front of `old_exception` (target/i386/cpu.h)."""
DR6, DR7 = 6, 7
