"""Has the CPU look at every access to memory once DR7 has had a data breakpoint switched on.

Why it exists: the looks cost several times the work itself, and debuggers are rare.

Rules of this file: DR7 is read behind each instruction that writes it; hooks are made between two runs of the CPU,
which the first of them waits for: nothing of a program runs before. They stay until the machine is gone.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol


class WatchedCpu(Protocol):
    """What is needed of a CPU."""

    @property
    def watches_data(self) -> bool:
        """Whether DR7 has a breakpoint on data switched on."""
        ...

    def add_code_hook(self, vaddr: int, function: Callable[[], None]) -> Any:
        """Call `function` before the instruction at `vaddr`."""
        ...

    def add_watch_hooks(self) -> None:
        """Look at every access to memory from now on."""
        ...

    def stop(self) -> None:
        """Stop before the next block."""
        ...


class DataBreakpoints:
    """The looks of one machine."""

    def __init__(self, cpu: WatchedCpu) -> None:
        self._cpu = cpu
        self._looks = False

    def follow(self, written: Iterable[int]) -> None:
        """Look at DR7 when the CPU comes to these addresses."""
        for vaddr in written:
            self._cpu.add_code_hook(vaddr, self._look)

    def _look(self) -> None:
        if not self._looks and self._cpu.watches_data:
            self._cpu.stop()

    def settle(self) -> None:
        """Begin to look if need be, between two runs."""
        if not self._looks and self._cpu.watches_data:
            self._cpu.add_watch_hooks()
            self._looks = True
