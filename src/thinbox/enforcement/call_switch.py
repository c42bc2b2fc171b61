"""One call off its table: the log drained, CR3 the kernel's, grants forgotten, the record closed (rules 4 and 7)."""

import time
from typing import TYPE_CHECKING

from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.enforcement.grants import Grants
    from thinbox.enforcement.observers import Watches
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskState
    from thinbox.enforcement.undo import Undo


class CallSwitch:
    """Takes calls of one guest off their tables."""

    def __init__(self, target: "Target", grants: "Grants", watch: "Watches", undo: "Undo | None") -> None:
        self._target, self._grants, self._watch, self._undo = target, grants, watch, undo
        self._cpu, self._slot = target.cpu, target.slot

    def executed(self) -> int:
        """Bytes of code executed so far."""
        return self._slot[slots.CLOCK] - self._slot[slots.SLEPT]

    def leave(self, state: "TaskState", call: "OpenCall") -> None:
        """Off the table, grants kept: the call goes on later, or is closed next."""
        self._grants.drain(state, call)
        self._grants.end_one_block()
        self._cpu.leave_table()
        self._slot[slots.SCI_ROOT] = 0
        self._slot[slots.RESUME_RSP] = 0

    def close(self, state: "TaskState", call: "OpenCall") -> None:
        """Rule 4 and 7: back to the kernel's table, and forget what the call was granted."""
        if call.isolated:
            self.leave(state, call)
        self._watch.closed(state, call)
        self._grants.forget(call)
        if call.isolated and self._undo:
            self._undo.end()
        record = call.record
        record.code_bytes += self.executed() - state.bytes_mark
        record.virtual_ns = self._slot[slots.CLOCK] - call.entered_ns
        if call.isolated and not call.slept and call.granted_pages:
            state.tenant.record.fault_us.append((time.perf_counter() - call.entered_host_s) * 1e6 / call.granted_pages)
        state.call = None
