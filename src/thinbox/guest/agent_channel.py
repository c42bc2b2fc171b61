"""The conversation with the agent: Python generators whose every `yield` is a system call in the guest.

Why it exists: guest-side work (mounting, forking, pumping bytes) reads as plain code here; the generator
of a process gets each call's result sent back.

Rules of this file:
- One generator a process, found by its task_struct; a forked child's is bound when the kernel wakes the child for the
  first time (`wake_up_new_task`), as a child of the process that forked it: nobody else can take its place.
- No magic call of another task is answered: a tenant's is a call the kernel does not have.
- What a process says it got from the kernel may be forged: whatever that breaks here is a `MachineError`.
- Memory arguments go through `scratch`, pages the agent shares with its children and that are always present.
"""

import errno
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinbox.address import PAGE_BYTES, U64
from thinbox.errors import MachineError, ThinboxError
from thinbox.guest.agent import LOOP_VADDR, agent_code
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.syscalls.table import call_number

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.machine import Machine

SCRATCH_BYTES = 1 << 20
CHILD_AREA = 768 << 10
"""The agent itself uses the scratch below, a child that has not yet called execve the rest."""
_ARGUMENTS = (registers.RDI, registers.RSI, registers.RDX, registers.R10, registers.R8, registers.R9)
_LARGEST_ERRNO = 4095
_PAGES_AT_ONCE = 4
_MODE_NOAUDIT = 4
"""PTRACE_MODE_NOAUDIT (include/linux/ptrace.h): whoever asks so shows less if it is refused, as `ps` does."""


@dataclass(frozen=True, slots=True)
class Syscall:
    """One system call to make: str arguments become NUL-terminated strings, bytes buffers, ints stay."""

    name: str
    args: tuple[int | str | bytes, ...]


@dataclass(frozen=True, slots=True)
class Park:
    """Yielded when the process has nothing to do until thinbox gives it work."""


GuestScript = Generator["Syscall | Park", int, Any]
"""What a process does; its `return` value is for the generator that delegated to it."""


def call(name: str, *args: int | str | bytes) -> Generator[Syscall, int, int]:
    """Make a call and return its result, negative errno included (`yield from`)."""
    return (yield Syscall(name, args))


def must(name: str, *args: int | str | bytes) -> Generator[Syscall, int, int]:
    """Make a call that has to succeed; `MachineError` with its name and errno otherwise."""
    result = yield Syscall(name, args)
    if result < 0:
        shown = ", ".join(repr(a) if not isinstance(a, bytes) else f"<{len(a)} bytes>" for a in args)
        raise MachineError(
            f"in the guest, {name}({shown}) failed: {os.strerror(-result)} ({errno.errorcode.get(-result)})"
        )
    return result


