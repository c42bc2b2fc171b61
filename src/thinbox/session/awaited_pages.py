"""Emulated calls that wait for a page: the kernel brings it in by a call made in between, and they go on behind it.

Why it exists: an emulation finds its buffers in the tenant's own page table, and a page that was never touched, was
swapped out, or is still shared with a child is not there to be used until somebody uses it.

Rules of this file:
- The call in between is made by the tenant's task, at the same instruction, which then runs again: it is isolated and
  on the record as the tenant's calls are. Which call it is, `thinbox.kernel.populate` says.
- Nothing of the waiting call is kept in the guest: what is put back is what was there, by registers and stack pointer.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from thinbox.address import U64, to_signed
from thinbox.kernel.populate import PopulateCall, find_populate
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.syscalls.table import call_number

if TYPE_CHECKING:
    from thinbox.enforcement.enforcer import Enforcer
    from thinbox.sandbox.call_error import PageWantedError

ARGUMENTS = (slots.CALL_ARG0, slots.CALL_ARG1, slots.CALL_ARG2, slots.CALL_ARG3, slots.CALL_ARG4, slots.CALL_ARG5)
"""Where the compiled hook keeps the arguments of a call instruction (signed)."""
_REGISTERS = (registers.RDI, registers.RSI, registers.RDX, registers.R10, registers.R8, registers.R9)
_MOST_WAITING = 32
"""Emulated calls of one task that wait for a page, one in the signal handler of the other; of more, the oldest are
forgotten: a handler that never returns leaves one behind."""
_MOST_TRIES = 64
"""Times that one page is brought in for one call."""
_MOST_PAGES = 4096
"""Pages brought in for one call; its buffers are at most 1 MiB or a path, so a handler that wants more runs in
circles."""


@dataclass(slots=True)
class WaitingCall:
    """An emulated call that waits for a page: where it stands, RAX and its arguments, and what happened so far."""

    rip: int
    rsp: int
    saved: tuple[int, ...]
    page: int
    asked: PopulateCall
    refused: set[int] = field(default_factory=set)
    """Pages that the kernel would not bring in."""
    count: int = 0
    again: int = 0
    """How often the kernel said that it is there, and it was not: a fork takes the right to write it back."""

    @property
    def is_hopeless(self) -> bool:
        """Whether a page is said to be there and is not, time and again (a filter or a tracer of the tenant's answers),
        or pages are wanted for ever: the tenant's affair."""
        return self.again >= _MOST_TRIES or self.count >= _MOST_PAGES


class AwaitedPages:
    """The waiting calls of one tenant's tasks."""

    def __init__(self, enforcer: "Enforcer") -> None:
        """MissingFactError where the kernel cannot be made to bring a page in."""
        self._cpu, self._slot = enforcer.cpu, enforcer.slot
        self._populate = find_populate(enforcer.view.facts)
        self._waiting: dict[int, list[WaitingCall]] = {}
        """By task, the innermost last."""

    def bring(self, task: int, before: WaitingCall | None, wanted: "PageWantedError") -> None:
        """Put a call that brings the page in into the registers; it is to be entered, and its instruction repeated.

        `before` is what the emulated call has waited for already.
        """
        regs = self._cpu.regs
        saved = before.saved if before else tuple(regs[register] for register in (registers.RAX, *_REGISTERS))
        asked = self._populate.call(wanted.vaddr, write=wanted.write)
        waiting = WaitingCall(self._cpu.rip, regs[registers.RSP], saved, wanted.vaddr, asked)
        if before:
            waiting.refused, waiting.count = before.refused, before.count + 1
            waiting.again = before.again + 1 if before.page == wanted.vaddr else 0
        pending = self._waiting.setdefault(task, [])
        pending.append(waiting)
        del pending[:-_MOST_WAITING]
        self._put((call_number(asked.name), *asked.arguments))

    def take(self, task: int) -> WaitingCall | None:
        """Return the call of `task` that goes on here, if one does, its registers and slots put back; those that began
        in handlers within it are gone."""
        pending = self._waiting.get(task, [])
        for at in range(len(pending) - 1, -1, -1):
            if self._is_here(pending[at]):
                found = pending[at]
                del pending[at:]
                self._go_on(found)
                return found
        return None

    def forked(self, parent: int, child: int) -> None:
        """A task has a child, which returns where it does."""
        waiting = self._waiting.get(parent, [])
        self._waiting[child] = [replace(call, refused=set(call.refused)) for call in waiting]

    def gone(self, task: int) -> None:
        """A task is dead."""
        self._waiting.pop(task, None)

    def _put(self, values: tuple[int, ...]) -> None:
        for register, value in zip((registers.RAX, *_REGISTERS), values, strict=True):
            self._cpu.regs[register] = value

    def _is_here(self, waiting: WaitingCall) -> bool:
        """Tell whether the call instruction runs again behind a page that was brought in: the registers are still those
        of that, and not of another call that a signal's handler came to."""
        regs = self._cpu.regs
        here = (self._cpu.rip, regs[registers.RSP], *(regs[register] for register in _REGISTERS))
        return here == (waiting.rip, waiting.rsp, *waiting.asked.arguments)

    def _go_on(self, waiting: WaitingCall) -> None:
        """Put the registers of the emulated call back, and what the compiled hook kept of it."""
        if to_signed(self._cpu.regs[registers.RAX] & U64) not in waiting.asked.done:
            waiting.refused.add(waiting.page)
        self._put(waiting.saved)
        low = waiting.saved[0] & 0xFFFFFFFF
        self._slot[slots.CALL_NR] = low - (low >> 31 << 32)
        for slot, value in zip(ARGUMENTS, waiting.saved[1:], strict=True):
            self._slot[slot] = to_signed(value & U64)
