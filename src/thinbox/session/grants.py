"""What a call was granted: from the log of the compiled hooks to its record, and forgotten when it ends.

Why it exists: hooks grant without asking, and log it; rules 5 and 7 need to know what was granted, the record how much.

Rules of this file: a row tells what its entry was before, so forgetting is writing that back, last row first.
"""

from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import U64
from thinbox.isolation import fault
from thinbox.machine import slots
from thinbox.session.judge import kind_of
from thinbox.session.records import FaultRecord

if TYPE_CHECKING:
    from thinbox.session.enforcer import Enforcer
    from thinbox.session.tasks import OpenCall, TaskState

LOG_ROWS = 1 << 14


class Grants:
    """The log shared with the compiled hooks, for one enforcer."""

    def __init__(self, enforcer: "Enforcer") -> None:
        self._enforcer, self._memory, self._slot = enforcer, enforcer.memory, enforcer.slot
        self._log = np.zeros((LOG_ROWS, fault.LOG_COLUMNS), dtype=np.int64)
        self._slot[slots.LOG], self._slot[slots.LOG_CAPACITY] = enforcer.cpu.keep_array(self._log), LOG_ROWS

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
        if self._enforcer.undo or state.tenant.prefault or self._slot[slots.VIEW]:
            kept = rows[rows[:, fault.LOG_ERROR] & fault.LOG_ASIDE == 0]
            call.record.prefaulted += int(np.count_nonzero(kept[:, fault.LOG_ERROR] & fault.LOG_PREFAULT))
            rows = rows[~fault.is_aside(rows)]
            count = len(rows)
        fetches = int(np.count_nonzero(rows[:, fault.LOG_ERROR] & paging.FAULT_FETCH))
        call.record.code_faults += fetches
        call.record.data_faults += count - fetches
        call.granted_pages += count
        self._enforcer.watch.granted(state, call, rows)
        self._enforcer.tables.note_pages(state)
        if state.tenant.isolation.keep_faults:
            self._keep(state, call.record.seq, kept)

    def _keep(self, state: "TaskState", seq: int, rows: np.ndarray) -> None:
        faults, symbols = state.tenant.record.faults, self._enforcer.view.symbols
        for vaddr, rip, error, index, _replaced in rows.tolist():
            place = symbols.describe(vaddr & U64)
            writable = bool(self._memory.quads[index] & paging.WRITABLE)
            faults.append(FaultRecord(seq, vaddr & U64, rip & U64, kind_of(error).value, place, writable))
