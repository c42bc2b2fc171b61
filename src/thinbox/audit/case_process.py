"""The guest process a case is written for: calls, buffers, children.

Why it exists: a case should read like a small C program. Each method that makes a call is a generator
(`yield from`); memory is read and written directly.

Rules of this file:
- Buffers come from the process's own part of the scratch, in the order asked for, so that both runs of a case
  have the same addresses.
- What the measured call wrote is found by comparing the whole scratch, and what `watch` names.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from thinbox.audit.case import AT_LEAST_0, NEVER, Case, CaseFailedError, Expect, Steps
from thinbox.guest.agent_channel import SCRATCH_BYTES, Syscall

if TYPE_CHECKING:
    from thinbox.audit.case_runner import CaseRunner
    from thinbox.image.facts import KernelFacts

AREA_BYTES = 128 << 10
"""The scratch of one process of a case: 32 KiB for call arguments, the rest for buffers."""
_BUFFERS_AT = 32 << 10
SIGCHLD = 17
Argument = int | str | bytes


class Process:
    """One process (or thread) of a case. `number` is 0 for the first, and picks its part of the scratch."""

    def __init__(self, runner: "CaseRunner", case: Case, number: int = 0) -> None:
        self._runner, self._case, self.number = runner, case, number
        base = runner.agent.scratch + number * AREA_BYTES
        self._next, self._end = base + _BUFFERS_AT, base + AREA_BYTES

    # -- memory -------------------------------------------------------------------------------------
    def buffer(self, content: int | bytes) -> int:
        """Return the guest address of a new buffer: so many zero bytes, or these bytes. 64-byte aligned."""
        data = bytes(content) if isinstance(content, int) else content
        place = self._next
        self._next += (len(data) + 63) & ~63
        if self._next > self._end:
            raise CaseFailedError("the case needs more than its 96 KiB of buffers")
        self._runner.agent.write(place, data)
        return place

    def string(self, text: str) -> int:
        """Return the address of a NUL-terminated string."""
        return self.buffer(text.encode() + b"\0")

    def read(self, vaddr: int, size: int) -> bytes:
        """Read the process's memory: a buffer, or anything mapped and present."""
        if self._runner.agent.scratch <= vaddr < self._runner.agent.scratch + SCRATCH_BYTES:
            return self._runner.agent.read(vaddr, size)
        try:
            return self._runner.machine.memory.read_virtual(self._runner.view.kernel_root, vaddr, size)
        except LookupError as error:
            raise CaseFailedError(str(error)) from error

    def read_int(self, vaddr: int, size: int = 4) -> int:
        """Read one signed little-endian number."""
        return int.from_bytes(self.read(vaddr, size), "little", signed=True)

    def write(self, vaddr: int, data: bytes) -> None:
        """Write the process's memory: a buffer, or anything present, whatever its protection."""
        if self._runner.agent.scratch <= vaddr < self._runner.agent.scratch + SCRATCH_BYTES:
            self._runner.agent.write(vaddr, data)
            return
        try:
            self._runner.machine.memory.write_virtual(self._runner.view.kernel_root, vaddr, data)
        except LookupError as error:
            raise CaseFailedError(str(error)) from error

    def volatile(self, vaddr: int, size: int) -> None:
        """Leave these bytes of the scratch out of the comparison (a time, a random number)."""
        self._runner.leave_out(vaddr, size)

    def watch(self, vaddr: int, size: int) -> None:
        """Compare these bytes too, as they are now (memory outside the scratch)."""
        self._runner.note(self.read(vaddr, size))

    def compare(self, value: object) -> None:
        """Compare this value between the two runs."""
        self._runner.note(repr(value).encode())

    @property
    def registers(self) -> "memoryview | list[int]":
        """The process's general registers by encoding (`machine.cpu.RAX` and so on), to set before its next call."""
        return self._runner.machine.cpu.regs  # type: ignore[return-value]

    @property
    def agent_loop(self) -> int:
        """Address of the loop this process runs: as a signal handler's or a thread's first instruction it makes
        whatever call the case yields next, its "result" being 0."""
        from thinbox.guest.agent import LOOP_VADDR

        return LOOP_VADDR

    @property
    def facts(self) -> "KernelFacts":
        """What is known of the kernel: for a case that needs the layout of one of its structures."""
        return self._runner.view.facts

    # -- calls --------------------------------------------------------------------------------------
    def call(self, name: str, *args: Argument) -> Steps:
        """Make a call outside the measurement; its value is the result, negative errno included."""
        return (yield Syscall(name, args))

    def must(self, name: str, *args: Argument) -> Steps:
        """Make a call outside the measurement that has to succeed."""
        result = yield Syscall(name, args)
        if result < 0:
            raise CaseFailedError(f"preparing the case: {name} failed with {_name(result)}")
        return result

    def measure(self, *args: Argument, expect: Expect = AT_LEAST_0) -> Steps:
        """Make the measured call; its value is the result. A result that is not expected fails the case."""
        self._runner.begin_measured()
        result = yield Syscall(self._case.call, args)
        if not expect.accepts(result):
            raise CaseFailedError(f"{self._case.call} returned {_name(result)}, expected {expect.text}")
        return result

    def measure_next(self, *, status: int | None = None) -> None:
        """The next call of the case's number is the measured one, whoever makes it: for calls that the kernel
        restarts, or that another program makes. `status`: the wait status the first process ends with in it."""
        self._runner.begin_measured(ends_with=status)

    def measure_last(self, *args: Argument, status: int = 0) -> Steps:
        """Make the measured call where it never returns (exit, a successful execve); in the first process,
        `status` is the wait status it ends with. A child's end is for its parent to `wait` for."""
        self._runner.begin_measured(ends_with=status if self.number == 0 else None)
        result = yield Syscall(self._case.call, args)
        raise CaseFailedError(f"{self._case.call} returned {_name(result)}, expected that it {NEVER.text}")

    def fork(self, body: "Callable[[Process], Steps]", number: int = 1, *, flags: int = SIGCHLD) -> Steps:
        """Start a child (or, by `flags`, a thread) that does `body` and then exits with 0; its value is the pid."""
        yield from self.prepare_child(body, number)
        return (yield from self.must("clone", flags, 0, 0, 0, 0))

    def prepare_child(self, body: "Callable[[Process], Steps]", number: int = 1) -> Steps:
        """The next process started does `body`: to be said before a measured clone, fork or vfork."""
        self._runner.agent.adopt_next_child(self._life(body, number), number * AREA_BYTES)
        yield from ()

    def _life(self, body: "Callable[[Process], Steps]", number: int) -> Steps:
        yield from body(Process(self._runner, self._case, number))
        yield from self.call("exit", 0)

    def wait(self, pid: int, status: int = 0) -> Steps:
        """Wait for a child and check its wait status."""
        place = self.buffer(8)
        yield from self.must("wait4", pid, place, 0, 0)
        found = self.read_int(place)
        if found != status:
            raise CaseFailedError(f"the child ended with wait status {found:#x}, expected {status:#x}")

    def check(self, condition: object, text: str) -> None:
        """Fail the case unless `condition` holds; `text` says what should have been."""
        if not condition:
            raise CaseFailedError(f"after {self._case.call}: {text}")


def _name(result: int) -> str:
    import errno

    return errno.errorcode.get(-result, str(result)) if -4096 < result < 0 else str(result)
