"""Records what each call executes and touches while a tenant runs.

Why it exists: the compiled hook marks blocks; whose blocks they are is known only here, where calls open,
sleep, go on and close.

Rules of this file:
- A block belongs to the call of the task that runs it. While the call sleeps, nothing is recorded.
- Interrupts that arrive inside a call are kept apart; exceptions the call raises itself are its own.
- A block that begins at a watched instruction (behind the call of `do_syscall_64`, at `__switch_to_asm`) was
  announced by the engine before the watcher could stop recording: it is taken back.
- The task switch is nobody's: recording ends at `__switch_to_asm` and goes on in `finish_task_switch`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thinbox import paging
from thinbox.address import PAGE_MASK, to_signed
from thinbox.coverage.summing import Ledger, SymbolSource
from thinbox.isolation import fault
from thinbox.machine import coverage_slots as compiled
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.native import hook_address

if TYPE_CHECKING:
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.tasks import TaskState
    from thinbox.guest.kernel_view import KernelView
    from thinbox.guest.sites import Sites
    from thinbox.machine.machine import Machine
    from thinbox.records.call_log import CallLog
    from thinbox.records.coverage import RunCoverage

CAPACITY = 1 << 20
"""More blocks than a kernel has: 14 MiB of text at some 15 bytes a block. Pages nobody writes cost nothing."""
_NUMBER_BYTES = 4


@dataclass(slots=True)
class _Progress:
    """A call that has not closed: its name, the numbers of its blocks so far (32 bits each), its data pages with their
    marks, and where the interrupt that switched away from it will return to."""

    name: str
    blocks: bytes
    data: list[npt.NDArray[np.int64]] | None
    interrupt_rsp: int = 0


class Recorder:
    """Watches the calls of these tenants of one machine; ask `finish` for each when they have ended.

    Preconditions: one recorder a machine, made before the tenants run.
    """

    def __init__(self, machine: "Machine", view: "KernelView", sites: "Sites", tenants: Collection[str]) -> None:
        self._machine, self._view = machine, view
        self._slot, self._cpu = machine.slot, machine.cpu
        symbols = view.symbols
        self._text_start = to_signed(symbols.text_start)
        text_bytes = symbols.text_end - symbols.text_start
        self._known = np.zeros(text_bytes, np.int64)
        self._blocks = np.zeros(CAPACITY, np.int64)
        self._call_log, self._irq_log = np.zeros(CAPACITY, np.int32), np.zeros(CAPACITY, np.int32)
        words = np.zeros(compiled.SLOT_COUNT, dtype=np.int64)
        self._cov = words.data
        """The slots of `machine.coverage_slots`."""
        self._open: dict[tuple[str, int], _Progress] = {}
        self._first_blocks: dict[int, bytes] = {}
        self._ledgers = {name: Ledger() for name in tenants}
        self._interrupts: dict[str, list[bytes]] = {name: [] for name in tenants}
        self._install(sites, words, text_bytes)

    def _install(self, sites: "Sites", words: npt.NDArray[np.int64], text_bytes: int) -> None:
        cov, keep = self._cov, self._cpu.keep_array
        cov[compiled.ENV], cov[compiled.CORE] = self._slot[slots.ENV], self._cpu.core.ctypes.data
        cov[compiled.TEXT_START], cov[compiled.TEXT_BYTES] = self._text_start, text_bytes
        cov[compiled.KNOWN], cov[compiled.BLOCKS] = keep(self._known), keep(self._blocks)
        cov[compiled.CALL_LOG], cov[compiled.IRQ_LOG] = keep(self._call_log), keep(self._irq_log)
        cov[compiled.CAPACITY] = CAPACITY
        self._slot[slots.TRACK_USE] = 1
        self._machine.on_interrupt = self._interrupted
        self._cpu.add_native_hook(sites.iretq, hook_address("on_interrupt_end"), keep(words))
        self._cpu.replace_block_hook(hook_address("on_covered_block"), words.ctypes.data)

    # -- what the enforcer tells ------------------------------------------------------------------------
    def opened(self, state: "TaskState", call: "OpenCall") -> None:
        """The call begins; the block the CPU is in was announced before."""
        if state.tenant.name not in self._ledgers:
            return
        data: list[np.ndarray] | None = [] if call.isolated else None
        self._open[_key(state, call)] = _Progress(call.record.name, self._first_block(), data)
        self._cov[compiled.INTERRUPT_RSP] = 0
        self._cov[compiled.RECORDING] = 1

    def paused(self, state: "TaskState", call: "OpenCall") -> None:
        """Another task is about to run."""
        progress = self._open.get(_key(state, call))
        if progress is not None:
            progress.interrupt_rsp = self._cov[compiled.INTERRUPT_RSP]
            self._collect(state.tenant.name, progress, call)

    def resumed(self, state: "TaskState", call: "OpenCall") -> None:
        """The call's task runs again."""
        progress = self._open.get(_key(state, call))
        if progress is not None:
            self._cov[compiled.INTERRUPT_RSP] = progress.interrupt_rsp
            self._cov[compiled.RECORDING] = 1

    def granted(self, _state: "TaskState", call: "OpenCall", rows: npt.NDArray[np.int64]) -> None:
        """Nothing: what was granted is looked at when the call pauses or closes, with what was used of it."""

    def closed(self, state: "TaskState", call: "OpenCall") -> None:
        """The call returned or was killed; its grants are still there."""
        progress = self._open.pop(_key(state, call), None)
        if progress is not None:
            self._collect(state.tenant.name, progress, call)
            self._ledgers[state.tenant.name].add(call.record.seq, call.record.name, progress.blocks, progress.data)

    def _interrupted(self) -> None:
        """An interrupt was delivered; RSP is where its `iretq` will find its frame."""
        if self._cov[compiled.RECORDING] and not self._cov[compiled.INTERRUPT_RSP]:
            self._cov[compiled.INTERRUPT_RSP] = to_signed(self._cpu.regs[registers.RSP])

    # -- collecting ---------------------------------------------------------------------------------------
    def _first_block(self) -> bytes:
        """Return the number of the block the CPU is in, as a log of one entry."""
        start, end = self._slot[slots.BLOCK_START], self._slot[slots.BLOCK_END]
        block = (start - self._text_start) << compiled.BYTES_BITS | (end - start)
        if block not in self._first_blocks:
            number = self._cov[compiled.BLOCK_COUNT]
            self._blocks[number] = block
            self._cov[compiled.BLOCK_COUNT] = number + 1
            self._first_blocks[block] = number.to_bytes(_NUMBER_BYTES, "little")
        return self._first_blocks[block]

    def _collect(self, tenant: str, progress: _Progress, call: "OpenCall") -> None:
        """Stop recording; move the log into `progress`, and what the table says of data."""
        cov = self._cov
        cov[compiled.RECORDING] = 0
        count = cov[compiled.CALL_COUNT]
        if count:
            numbers = self._call_log[:count]
            offsets = self._blocks[numbers] >> compiled.BYTES_BITS
            self._known[offsets] &= ~compiled.IN_CALL
            cov[compiled.CALL_COUNT] = 0
            here = to_signed(self._cpu.rip) - self._text_start
            progress.blocks += (numbers[:-1] if offsets[-1] == here else numbers).tobytes()
        if len(self._ledgers) > 1 and cov[compiled.IRQ_COUNT]:
            self._take_interrupts(tenant)
        if progress.data is not None and call.rows:
            progress.data.append(self._data_pages(call))

    def _take_interrupts(self, tenant: str) -> None:
        """What ran in interrupts inside calls was this tenant's time; of one tenant alone, the log keeps it."""
        numbers = self._irq_log[: self._cov[compiled.IRQ_COUNT]]
        self._known[self._blocks[numbers] >> compiled.BYTES_BITS] &= ~compiled.IN_INTERRUPT
        self._cov[compiled.IRQ_COUNT] = 0
        self._interrupts[tenant].append(numbers.tobytes())

    def _data_pages(self, call: "OpenCall") -> npt.NDArray[np.int64]:
        """Return the pages granted for data with what the CPU marked in their entries: A on use, D on a write
        (SDM vol. 3A, 4.8).

        An entry that the kernel's teardown cleared has lost its marks; the access that was granted stands for them.
        """
        rows = np.concatenate(call.rows) if len(call.rows) > 1 else call.rows[0]
        rows = rows[~fault.is_aside(rows)]
        errors = rows[:, fault.LOG_ERROR]
        marks = self._machine.memory.words[rows[:, fault.LOG_INDEX]] & (paging.PRESENT | paging.ACCESSED | paging.DIRTY)
        if not marks.all():
            lost = np.where(errors & paging.FAULT_WRITE, paging.ACCESSED | paging.DIRTY, paging.ACCESSED)
            marks = np.where(marks == 0, lost, marks)
        pages = (rows[:, fault.LOG_VADDR] & PAGE_MASK) | marks
        wanted: npt.NDArray[np.int64] = pages[errors & paging.FAULT_FETCH == 0]
        return wanted

    def finish(self, tenant: str, calls: "CallLog") -> "RunCoverage":
        """Attribute what the tenant did to symbols, fill `coverage` of each record, and return the whole.

        `calls` are numbered by `seq`. A call that never returned counts with what it did.
        """
        ledger = self._ledgers[tenant]
        for key, progress in sorted(self._open.items()):
            if key[0] == tenant:
                ledger.add(key[1], progress.name, progress.blocks, progress.data)
        self._open = {key: progress for key, progress in self._open.items() if key[0] != tenant}
        blocks = self._blocks[: self._cov[compiled.BLOCK_COUNT]]
        interrupts = self._irq_log[: self._cov[compiled.IRQ_COUNT]]
        if len(self._ledgers) > 1:
            interrupts = np.unique(np.frombuffer(b"".join(self._interrupts[tenant]), dtype=np.int32))
        source = SymbolSource(self._view.symbols, self._read_text)
        return ledger.summed(calls, source, blocks, interrupts, self._cov[compiled.LOST])

    def _read_text(self, vaddr: int, size: int) -> bytes:
        root = self._view.kernel_root
        return self._machine.memory.read_virtual(root, vaddr, size)


def _key(state: "TaskState", call: "OpenCall") -> tuple[str, int]:
    return state.tenant.name, call.record.seq
