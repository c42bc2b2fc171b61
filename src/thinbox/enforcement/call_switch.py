"""The one way on and off a table: a call enters, sleeps, wakes, leaves for deferred work, comes back, and is closed.

Why it exists: rules 4, 7 and 9 are about the same few steps, taken at different moments. Whoever finds something says
so; what the CPU runs on changes here only.

Rules of this file:
- Order of entering: 1. the hooks are told whose call it is; 2. undo remembers the CPU, on the kernel's table; 3. the
  table is loaded; 4. known pages are mapped. Swapped, 2 would save the wrong table, 4 would map into another's.
- Order of leaving: 1. the log is drained; 2. one-block grants end; 3. the kernel's table is loaded; 4. grants are
  forgotten. Swapped, a grant would be lost from the record or survive the call.
"""

import time
from typing import TYPE_CHECKING

from thinbox.enforcement.judge import COMPAT_KEY
from thinbox.enforcement.open_call import CallEvent
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.enforcement.grants import Grants
    from thinbox.enforcement.observers import Watches
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskState
    from thinbox.enforcement.undo import Undo
    from thinbox.enforcement.views import Views

_NR_MASK = (1 << 32) - 1


class CallSwitch:
    """Takes calls of one guest onto their tables and off them."""

    def __init__(self, target: "Target", grants: "Grants", watch: "Watches", undo: "Undo | None") -> None:
        self._target, self._grants, self._watch, self._undo = target, grants, watch, undo
        self._cpu, self._slot = target.cpu, target.slot
        self.views: Views | None = None
        """Set once some tenant has a view."""

    def executed(self) -> int:
        """Bytes of code executed so far."""
        return self._slot[slots.CLOCK] - self._slot[slots.SLEPT]

    # -- onto a table -----------------------------------------------------------------------------------
    def enter(self, state: "TaskState", call: "OpenCall") -> None:
        """An isolated call begins: onto its task's table. Preconditions: the CPU is on the kernel's own, `state.root`
        is made."""
        self._tell_hooks(state, call)
        if self._undo and state.tenant.isolation.on_violation == "undo" and not call.is_exit:
            self._undo.begin()
        self._target.sci.enter_table()
        if state.tenant.prefault:
            state.tenant.prefault.enter(call.record.name)

    def wake(self, state: "TaskState", call: "OpenCall") -> bool:
        """The call's task runs again (rule 9); tell whether it goes on on its table at once."""
        state.bytes_mark = self.executed()
        call.on(CallEvent.SWITCH_IN)
        if call.isolated:
            self._tell_hooks(state, call)
            if self.views is not None:
                self.views.recheck(call)
        if not call.is_exit:
            self._watch.resumed(state, call)
        # Interrupted, or in deferred work: its iretq, or the end of that work, goes back to the table.
        if not call.isolated or call.resume_rsp or call.deferred_rsp:
            return False
        self._target.sci.enter_table()
        return True

    def end_deferred_work(self, call: "OpenCall") -> None:
        """The call is back from deferred work, on its table; what it held is looked at anew."""
        call.on(CallEvent.DEFERRED_WORK_DONE)
        call.deferred_rsp = 0
        self._target.sci.enter_table()
        if self.views is not None and self.views.recheck(call):
            self._cpu.load_cr3(self._cpu.cr3)

    def rename(self, call: "OpenCall") -> None:
        """The kernel dispatches another number than the call began with: policies are asked about that one."""
        self._slot[slots.CALL_KEY] = self._key_of(call)

    @staticmethod
    def _key_of(call: "OpenCall") -> int:
        return call.record.nr & _NR_MASK | (COMPAT_KEY if call.record.name.startswith("i386#") else 0)

    def _tell_hooks(self, state: "TaskState", call: "OpenCall") -> None:
        """Tell the compiled hooks whose call this is, and how it goes on if it was interrupted."""
        slot = self._slot
        slot[slots.SCI_ROOT] = state.root
        slot[slots.CALL_KEY] = self._key_of(call)
        slot[slots.RESUME_RSP], slot[slots.RESUME_RIP] = call.resume_rsp, call.resume_rip
        slot[slots.RESUME_BLOCK_START], slot[slots.RESUME_BLOCK_END] = call.resume_block
        state.tenant.judge_of(call).use()
        if self.views is not None:
            self.views.use(state)

    # -- off a table --------------------------------------------------------------------------------------
    def _leave(self, state: "TaskState", call: "OpenCall") -> None:
        """Off the table, grants kept: the call goes on later, or is closed next."""
        self._grants.drain(state, call)
        self._grants.end_one_block()
        self._target.sci.leave_table()
        self._slot[slots.SCI_ROOT] = 0
        self._slot[slots.RESUME_RSP] = 0

    def begin_deferred_work(self, state: "TaskState", call: "OpenCall", rsp: int) -> None:
        """The call leaves its table for work that is not its own, and comes back with RSP `rsp` (signed)."""
        # What the call holds is looked at behind that work: all of it.
        self._grants.drain(state, call)
        # It was interrupted before, perhaps: the iretq back into it was taken in compiled code.
        call.note_interruption(self._slot[slots.RESUME_RSP])
        call.on(CallEvent.DEFERRED_WORK)
        call.deferred_rsp = rsp
        self._target.sci.leave_for_deferred_work()

    def sleep(self, state: "TaskState", call: "OpenCall") -> None:
        """The call's task leaves the CPU: nobody else runs on its table (rule 9)."""
        call.record.code_bytes += self.executed() - state.bytes_mark
        call.slept = True
        if call.isolated:
            self._grants.drain(state, call)
            slot = self._slot
            call.resume_rsp, call.resume_rip = slot[slots.RESUME_RSP], slot[slots.RESUME_RIP]
            call.resume_block = (slot[slots.RESUME_BLOCK_START], slot[slots.RESUME_BLOCK_END])
            call.note_interruption(call.resume_rsp)
            if self._undo:
                self._undo.end()
            self._leave(state, call)
        call.on(CallEvent.SWITCH_OUT)
        if not call.is_exit:
            self._watch.paused(state, call)

    def roll_back(self, state: "TaskState", call: "OpenCall") -> None:
        """Put everything back to the call's entry, and close it; between two runs of the CPU only."""
        assert self._undo is not None
        self._grants.drain(state, call)
        self._target.sci.leave_table()
        self._grants.forget(call)
        self._undo.roll_back()
        self.close(state, call, CallEvent.UNDO)

    def give_up_undo(self) -> None:
        """What is written from here on cannot be saved: an exception's handler goes on on the kernel's table."""
        self._slot[slots.UNDO] = 0
        self._target.sci.leave_table()

    def close(self, state: "TaskState", call: "OpenCall", event: CallEvent = CallEvent.RETURN) -> None:
        """Rules 4 and 7: back to the kernel's table, and forget what the call was granted."""
        if call.isolated:
            call.note_interruption(self._slot[slots.RESUME_RSP])
            self._leave(state, call)
        call.on(event)
        if not call.is_exit:
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

    def bury(self, state: "TaskState") -> None:
        """The task is dead and off the CPU for good, in the middle of a call."""
        call, state.call = state.call, None
        if call is not None:
            call.on(CallEvent.KILL)
            call.record.virtual_ns = self._slot[slots.CLOCK] - call.entered_ns
