"""`struct pt_regs`: the registers of user code, as they lie on the kernel stack during a call, or in a signal's frame.

One shape is known, of Linux 5.10 to 7.3.

Source: arch/x86/include/asm/ptrace.h, arch/x86/include/asm/syscall.h (which of them are arguments, 64-bit and 32-bit),
arch/x86/include/asm/sigframe.h (`struct rt_sigframe`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "calls cannot be read, and no guest can be used"
_NATIVE = ("di", "si", "dx", "r10", "r8", "r9")
_COMPAT = ("bx", "cx", "dx", "si", "di", "bp")


@dataclass(frozen=True, slots=True)
class RegsShape:
    """Offsets, and the bytes of the whole; `frame_ax_at` is RAX in the frame of a signal, from where RSP points to it.

    `native` and `compat` are where the arguments of 64-bit and of 32-bit calls lie, in order.
    """

    regs_bytes: int
    ax_at: int
    orig_ax_at: int
    ip_at: int
    sp_at: int
    flags_at: int
    native: tuple[int, ...]
    compat: tuple[int, ...]
    frame_ax_at: int


def probe_regs(probe: Probe) -> RegsShape:
    """Find it; what is missing is noted in `probe`."""
    return RegsShape(
        regs_bytes=probe.size("pt_regs"),
        ax_at=probe.offset("pt_regs.ax"),
        orig_ax_at=probe.offset("pt_regs.orig_ax"),
        ip_at=probe.offset("pt_regs.ip"),
        sp_at=probe.offset("pt_regs.sp"),
        flags_at=probe.offset("pt_regs.flags"),
        native=tuple(probe.offset(f"pt_regs.{name}") for name in _NATIVE),
        compat=tuple(probe.offset(f"pt_regs.{name}") for name in _COMPAT),
        frame_ax_at=probe.offset("rt_sigframe.uc.uc_mcontext.ax"),
    )


def find_regs(facts: "KernelFacts") -> RegsShape:
    """Return it; `MissingFactError` if this kernel keeps registers in another way."""
    probe = Probe(facts, "registers of calls", DISABLES)
    found = probe_regs(probe)
    probe.check()
    return found
