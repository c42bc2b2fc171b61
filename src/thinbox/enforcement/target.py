"""The watched guest: its machine, its kernel as it can be read, the watched instructions, and the kernel's own table.

Why it exists: every part of the enforcement needs these, and none of them changes while a guest runs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.guest.sites import Sites
    from thinbox.machine.cpu import Cpu
    from thinbox.machine.machine import Machine
    from thinbox.machine.memory import Memory
    from thinbox.machine.sci_unit import SciUnit


@dataclass(frozen=True, slots=True)
class Target:
    """What every part of the enforcement is handed."""

    machine: "Machine"
    view: "KernelView"
    sites: "Sites"

    @property
    def memory(self) -> "Memory":
        """Guest memory."""
        return self.machine.memory

    @property
    def cpu(self) -> "Cpu":
        """The CPU."""
        return self.machine.cpu

    @property
    def sci(self) -> "SciUnit":
        """What SCI asks of the CPU."""
        return self.machine.sci

    @property
    def slot(self) -> memoryview:
        """The words shared with the compiled hooks."""
        return self.machine.slot

    @property
    def kernel_root(self) -> int:
        """The kernel's own table now, also while an SCI table is active."""
        return self.view.kernel_root
