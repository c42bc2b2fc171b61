"""Calls answered outside the kernel: what a handler is given, and the memory of the tenant as a kernel sees it.

Why it exists: a Sentry in Python. A handler is a function of one `EmulatedCall` that returns the result or raises
`CallError`; it runs at the tenant's call instruction, before the kernel is entered.

Rules of this file:
- Tenant memory is reached by the tenant's own page table, with its protection: what the tenant could not touch
  is EFAULT.
- A page the kernel has not brought in yet is asked for (`PageWantedError`) and the handler is run again: it must change
  nothing before its last access to memory.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast

from thinbox import paging
from thinbox.address import PAGE_BYTES, U64, USER_END, page_start, to_signed
from thinbox.errors import MachineError
from thinbox.machine import slots
from thinbox.sandbox.call_error import CallError, PageWantedError

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.image.facts import KernelFacts
    from thinbox.machine.machine import Machine
    from thinbox.sandbox.owned_files import Files
    from thinbox.sandbox.random_stream import RandomStream

LONGEST_PATH = 4096
Shape = TypeVar("Shape")


@dataclass(slots=True)
class Services:
    """What lasts longer than a call: the machine, the guest's kernel as it can be read, files, random bytes."""

    machine: "Machine"
    view: "KernelView"
    files: "Files"
    random: "RandomStream"
    _shapes: dict[object, object] = field(default_factory=dict)

    def shape(self, find: "Callable[[KernelFacts], Shape]") -> "Shape":
        """Return what a finder of `thinbox.kernel` finds on this kernel; looked for once.

        Raises:
            MissingFactError: this kernel keeps it in another way.
        """
        if find not in self._shapes:
            self._shapes[find] = find(self.view.facts)
        return cast("Shape", self._shapes[find])

    @property
    def now_ns(self) -> int:
        """Virtual time since the machine's reset."""
        return self.machine.slot[slots.CLOCK]


@dataclass(slots=True)
class EmulatedCall:
    """One call. `args` are the six registers, unsigned; `task` is its task_struct, `pid` its thread id.
    `refused` are pages the kernel would not bring in: they are EFAULT."""

    nr: int
    name: str
    args: tuple[int, ...]
    task: int
    pid: int
    services: Services
    refused: frozenset[int] = frozenset()

    def int32(self, index: int) -> int:
        """Return an argument as a C `int`."""
        low = self.args[index] & 0xFFFFFFFF
        return low - (1 << 32) if low >> 31 else low

    def int64(self, index: int) -> int:
        """Return an argument as a C `long`."""
        return to_signed(self.args[index])

    # -- the tenant's memory ----------------------------------------------------------------------
    def read(self, vaddr: int, size: int) -> bytes:
        """Return `size` bytes of the tenant's; EFAULT where it may not read."""
        memory = self.services.machine.memory
        return b"".join(memory.read(paddr, count) for paddr, count in self._spans(vaddr, size, write=False))

    def write(self, vaddr: int, data: bytes) -> None:
        """Store `data`, all or nothing; EFAULT where the tenant may not write (and where it may execute what it
        writes)."""
        memory, root = self.services.machine.memory, self.services.machine.cpu.cr3
        done = 0
        for paddr, count in list(self._spans(vaddr, len(data), write=True)):
            memory.write(paddr, data[done : done + count])
            paging.mark_written(memory.words, memory.guest_bytes, root, to_signed(vaddr + done))
            done += count

    def read_string(self, vaddr: int) -> bytes:
        """Return the bytes up to the first NUL; ENAMETOOLONG past 4095, as getname() has it."""
        out = b""
        while len(out) < LONGEST_PATH:
            count = PAGE_BYTES - (vaddr + len(out)) % PAGE_BYTES
            piece = self.read(vaddr + len(out), min(count, LONGEST_PATH - len(out)))
            head, nul, _rest = piece.partition(b"\0")
            out += head
            if nul:
                return out
        raise CallError(errno.ENAMETOOLONG)

    def _spans(self, vaddr: int, size: int, *, write: bool) -> list[tuple[int, int]]:
        if size and (vaddr >= USER_END or vaddr + size > USER_END):
            raise CallError(errno.EFAULT)
        memory, root = self.services.machine.memory, self.services.machine.cpu.cr3
        found = []
        while size > 0:
            leaf = memory.tables.lookup(root & paging.FRAME_MASK, to_signed(vaddr))
            allowed = leaf & paging.USER and (not write or leaf & paging.WRITABLE)
            # No RAM of the guest's: a device's, or a frame that is not there; a forged entry may say anything.
            if allowed and (leaf & paging.FRAME_MASK) + PAGE_BYTES > memory.guest_bytes:
                raise CallError(errno.EFAULT)
            # The engine would not notice that translated code changed.
            if allowed and write and not leaf & paging.NO_EXECUTE:
                raise CallError(errno.EFAULT)
            page = page_start(vaddr)
            if not allowed:
                if page in self.refused:
                    raise CallError(errno.EFAULT)
                raise PageWantedError(vaddr, write=write)
            count = min(size, PAGE_BYTES - vaddr % PAGE_BYTES)
            found.append(((leaf & paging.FRAME_MASK) | vaddr % PAGE_BYTES, count))
            vaddr += count
            size -= count
        return found

    # -- the guest kernel's structures: a corrupted kernel's may lead anywhere -------------------------
    def kernel_bytes(self, vaddr: int, size: int) -> bytes:
        """Return `size` bytes at kernel address `vaddr`; EFAULT where nothing is mapped."""
        view = self.services.view
        try:
            return self.services.machine.memory.read_virtual(view.kernel_root, to_signed(vaddr & U64), size)
        except (LookupError, MachineError):
            raise CallError(errno.EFAULT) from None

    def word(self, vaddr: int) -> int:
        """Return the eight bytes at kernel address `vaddr`."""
        return int.from_bytes(self.kernel_bytes(vaddr, 8), "little")

    def word32(self, vaddr: int) -> int:
        """Return the four bytes at kernel address `vaddr`."""
        return int.from_bytes(self.kernel_bytes(vaddr, 4), "little")


Handler = Callable[[EmulatedCall], int]
"""Returns the result; raises `CallError` or `NotOursError`."""
