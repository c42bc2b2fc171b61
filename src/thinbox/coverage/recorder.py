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

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thinbox import paging
from thinbox.address import PAGE_MASK, to_signed
from thinbox.coverage.summing import CallData, Ledger
from thinbox.isolation import fault
from thinbox.machine import cpu as registers
from thinbox.machine import coverage_hooks as compiled
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.coverage.results import RunCoverage
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.machine import Machine
    from thinbox.session.records import CallRecord
    from thinbox.session.sites import Sites
    from thinbox.session.tasks import OpenCall, TaskState

LOG_ENTRIES = 1 << 20
"""More than one call can fill: 14 MiB of text have about a million blocks. Pages nobody writes cost nothing."""
_ENTRY_BYTES = 8


@dataclass(slots=True)
class _Progress:
    """A call that has not closed: its blocks so far as log entries, its data pages, where an interrupt returns to."""

    blocks: list[bytes] = field(default_factory=list)
    data: CallData | None = None
    interrupt_rsp: int = 0


class Recorder:
    """Watches the calls of one machine's tenant; ask `finish` when the tenant has ended.

    Preconditions: one recorder a machine, made before the tenant runs.
    """

    def __init__(self, machine: "Machine", view: "KernelView", sites: "Sites") -> None:
        self._machine, self._view = machine, view
        self._slot, self._cpu = machine.slot, machine.cpu
        symbols = view.symbols
        self._text_start = to_signed(symbols.text_start)
        text_bytes = symbols.text_end - symbols.text_start
        self._call_seen, self._irq_seen = np.zeros(text_bytes, np.uint32), np.zeros(text_bytes, np.uint32)
        self._call_log, self._irq_log = np.zeros(LOG_ENTRIES, np.int64), np.zeros(LOG_ENTRIES, np.int64)
        words = np.zeros(compiled.SLOT_COUNT, dtype=np.int64)
        self._cov = words.data
        """The slots of `machine.coverage_hooks`."""
        self._open: dict[int, _Progress] = {}
        self._ledger = Ledger()
        self._install(sites, words, text_bytes)

    def _install(self, sites: "Sites", words: npt.NDArray[np.int64], text_bytes: int) -> None:
        cov, keep = self._cov, self._cpu.keep_array
        cov[compiled.ENV] = self._slot[slots.ENV]
        cov[compiled.TEXT_START], cov[compiled.TEXT_BYTES] = self._text_start, text_bytes
        cov[compiled.CALL_SEEN], cov[compiled.CALL_LOG] = keep(self._call_seen), keep(self._call_log)
        cov[compiled.IRQ_SEEN], cov[compiled.IRQ_LOG] = keep(self._irq_seen), keep(self._irq_log)
        cov[compiled.LOG_CAPACITY] = LOG_ENTRIES
        start = self._view.symbols.text_start
        self._cpu.add_block_hook(start, start + text_bytes, compiled.on_text_block.address, keep(words))
        self._cpu.add_native_hook(sites.iretq, compiled.on_interrupt_end.address, words.ctypes.data)
        self._machine.on_interrupt = self._interrupted
        self._slot[slots.TRACK_USE] = 1
        self._cpu.uc.ctl_flush_tb()

    # -- what the enforcer tells ------------------------------------------------------------------------
    def opened(self, _state: "TaskState", call: "OpenCall") -> None:
        """The call begins; the block the CPU is in was announced before."""
        progress = _Progress()
        start, end = self._slot[slots.BLOCK_START], self._slot[slots.BLOCK_END]
        entry = (start - self._text_start) << compiled.BYTES_BITS | (end - start)
        progress.blocks.append(entry.to_bytes(_ENTRY_BYTES, "little"))
        self._open[call.record.seq] = progress
        self._cov[compiled.INTERRUPT_RSP] = 0
        self._cov[compiled.RECORDING] = 1

    def paused(self, _state: "TaskState", call: "OpenCall") -> None:
        """Another task is about to run."""
        progress = self._open.get(call.record.seq)
        if progress is not None:
            progress.interrupt_rsp = self._cov[compiled.INTERRUPT_RSP]
            self._collect(progress, call)

    def resumed(self, _state: "TaskState", call: "OpenCall") -> None:
        """The call's task runs again."""
        progress = self._open.get(call.record.seq)
        if progress is not None:
            self._cov[compiled.INTERRUPT_RSP] = progress.interrupt_rsp
            self._cov[compiled.RECORDING] = 1

    def closed(self, _state: "TaskState", call: "OpenCall") -> None:
        """The call returned or was killed; its grants are still there."""
        progress = self._open.pop(call.record.seq, None)
        if progress is not None:
            self._collect(progress, call)
            self._keep(call.record.seq, progress)

    def _interrupted(self) -> None:
        """An interrupt was delivered; RSP is where its `iretq` will find its frame."""
        if self._cov[compiled.RECORDING] and not self._cov[compiled.INTERRUPT_RSP]:
            self._cov[compiled.INTERRUPT_RSP] = to_signed(self._cpu.regs[registers.RSP])

    # -- collecting ---------------------------------------------------------------------------------------
    def _collect(self, progress: _Progress, call: "OpenCall") -> None:
        """Stop recording; move the log into `progress`, and what the table says of data."""
        cov = self._cov
        cov[compiled.RECORDING] = 0
        count = cov[compiled.CALL_COUNT]
        if count:
            entries = self._call_log[:count]
            offsets = entries >> compiled.BYTES_BITS
            self._call_seen[offsets] = 0
            cov[compiled.CALL_COUNT] = 0
            here = to_signed(self._cpu.rip) - self._text_start
            progress.blocks.append((entries[:-1] if int(offsets[-1]) == here else entries).tobytes())
        if call.isolated:
            progress.data = self._data_pages(call, progress.data)

    def _data_pages(self, call: "OpenCall", before: CallData | None) -> CallData:
        """Read what the CPU marked in the granted entries: A on use, D on a write (SDM vol. 3A, 4.8).

        An entry the kernel's teardown cleared has lost its marks; the access that was granted stands for them.
        """
        earlier = before or CallData.nothing()
        if not call.rows:
            return earlier
        rows = np.concatenate(call.rows)
        rows = rows[rows[:, fault.LOG_ERROR] & paging.FAULT_FETCH == 0]
        entries = self._machine.memory.words[rows[:, fault.LOG_INDEX]]
        gone = entries == 0
        pages = rows[:, fault.LOG_VADDR] & PAGE_MASK
        used = gone | (entries & paging.ACCESSED != 0)
        written = (entries & paging.DIRTY != 0) | (gone & (rows[:, fault.LOG_ERROR] & paging.FAULT_WRITE != 0))
        return earlier.joined(pages[used], pages[written])

    def _keep(self, seq: int, progress: _Progress) -> None:
        self._ledger.add(seq, b"".join(progress.blocks), progress.data)

    def finish(self, calls: "Sequence[CallRecord]") -> "RunCoverage":
        """Attribute everything to symbols, fill `coverage` of each record, and return the whole.

        A call that never returned counts with what it did. Calls opened while nothing was recorded keep None.
        """
        for seq, progress in sorted(self._open.items()):
            self._keep(seq, progress)
        self._open.clear()
        irq_log = self._irq_log[: self._cov[compiled.IRQ_COUNT]].tobytes()
        return self._ledger.summed(calls, self._view, self._read_text, irq_log, self._cov[compiled.LOST])

    def _read_text(self, vaddr: int, size: int) -> bytes:
        root = self._slot[slots.KERNEL_ROOT] if self._slot[slots.ACTIVE] else self._view.kernel_root
        return self._machine.memory.read_virtual(root, vaddr, size)
