"""What a bug can do where it happens: write kernel memory, and change registers.

Why it exists: the effect of a corruption is put there from outside, but as a write of the running call: it goes
through the kernel's own table, and undo takes it back, too.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableSequence

    from thinbox.enforcement.enforcer import Enforcer


class Corruption:
    """Writes to the machine of one enforcer, as its running call would."""

    def __init__(self, enforcer: "Enforcer") -> None:
        self._target, self._undo, self._memory = enforcer.target, enforcer.undo, enforcer.memory

    @property
    def kernel_root(self) -> int:
        """The kernel's own table, also while an SCI table is active."""
        return self._target.kernel_root

    @property
    def regs(self) -> "MutableSequence[int]":
        """The general registers by encoding (`machine.cpu.RAX` and so on)."""
        return self._target.cpu.regs  # type: ignore[return-value]

    def write(self, vaddr: int, data: bytes) -> None:
        """Write kernel memory at `vaddr` (signed)."""
        done = 0
        for paddr, count in self._memory.spans(self.kernel_root, vaddr, len(data)):
            if self._undo:
                self._undo.save(paddr)
            self._memory.write(paddr, data[done : done + count])
            done += count
