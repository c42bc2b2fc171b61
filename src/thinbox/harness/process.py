"""A process of the guest in the words of a C program: buffers, calls, children.

Why it exists: what a case or an exploit does should read like a small program. Each method that makes a call is a
generator (`yield from`); memory is read and written directly.

Rules of this file:
- Buffers come from the process's own part of the scratch, in the order asked for, so that two runs of the same
  steps have the same addresses.
- Nothing here is isolated or measured; whose calls those are, subclasses say.
"""

import errno
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Self

from thinbox.errors import ThinboxError
from thinbox.guest.agent import LOOP_VADDR
from thinbox.guest.agent_channel import SCRATCH_BYTES, Syscall

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts
    from thinbox.session.opened import RestoredGuest

AREA_BYTES = 128 << 10
"""The scratch of one process: 32 KiB for call arguments, the rest for buffers."""
_BUFFERS_AT = 32 << 10
_LARGEST_ERRNO = 4095
SIGCHLD = 17
Argument = int | str | bytes
Steps = Generator[Any, Any, Any]
"""What a process does: each `yield` is a call, answered by its result; `return` is for whoever delegated to it."""


class StepFailedError(ThinboxError):
    """A step of a process did not do what it must."""


class GuestProcess:
    """One process (or thread) of a trial. `number` is 0 for the first, and picks its part of the scratch."""

    def __init__(self, opened: "RestoredGuest", number: int = 0) -> None:
        self._guest, self.number = opened, number
        base = opened.agent.scratch + number * AREA_BYTES
        self._next, self._end = base + _BUFFERS_AT, base + AREA_BYTES

    def beside(self, number: int) -> Self:
        """Return a process of the same trial that uses another part of the scratch."""
        return type(self)(self._guest, number)

    # -- memory -------------------------------------------------------------------------------------
    def buffer(self, content: int | bytes) -> int:
        """Return the guest address of a new buffer: so many zero bytes, or these bytes. 64-byte aligned."""
        data = bytes(content) if isinstance(content, int) else content
        place = self._next
        self._next += (len(data) + 63) & ~63
        if self._next > self._end:
            raise StepFailedError("the case needs more than its 96 KiB of buffers")
        self._guest.agent.write(place, data)
        return place

    def string(self, text: str) -> int:
        """Return the address of a NUL-terminated string."""
        return self.buffer(text.encode() + b"\0")

    def read(self, vaddr: int, size: int) -> bytes:
        """Read the process's memory: a buffer, or anything mapped and present."""
        if self._is_scratch(vaddr):
            return self._guest.agent.read(vaddr, size)
        try:
            return self._guest.machine.memory.read_virtual(self._guest.view.kernel_root, vaddr, size)
        except LookupError as error:
            raise StepFailedError(str(error)) from error

    def read_int(self, vaddr: int, size: int = 4) -> int:
        """Read one signed little-endian number."""
        return int.from_bytes(self.read(vaddr, size), "little", signed=True)

    def write(self, vaddr: int, data: bytes) -> None:
        """Write the process's memory: a buffer, or anything present, whatever its protection."""
        if self._is_scratch(vaddr):
            self._guest.agent.write(vaddr, data)
            return
        try:
            self._guest.machine.memory.write_virtual(self._guest.view.kernel_root, vaddr, data)
        except LookupError as error:
            raise StepFailedError(str(error)) from error

    def _is_scratch(self, vaddr: int) -> bool:
        return self._guest.agent.scratch <= vaddr < self._guest.agent.scratch + SCRATCH_BYTES

    @property
    def registers(self) -> "memoryview | list[int]":
        """The process's general registers by encoding (`machine.cpu.RAX` and so on), to set before its next call."""
        return self._guest.machine.cpu.regs  # type: ignore[return-value]

    @property
    def agent_loop(self) -> int:
        """Address of the loop this process runs: as a signal handler's or a thread's first instruction it makes
        whatever call comes next, its "result" being 0."""
        return LOOP_VADDR

    @property
    def facts(self) -> "KernelFacts":
        """What is known of the kernel: for steps that need the layout of one of its structures."""
        return self._guest.view.facts

    # -- calls --------------------------------------------------------------------------------------
    def call(self, name: str, *args: Argument) -> Steps:
        """Make a call; its value is the result, negative errno included."""
        return (yield Syscall(name, args))

    def must(self, name: str, *args: Argument) -> Steps:
        """Make a call that has to succeed."""
        result = yield Syscall(name, args)
        if result < 0:
            raise StepFailedError(f"preparing the case: {name} failed with {result_text(result)}")
        return result

    # -- children -----------------------------------------------------------------------------------
    def fork(self, body: "Callable[[Self], Steps]", number: int = 1, *, flags: int = SIGCHLD) -> Steps:
        """Start a child (or, by `flags`, a thread) that does `body` and then exits with 0; its value is the pid."""
        yield from self.prepare_child(body, number)
        return (yield from self.must("clone", flags, 0, 0, 0, 0))

    def prepare_child(self, body: "Callable[[Self], Steps]", number: int = 1) -> Steps:
        """The next process started does `body`: to be said before a clone, fork or vfork."""
        self._guest.agent.adopt_next_child(self._life(body, number), number * AREA_BYTES)
        yield from ()

    def _life(self, body: "Callable[[Self], Steps]", number: int) -> Steps:
        yield from body(self.beside(number))
        yield from self.call("exit", 0)

    def wait(self, pid: int, status: int = 0) -> Steps:
        """Wait for a child and check its wait status."""
        place = self.buffer(8)
        yield from self.must("wait4", pid, place, 0, 0)
        found = self.read_int(place)
        if found != status:
            raise StepFailedError(f"the child ended with wait status {found:#x}, expected {status:#x}")


def result_text(result: int) -> str:
    """Return a call's result as it is read: the name of an errno, or the number."""
    return errno.errorcode.get(-result, str(result)) if -_LARGEST_ERRNO <= result < 0 else str(result)
