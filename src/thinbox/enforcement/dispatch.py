"""What the kernel dispatches: the number and arguments of a call when tracers and filters are done with it.

Why it exists: the number at the call instruction is a wish. A tracer (ptrace) or a seccomp filter may put another in
its place, and the kernel then runs that. What is recorded, isolated and planned is what runs.

Rules of this file: read from `struct pt_regs` on the kernel's stack, as the kernel reads it; nothing is decided here.

Source: Linux 6.1 kernel/entry/common.c (`syscall_trace_enter`, the one place where a number is replaced),
arch/x86/entry/common.c; other kernels, and where the arguments lie: `thinbox.kernel.entry`, `pt_regs`.
"""

from typing import TYPE_CHECKING

from thinbox.address import U64
from thinbox.kernel.entry import find_dispatchers
from thinbox.kernel.pt_regs import find_regs
from thinbox.machine import cpu as registers
from thinbox.syscalls.table import call_name

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target

COMPAT = "i386#"
NOTHING = -1


def name_of(nr: int, *, compat: bool) -> str:
    """Return what records call a number."""
    if compat:
        return f"{COMPAT}{nr & 0xFFFFFFFF}"
    return call_name(nr) if 0 <= nr < 1 << 31 else f"#{nr}"


def _signed32(value: int) -> int:
    low = value & 0xFFFFFFFF
    return low - (low >> 31 << 32)


class Dispatch:
    """Reads, and replaces, what is about to be dispatched."""

    def __init__(self, target: "Target") -> None:
        self._target = target
        self._places = find_dispatchers(target.view.facts)
        self.tracers = self._places.tracers
        """The first instructions of what lets tracers and filters at the call, and returns the number."""
        self.switches = self._places.switches
        """The first instructions of what is handed the number, and calls the function of that number."""
        self._regs = find_regs(target.view.facts)

    def return_address(self) -> int:
        """At such an instruction: where it returns to; 0 if that is no text of the kernel."""
        view = self._target.view
        found = self._target.memory.word_at(self._target.kernel_root, self._target.cpu.regs[registers.RSP])
        return found if view.symbols.is_text(found) else 0

    def number(self) -> int:
        """Behind a tracer, or at a switch: the number that is dispatched (signed, 32 bits), `NOTHING` for none."""
        return _signed32(self._target.cpu.regs[registers.RSI if self.switches else registers.RAX])

    def wanted(self, regs_paddr: int) -> int:
        """Return the number that the call has now (signed, 32 bits), whether it is dispatched or not."""
        return _signed32(self._target.memory.words[(regs_paddr + self._target.view.orig_ax_offset) >> 3])

    def arguments(self, regs_paddr: int, *, compat: bool) -> tuple[int, ...]:
        """Return the six arguments as the kernel's function will find them."""
        words = self._target.memory.words
        mask = 0xFFFFFFFF if compat else U64
        places = self._regs.compat if compat else self._regs.native
        return tuple(words[(regs_paddr + place) >> 3] & mask for place in places)

    def answer(self, regs_paddr: int, result: int, *, at_entry: bool, compat: bool) -> None:
        """Let the call return `result` (signed) and nothing be dispatched: at the first instruction of an entry
        (`do_syscall_64(regs, nr)`; 32-bit entries read `orig_ax`), behind the tracers, or at a switch, which returns at
        once."""
        words, view, regs = self._target.memory.words, self._target.view, self._target.cpu.regs
        words[(regs_paddr + view.ax_offset) >> 3] = result
        if at_entry:
            words[(regs_paddr + view.orig_ax_offset) >> 3] = NOTHING
            # The 64-bit entry's number; a 32-bit one has no other argument than its `pt_regs`.
            regs[registers.RDI if self._target.sites.regs_second and not compat else registers.RSI] = NOTHING & U64
        elif self.switches:
            behind = self.return_address()
            regs[registers.RAX], regs[registers.RSP] = result & U64, regs[registers.RSP] + 8
            self._target.cpu.jump(behind)
        else:
            regs[registers.RAX] = NOTHING & U64