class AgentChannel:
    """Answers the agent's hypercalls on `machine`."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self.view: KernelView | None = None
        self.scratch = 0
        self._frames: list[int] = []
        self._scripts: dict[int, GuestScript] = {}
        self._areas: dict[int, int] = {}
        self._fresh: set[int] = set()
        """Tasks whose script was not begun yet."""
        self._next_child: tuple[GuestScript, int] | None = None
        """What the next child of a process of the agent's does, and its part of the scratch."""
        self._every_child: tuple[Callable[[], GuestScript], int] | None = None
        """What makes the script of each child that no `_next_child` waits for."""
        self._expected: dict[int, Callable[[], GuestScript]] = {}
        """What makes the script of a process that the kernel itself starts with the agent's program."""
        self._watches_births = False
        self.parked = False
        self.make_view: Callable[[], KernelView] | None = None
        self._first: GuestScript | None = None
        machine.cpu.set_callback(slots.ON_HYPERCALL, self._on_hypercall)

    def start(self, work: GuestScript, make_view: "Callable[[], KernelView]") -> None:
        """Let the first process that calls do `work`; `make_view` is called once user space runs."""
        self._first, self.make_view = work, make_view

    def resume(self, work: GuestScript) -> None:
        """Give the parked agent new work; the machine must stand where it parked."""
        self.parked = False
        task = self.require_view().current
        self._scripts, self._areas, self._next_child, self._every_child = {task: work}, {task: 0}, None, None
        self._fresh.clear()
        self._expected.clear()
        self._watch_births()
        self._advance(task, None)

    def adopt_next_child(self, work: GuestScript, area: int = CHILD_AREA) -> None:
        """The next child that a process of the agent's forks does `work`, in the scratch from offset `area`."""
        self._next_child = (work, area)

    def adopt_every_child(self, make_work: "Callable[[], GuestScript]", area: int = CHILD_AREA) -> None:
        """From now on each child that a process of the agent's forks does a script of its own, all in the scratch from
        offset `area`: for children of several parents, whose order of birth nobody knows."""
        self._every_child = (make_work, area)

    def assign(self, task: int, work: GuestScript) -> None:
        """Let a process that is inside a call do `work` when that call returns: `work`'s first `yield` stands
        for it, and gets its result."""
        next(work)
        self._scripts[task] = work
        self._areas[task] = CHILD_AREA

    def expect(self, task: int, make_work: "Callable[[], GuestScript]") -> None:
        """Let `task`, which the kernel is about to make a process of the agent's program, do a script when it calls.

        Preconditions:
        - The script's calls have numbers for arguments: the process does not share the scratch.
        """
        self._expected[task] = make_work

    def _is_expected(self, task: int) -> bool:
        """Bind the script of a process that the kernel started, if what runs in it is the agent's code."""
        make_work = self._expected.pop(task, None)
        code = agent_code()
        root = self.require_view().kernel_root
        try:
            found = self._machine.memory.read_virtual(root, LOOP_VADDR, len(code))
        except (LookupError, MachineError):
            return False
        inside = LOOP_VADDR <= self._machine.cpu.rip <= LOOP_VADDR + len(code)
        # Whoever traces it already could change what it calls.
        traced = self.require_view().is_traced(task, root)
        if make_work is None or found != code or not inside or traced:
            return False
        self._scripts[task], self._areas[task] = make_work(), 0
        return True

    def task_of_area(self, area: int) -> int:
        """Return the task whose work uses the scratch from offset `area`; LookupError if there is none."""
        for task, found in self._areas.items():
            if found == area and task in self._scripts:
                return task
        raise LookupError(f"no process works in the scratch at {area:#x}")

    def require_view(self) -> "KernelView":
        """The kernel as the agent lives on it; `MachineError` before its first call."""
        if self.view is None:
            raise MachineError("the agent has not called yet")
        return self.view

    def _on_hypercall(self, _first: int, _second: int, _third: int) -> int:
        if self.view is None:
            if self.make_view is None or self._first is None:
                return 0
            self.view = self.make_view()
            self._scripts[self.view.current] = self._first
            self._areas[self.view.current] = 0
            self._watch_births()
            self._advance(self.view.current, None)
            return 1
        task = self.view.current
        if task in self._expected and self._is_expected(task):
            self._advance(task, None)
            return 1
        if task not in self._scripts:
            return 0
        if task in self._fresh:
            self._fresh.discard(task)
            self._advance(task, None)
            return 1
        result = self._machine.cpu.regs[registers.RDI]
        signed = result - (1 << 64) if result >> 63 else result
        self._advance(task, signed)
        return 1

    def _watch_births(self) -> None:
        if not self._watches_births:
            self._watches_births = True
            vaddr = self.require_view().symbols.address_of("wake_up_new_task")
            self._machine.cpu.add_code_hook(vaddr, self._is_born)
            for vaddr in self.require_view().symbols.addresses_with_variants("__ptrace_may_access"):
                self._machine.cpu.add_code_hook(vaddr, self._is_looked_into)

    def _is_born(self) -> None:
        """`wake_up_new_task(p)`: whatever lay at that address before is gone; a child that was waited for is bound."""
        child, parent = self._machine.cpu.regs[registers.RDI], self.require_view().current
        self.forget(child)
        if parent not in self._scripts:
            return
        if self._next_child is not None:
            self._scripts[child], self._areas[child] = self._next_child
            self._next_child = None
            self._fresh.add(child)
        elif self._every_child is not None:
            make_work, area = self._every_child
            self._scripts[child], self._areas[child] = make_work(), area
            self._fresh.add(child)

    def _is_looked_into(self) -> None:
        """`__ptrace_may_access(task, mode)` (kernel/ptrace.c), asked before a task is traced, its memory or files
        reached: the agent's own processes are nobody's, not even root's, or a tenant could make calls by them."""
        view, regs = self.require_view(), self._machine.cpu.regs
        if regs[registers.RDI] & U64 not in self._scripts or view.current in self._scripts:
            return
        if not regs[registers.RSI] & _MODE_NOAUDIT:
            view.return_at_once(-errno.EPERM)

    def forget(self, task: int) -> None:
        """The process became something else (execve); its hypercalls are no longer answered."""
        self._scripts.pop(task, None)
        self._expected.pop(task, None)
        self._fresh.discard(task)

    def _advance(self, task: int, result: int | None) -> None:
        work = self._scripts[task]
        try:
            step = next(work) if result is None else work.send(result)
        except StopIteration:
            raise MachineError("the guest agent ran out of work") from None
        except ThinboxError:
            raise
        except Exception as error:
            raise MachineError(
                f"the agent's process in the guest was tampered with, or its script is wrong: {error!r}"
            ) from error
        if isinstance(step, Park):
            self.parked = True
            self._machine.cpu.stop()
            return
        regs = self._machine.cpu.regs
        regs[registers.RAX] = call_number(step.name)
        place = self.scratch + self._areas[task]
        for register, argument in zip(_ARGUMENTS, step.args, strict=False):
            if isinstance(argument, int):
                regs[register] = argument & U64
                continue
            data = argument.encode() + b"\0" if isinstance(argument, str) else argument
            regs[register] = place
            self.write(place, data)
            place += (len(data) + 15) & ~15

    # -- the scratch area ---------------------------------------------------------------------------
    def area(self, *, child: bool = False) -> int:
        """Return the guest address of the agent's (or the new child's) part of the scratch."""
        return self.scratch + (CHILD_AREA if child else 0)

    def set_scratch(self, vaddr: int) -> None:
        """Take the agent's populated shared mapping at `vaddr` as the scratch.

        Its pages are remembered by their physical addresses: a forked child maps the same pages, but only
        once it touches them.
        """
        self.scratch = vaddr
        spans = self._machine.memory.spans(self.require_view().kernel_root, vaddr, SCRATCH_BYTES)
        self._frames = [paddr for paddr, _count in spans]

    def _pieces(self, vaddr: int, size: int) -> Iterator[tuple[int, int]]:
        while size > 0:
            offset = vaddr - self.scratch
            count = min(size, PAGE_BYTES - offset % PAGE_BYTES)
            yield self._frames[offset // PAGE_BYTES] + offset % PAGE_BYTES, count
            vaddr += count
            size -= count

    def write(self, vaddr: int, data: bytes) -> None:
        """Copy `data` into the scratch."""
        done = 0
        for paddr, count in self._pieces(vaddr, len(data)):
            self._machine.memory.write(paddr, data[done : done + count])
            done += count

    def read(self, vaddr: int, size: int) -> bytes:
        """Copy `size` bytes out of the scratch."""
        first = -vaddr % PAGE_BYTES
        whole = max(0, size - first) // PAGE_BYTES
        if whole < _PAGES_AT_ONCE:
            return b"".join(self._machine.memory.read(paddr, count) for paddr, count in self._pieces(vaddr, size))
        # An audit reads all of it around every call: whole pages in one go.
        at = (vaddr + first - self.scratch) // PAGE_BYTES
        middle = self._machine.memory.words.pages[[frame // PAGE_BYTES for frame in self._frames[at : at + whole]]]
        done = first + whole * PAGE_BYTES
        return self.read(vaddr, first) + middle.tobytes() + self.read(vaddr + done, size - done)

    def write_own(self, vaddr: int, data: bytes) -> bool:
        """Copy `data` to `vaddr` of the process that calls, memory it has just mapped and populated; return whether all
        of it was there to be written."""
        root = self.require_view().kernel_root
        done = 0
        try:
            for paddr, count in self._machine.memory.spans(root, vaddr, len(data)):
                self._machine.memory.write(paddr, data[done : done + count])
                done += count
        except (LookupError, MachineError):
            return False
        return done == len(data)

    # -- saving -----------------------------------------------------------------------------------------
    def save(self) -> dict[str, Any]:
        """Return what a restored machine needs to go on talking."""
        return {"scratch": self.scratch, "frames": self._frames}

    def restore(self, state: dict[str, Any], view: "KernelView") -> None:
        """Load what `save` returned; work that was meant for a child that never came is forgotten."""
        self.scratch, self._frames, self.view, self.parked = state["scratch"], state["frames"], view, True
        self._next_child = self._every_child = None
