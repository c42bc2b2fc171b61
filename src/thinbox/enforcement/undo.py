"""Undo: a killed call is rolled back to its entry, and only then its task dies.

Why it exists: a call killed in its middle keeps its locks and leaves its lists half linked; the guest lives on,
but with a wound. What isolation sees anyway (the first write to each page) is enough to take it all back.

What is rolled back: guest memory, to the byte, as it was when the call entered `do_syscall_64`; the CPU; the
devices and the virtual clock. What is not: what the outside has seen (console output), and calls that slept,
switched tables or overflowed the log: other tasks have run since, so those die by the oops path.

Rules of this file:
- A log that misses one write is worse than none: whatever cannot be followed ends it (`lose`).
- The rollback happens between two runs of the CPU, never inside a hook.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from thinbox.address import page_start
from thinbox.isolation import pagetable
from thinbox.isolation.undo import FULL, LOG_COLUMNS, LOG_COPY, LOG_PAGE, save_page
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.state_bits import IF

if TYPE_CHECKING:
    from thinbox.machine.machine import Machine

RESERVED_BYTES = 48 << 20
"""Hidden RAM for copies and the undo table: 12,000 pages written by one call."""
HOLD_NS = 4_000_000
"""So long an undoable call is not interrupted: a timer interrupt may let another task run, and then the call could be
undone no more. One tick at 250 Hz; all but the longest calls end before."""
SIGKILL = 9
_CAPACITY = RESERVED_BYTES >> 12


class Undo:
    """The undo log of one machine; at most one call is being followed, the one that runs."""

    def __init__(self, machine: "Machine", death: int) -> None:
        self._machine, self._death = machine, death
        self._memory, self._cpu, self._slot = machine.memory, machine.cpu, machine.slot
        self._pool = np.zeros(1 + _CAPACITY, dtype=np.int64)
        self._log = np.zeros(LOG_COLUMNS * _CAPACITY, dtype=np.int64)
        self._saved = np.zeros((self._memory.total_bytes >> 17) + 1, dtype=np.int64)
        self._entry: tuple[bytes, dict[str, Any]] | None = None
        slot, keep = self._slot, self._cpu.keep_array
        slot[slots.UNDO_POOL], slot[slots.UNDO_LOG] = keep(self._pool), keep(self._log)
        slot[slots.UNDO_SAVED], slot[slots.UNDO_CAPACITY] = keep(self._saved), _CAPACITY
        self.reset()

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        end = self._memory.total_bytes
        self._pool[0] = _CAPACITY
        self._pool[1:] = np.arange(end - RESERVED_BYTES, end, 4096)
        self._saved[:] = 0
        self._entry = None
        self._slot[slots.UNDO_MODE], self._slot[slots.UNDO], self._slot[slots.UNDO_COUNT] = 1, 0, 0
        self._slot[slots.UNDO_ROOT] = pagetable.take_frame(self._memory.words.each, self._pool)
        self._machine.release_interrupts()

    @property
    def possible(self) -> bool:
        """Whether the running call can be rolled back."""
        return self._entry is not None and bool(self._slot[slots.UNDO])

    def begin(self) -> None:
        """A call enters, on the kernel's own table: remember everything that is not memory."""
        self._entry = (self._cpu.save(), self._machine.save_devices())
        self._slot[slots.UNDO] = 1
        self._machine.hold_interrupts(self._machine.now_ns + HOLD_NS)

    def save(self, paddr: int) -> None:
        """Save the page at `paddr`, before something else than the guest's CPU writes it for the running call."""
        slot, memory = self._slot, self._memory
        if not slot[slots.UNDO]:
            return
        count = save_page(
            memory.words, self._pool, self._log, _CAPACITY, self._saved, slot[slots.UNDO_COUNT], page_start(paddr)
        )
        if count == FULL:
            slot[slots.UNDO] = 0
        else:
            slot[slots.UNDO_COUNT] = count

    def end(self) -> None:
        """The call is over, or cannot be followed any longer: drop the log."""
        self._finish(put_back=False)

    def roll_back(self) -> None:
        """Put memory, devices, clock and CPU back to the call's entry; between two runs only."""
        assert self._entry is not None
        state, devices = self._entry
        self._finish(put_back=True)
        self._machine.restore_devices(devices)
        self._cpu.restore(state)

    def die(self) -> None:
        """After `roll_back`: let the task end as by SIGKILL, holding nothing.

        The CPU stands at the first instruction of `do_syscall_64(regs, nr)`; there the kernel could be killing it
        for a signal just as well, interrupts on.
        """
        self._cpu.regs[registers.RDI] = SIGKILL
        self._cpu.flags = self._cpu.flags | IF
        self._cpu.set_rip(self._death)

    def _finish(self, *, put_back: bool) -> None:
        count = self._slot[slots.UNDO_COUNT]
        if count:
            rows = self._log[: LOG_COLUMNS * count].reshape(count, LOG_COLUMNS)
            pages, copies = rows[:, LOG_PAGE] >> 12, rows[:, LOG_COPY]
            if put_back:
                frames = self._memory.words.pages
                frames[pages] = frames[copies >> 12]
            self._saved[pages >> 5] = 0
            free = int(self._pool[0])
            self._pool[1 + free : 1 + free + count] = copies
            self._pool[0] = free + count
        self._slot[slots.UNDO], self._slot[slots.UNDO_COUNT] = 0, 0
        self._entry = None
        self._machine.release_interrupts()
