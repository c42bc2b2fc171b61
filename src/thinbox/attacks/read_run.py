"""What a read of a pipe has run when `vfs_read` returns: the code that a chain may use without anything new.

Why it exists: which functions a read runs, what they are called and how the copy takes its arguments differs from
kernel to kernel; the read is made, and looked at.

Rules of this file: nothing is changed; what an interrupt ran in one of two reads is left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import PAGE_BYTES, U64, page_start
from thinbox.attacks.payload import REGISTERS, ExploitFailedError
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.attacks.payload import LiveText
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.machine import Machine

RETURNING = "vfs_read"
"""The function whose return address is overwritten."""
COPIED_BYTES = 1203
"""How much the reads copy: no register holds that number by chance."""
READS = 2
"""An interrupt may come into one of them."""
_COUNTS = (registers.RCX, registers.RDX)
"""What a copy routine may take its count in: RCX (6.4, arch/x86/lib/copy_user_64.S, rep_movs_alternative), or RDX."""


@dataclass(frozen=True, slots=True)
class ReadRun:
    """Pages of text; the routine that copied to the user, and the register that held the count when it began."""

    pages: frozenset[int]
    count_register: str

    def has(self, vaddr: int) -> bool:
        """Whether the read has run code in the page of `vaddr`, and of what follows it."""
        return page_start(vaddr) in self.pages and page_start(vaddr + _MARGIN) in self.pages


_MARGIN = 15
"""Bytes, an instruction's at most: a gadget that begins here ends in a page that was run as well."""


class ReadWatch:
    """Notes what the reads of one task run, on a machine that is of no use afterwards."""

    def __init__(self, machine: "Machine", view: "KernelView", text: "LiveText") -> None:
        self._cpu, self._view, self._task = machine.cpu, view, view.current
        self._runs, self._counts = list[frozenset[int]](), set[int]()
        self._pages: set[int] | None = None
        self._cpu.add_code_hook(text.function("do_syscall_64"), self._begin)
        self._cpu.add_code_hook(text.copy_routine, self._look)
        for vaddr in text.returns(RETURNING):
            self._cpu.add_code_hook(vaddr, self._end)
        self._cpu.add_block_hook(self._block)

    def _begin(self) -> None:
        if self._view.current == self._task:
            self._pages = {page_start(self._cpu.rip & U64)}

    def _end(self) -> None:
        if self._pages is not None and self._view.current == self._task:
            self._runs.append(frozenset(self._pages))
            self._pages = None

    def _look(self) -> None:
        if self._pages is not None:
            self._counts.update(number for number in _COUNTS if self._cpu.regs[number] == COPIED_BYTES)

    def _block(self, vaddr: int, size: int) -> None:
        if self._pages is not None:
            self._pages.update(range(page_start(vaddr), vaddr + size, PAGE_BYTES))

    @property
    def found(self) -> ReadRun:
        """What all reads had run.

        Raises:
            ExploitFailedError: they went another way.
        """
        if len(self._runs) < READS or not self._counts:
            raise ExploitFailedError("a read of a pipe does not copy by the routine of _copy_to_user on this kernel")
        register = next(number for number in _COUNTS if number in self._counts)
        return ReadRun(frozenset.intersection(*self._runs), REGISTERS[register])
