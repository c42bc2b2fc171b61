"""What a call was granted: from the log of the compiled hooks to its record, and forgotten when it ends.

Why it exists: hooks grant without asking, and log it; rules 5 and 7 need to know what was granted, the record how much.

Rules of this file: a row tells what its entry was before, so forgetting is writing that back, last row first.
"""

from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import U64, to_signed
from thinbox.enforcement.outside_work import count_outside
from thinbox.isolation import fault
from thinbox.isolation.verdict import kind_of
from thinbox.machine import slots
from thinbox.records.run import FaultRecord

if TYPE_CHECKING:
    from thinbox.enforcement.observers import Watches
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.tables import Tables
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskState
    from thinbox.image.symbols import Symbol

LOG_ROWS = 1 << 14


class Grants:
    """The log shared with the compiled hooks, for one enforcer."""

    def __init__(self, target: "Target", tables: "Tables", watch: "Watches", *, undo: bool) -> None:
        self._target, self._tables, self._watch, self._undo = target, tables, watch, undo
        self._memory, self._slot = target.memory, target.slot
        self._one_block: list[tuple[int, int]] = []
        self._written: tuple[OpenCall | None, tuple[int, ...], np.ndarray] = (None, (), np.zeros(0, dtype=np.int64))
        self._log = np.zeros((LOG_ROWS, fault.LOG_COLUMNS), dtype=np.int64)
        self._slot[slots.LOG], self._slot[slots.LOG_CAPACITY] = target.cpu.keep_array(self._log), LOG_ROWS

    def forget(self, call: "OpenCall") -> None:
        """Rule 7: take back what the call was granted."""
        for rows in reversed(call.rows):
            # A row tells what its entry was before: nothing, or (with undo) a page of the baseline, read-only.
            self._memory.words[rows[::-1, fault.LOG_INDEX]] = rows[::-1, fault.LOG_REPLACED]
        call.rows.clear()

    def drain(self, state: "TaskState", call: "OpenCall") -> None:
        """Move the log of the running call into its record."""
        count = self._slot[slots.LOG_COUNT]
        if count == 0:
            return
        rows = self._log[:count].copy()
        self._slot[slots.LOG_COUNT] = 0
        call.rows.append(rows)
        kept = rows
        if self._undo or state.tenant.prefault or self._slot[slots.VIEW]:
            kept = rows[rows[:, fault.LOG_ERROR] & fault.LOG_ASIDE == 0]
            call.record.prefaulted += int(np.count_nonzero(kept[:, fault.LOG_ERROR] & fault.LOG_PREFAULT))
            rows = rows[~fault.is_aside(rows)]
            count = len(rows)
        fetches = int(np.count_nonzero(rows[:, fault.LOG_ERROR] & paging.FAULT_FETCH))
        call.record.code_faults += fetches
        call.record.data_faults += count - fetches
        call.granted_pages += count
        if call.is_exit:
            count_outside(state.tenant.record, "pages granted to ends", count)
        self._watch.granted(state, call, rows)
        self._tables.note_pages(state)
        if state.tenant.isolation.keep_faults and not call.is_exit:
            self._keep(state, call.record.seq, kept)

    def written_frames(self, call: "OpenCall") -> np.ndarray:
        """Return the frames of kernel data that the call holds writable, or held and may have written, ascending.

        Preconditions: its log is drained.
        """
        if not call.rows:
            return np.zeros(0, dtype=np.int64)
        # Two look at the end of a call: between them no code runs, and nothing is granted.
        known = (call.record.seq, len(call.rows), self._slot[slots.CLOCK])
        if self._written[0] is call and self._written[1] == known:
            return self._written[2]
        words, wanted, frames = self._memory.words.each, paging.PRESENT | paging.WRITABLE, set()
        # A call has some sixty rows: for so few a set is sooner done than an array.
        for rows in call.rows:
            for vaddr, index in zip(rows[:, fault.LOG_VADDR].tolist(), rows[:, fault.LOG_INDEX].tolist(), strict=True):
                if vaddr >= 0:
                    continue
                entry = words[index]
                if entry & wanted == wanted:
                    frames.add(entry & paging.FRAME_MASK)
                elif not entry & paging.PRESENT and (frame := self._frame(vaddr)) >= 0:
                    frames.add(frame)
        self._written = (call, known, np.array(sorted(frames), dtype=np.int64))
        return self._written[2]

    def _frame(self, vaddr: int) -> int:
        """The frame of a kernel address (signed); negative if there is none."""
        memory = self._memory
        return memory.tables.translate(self._target.kernel_root, vaddr) & ~0xFFF

    def _keep(self, state: "TaskState", seq: int, rows: np.ndarray) -> None:
        faults, symbols = state.tenant.record.faults, self._target.view.symbols
        for vaddr, rip, error, index, _replaced in rows.tolist():
            place = symbols.describe(vaddr & U64)
            writable = bool(self._memory.words[index] & paging.WRITABLE)
            faults.append(FaultRecord(seq, vaddr & U64, rip & U64, kind_of(error).value, place, writable))

    # -- grants for one block of code -------------------------------------------------------------------
    def entry_before(self, state: "TaskState", vaddr: int) -> int:
        """Return what the table holds for `vaddr` before a one-block grant."""
        index = self._memory.tables.entry_index(state.root, vaddr)
        return self._memory.words[index] if index >= 0 else 0

    def make_one_block(
        self, state: "TaskState", vaddr: int, before: int, rip: int, function: "Symbol | None" = None
    ) -> None:
        """The page of `vaddr`, just granted, goes as soon as the block at `rip` has run; or, with a `function`, before
        the first block that is not of its code, which its callees' are not.

        Of several grants at a time the shortest holds for all.
        """
        slot, is_first = self._slot, not self._one_block
        index = self._memory.tables.entry_index(state.root, vaddr)
        self._one_block.append((index, before))
        span = (0, 0) if function is None else (to_signed(function.start), to_signed(function.end_exclusive))
        if is_first:
            slot[slots.BRIEF_DEADLINE], slot[slots.BRIEF_START], slot[slots.BRIEF_END] = slot[slots.DEADLINE], *span
        elif span != (slot[slots.BRIEF_START], slot[slots.BRIEF_END]):
            slot[slots.BRIEF_START] = slot[slots.BRIEF_END] = 0
        # The hook will take back what of the block is to run once more (hooks.uncount_block); the block then
        # starts before this moment, and the next one does not.
        now = slot[slots.CLOCK]
        if slot[slots.BLOCK_START] <= rip < slot[slots.BLOCK_END]:
            now -= slot[slots.BLOCK_END] - rip
        slot[slots.DEADLINE] = min(slot[slots.DEADLINE], now + 1)
        slot[slots.ATTENTION] = min(slot[slots.ATTENTION], now + 1)

    def end_one_block(self) -> None:
        """Take one-block grants back: between two runs of the CPU, and whenever the call leaves its table."""
        if not self._one_block:
            return
        for index, before in reversed(self._one_block):
            self._memory.words[index] = before
        self._one_block.clear()
        self._slot[slots.BRIEF_START] = self._slot[slots.BRIEF_END] = 0
        if self._slot[slots.ACTIVE]:
            self._target.cpu.load_cr3(self._target.cpu.cr3)

    def reset(self) -> None:
        """Begin again after the machine was restored."""
        self._one_block.clear()
        self._slot[slots.BRIEF_START] = self._slot[slots.BRIEF_END] = 0
