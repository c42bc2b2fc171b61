"""The path of a call: it enters the kernel, is dispatched, and returns; and the end of a task, which is judged as one.

Why it exists: what becomes of a call (isolated or not, planned, answered, killed) is decided at these moments.

Rules of this file:
- What is isolated, planned and recorded is what the kernel dispatches, whatever stood at the call instruction.
- A task that does not end inside an isolated call of its own ends on its table all the same: what it closes and frees,
  it may have forged.

Source: Linux 6.1 arch/x86/entry/common.c, kernel/entry/common.c, kernel/exit.c (do_exit, make_task_dead).
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import U64, to_signed
from thinbox.enforcement.dispatch import COMPAT, NOTHING, Dispatch, name_of
from thinbox.enforcement.fault_handler import POOL_EMPTY
from thinbox.enforcement.open_call import CallEvent, OpenCall
from thinbox.isolation.verdict import Access, AccessKind
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.records.run import CallRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinbox.enforcement.call_switch import CallSwitch
    from thinbox.enforcement.fault_handler import FaultHandler
    from thinbox.enforcement.grants import Grants
    from thinbox.enforcement.integrity import Integrity
    from thinbox.enforcement.observers import Watches
    from thinbox.enforcement.outside_work import OutsideWork
    from thinbox.enforcement.planned_entry import PlannedEntry
    from thinbox.enforcement.tables import Tables
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState
    from thinbox.enforcement.violation_action import ViolationAction

_ARGUMENT_SLOTS = (slots.CALL_ARG0, slots.CALL_ARG1, slots.CALL_ARG2, slots.CALL_ARG3, slots.CALL_ARG4, slots.CALL_ARG5)
_EXIT_GROUP = 231
_NEW_PROGRAM = ("execve", "execveat")
SKIPPED = "skipped"
"""The name in records of a call that a tracer or a filter took away: nothing was dispatched, whatever it returned."""
_MOST_DISPATCHES = 16
"""Places behind the tracers of calls; a kernel has one for each entry."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a call meets on its way."""

    tables: "Tables"
    grants: "Grants"
    switch: "CallSwitch"
    faults: "FaultHandler"
    action: "ViolationAction"
    integrity: "Integrity"
    outside: "OutsideWork"
    watch: "Watches"


class CallPath:
    """Follows the calls of one guest from their entry to their return."""

    def __init__(
        self,
        target: "Target",
        tasks: "TaskList",
        parts: Parts,
    ) -> None:
        self._target, self._tasks = target, tasks
        self._tables, self._grants, self._switch, self._faults = parts.tables, parts.grants, parts.switch, parts.faults
        self._action, self._integrity, self._outside = parts.action, parts.integrity, parts.outside
        self._watch = parts.watch
        self._cpu, self._slot, self._view, self._memory = target.cpu, target.slot, target.view, target.memory
        self._dispatch = Dispatch(target)
        self._dispatch_hooks: set[int] = set()

    @property
    def places(self) -> "dict[int, Callable[[], None]]":
        """What is to be called at which instruction."""
        found: dict[int, Callable[[], None]] = {}
        for entry, name in self._target.sites.entries.items():
            found[entry] = self._enter if name == "do_syscall_64" else self._enter_compat
        found |= dict.fromkeys(self._target.sites.returns, self._leave)
        found |= dict.fromkeys(self._dispatch.tracers, self._traced) | dict.fromkeys(
            self._dispatch.switches, self._dispatches
        )
        found[self._view.symbols.address_of("do_exit")] = self._exits
        return found

    def _running(self) -> "TaskState | None":
        """The tenants' task on the CPU."""
        state = self._tasks.running
        return None if state is None or state.task != self._view.current else state

    # -- enter and leave ------------------------------------------------------------------------------
    def _enter(self) -> None:
        if self._tasks.running is not None:
            self._open_call(self._slot[slots.CALL_NR], compat=False)

    def _enter_compat(self) -> None:
        if self._tasks.running is not None:
            self._open_call(self._slot[slots.CALL_NR] & 0xFFFFFFFF, compat=True)

    def _open_call(self, nr: int, *, compat: bool) -> None:
        state = self._running()
        if state is None:
            return
        if state.call is not None and state.call.entered_ns == self._slot[slots.CLOCK]:
            return  # its first instruction faulted (with undo, the stack is read-only until then) and runs again
        if state.call is not None and self._action.left_unseen(state, state.call):
            return
        args, isolation = tuple(self._slot[slot] & U64 for slot in _ARGUMENT_SLOTS), state.tenant.isolation
        calls, name = state.tenant.record.calls, name_of(nr, compat=compat)
        # A thread that called execve is its group's leader now.
        state.pid = self._view.pid_of(state.task, self._view.kernel_root)
        record = CallRecord(len(calls), isolation.tenant, state.pid, nr, name, args)
        calls.append(record)
        regs = self._memory.tables.translate(
            self._view.kernel_root, to_signed(self._cpu.regs[self._regs_register(compat=compat)])
        )
        wanted, is_answered = isolation.isolates_compat if compat else isolation.isolates(nr), False
        planned, state.planned = state.planned, None
        if planned is None and state.tenant.gate is not None:
            # It came by a way on which the gate was not asked (`sysenter`).
            planned = state.tenant.gate.decide_entered(state.task, state.pid, nr, name, args)
        if planned is not None:
            wanted = self._note_plan(record, planned)
            if planned.death is not None:
                self._action.end_as_planned(state, record, planned.death)
                return
            if planned.result is not None:
                self._dispatch.answer(regs, planned.result, at_entry=True, compat=compat)
                is_answered = True
        isolated, user_ip = wanted and not state.killed, self._memory.words[(regs + self._view.ip_offset) >> 3]
        call = OpenCall(record, regs, self._slot[slots.CLOCK], time.perf_counter(), isolated, user_ip)
        call.is_answered = is_answered
        state.call, state.bytes_mark = call, self._switch.executed()
        found = self._integrity.begins(state, call)
        if found is not None:
            self._action.restore(state, found)
        if isolated and not self._isolate(state, call):
            return
        self._watch.opened(state, call)

    def _regs_register(self, *, compat: bool) -> int:
        """Return which argument of the entry is its `struct pt_regs *`."""
        return registers.RSI if self._target.sites.regs_second and not compat else registers.RDI

    @staticmethod
    def _note_plan(record: CallRecord, planned: "PlannedEntry") -> bool:
        record.disposition, record.plan_line = planned.disposition, planned.line
        if planned.result is not None:
            record.verdict = "emulated" if planned.disposition == "emulate" else "denied"
        return planned.isolated

    def _isolate(self, state: "TaskState", call: OpenCall) -> bool:
        """Onto the task's table, which is made the first time (3); tell whether there was room for it."""
        call.isolated = call.record.isolated = True
        if call.record.verdict == "pass":
            call.record.verdict = "granted"
        if state.root == 0 and not self._tables.make(state, self._view.kernel_root):
            call.isolated = False
            access = Access(self._cpu.rip, AccessKind.FETCH, self._cpu.rip, None, 0, 0)
            self._action.kill(state, call, POOL_EMPTY, access)
            self._cpu.jump(self._target.sites.death)
            return False
        self._switch.enter(state, call)
        return True

    def _leave(self) -> None:
        state = self._running()
        if state is None or state.call is None:
            return
        call = state.call
        if self._dispatch.switches and not (call.is_dispatched or call.is_answered or call.is_exit):
            self._note_undispatched(call)
        call.record.ret = self._view.result_of(call.regs_paddr, call.user_ip, call.record.name)
        if state.tenant.gate is not None and call.record.name in _NEW_PROGRAM and call.record.ret == 0:
            state.tenant.gate.executed(state.task)
        seen = None if self._switch.views is None else self._switch.views.ends(state, call)
        if seen is not None:
            hidden, vaddr = seen
            self._action.refuse_here(state, call, hidden.verdict, vaddr, hidden)
            return
        if call.isolated:
            self._grants.drain(state, call)
        if not self._action.act_on(state, call, self._integrity.ends(state, call)):
            self._switch.close(state, call)

    # -- what is dispatched -----------------------------------------------------------------------------
    def _traced(self) -> None:
        """`syscall_trace_enter`: a tracer or a filter may put another call in this one's place; look behind it."""
        state = self._running()
        if state is None or state.call is None:
            return
        behind = self._dispatch.return_address()
        state.call.is_traced = True
        if behind and behind not in self._dispatch_hooks and len(self._dispatch_hooks) < _MOST_DISPATCHES:
            self._dispatch_hooks.add(behind)
            self._cpu.add_code_hook(behind, self._dispatches)

    def _dispatches(self) -> None:
        """Behind a tracer, or at a switch: decide and record again if this is another call than the one that began."""
        state = self._running()
        if state is None or state.call is None or not (state.call.is_traced or self._dispatch.switches):
            return
        call, nr = state.call, self._dispatch.number()
        call.is_traced, call.is_dispatched, record = False, True, call.record
        if nr == NOTHING:
            if not call.is_answered:
                record.requested, record.name, record.nr = record.requested or record.name, SKIPPED, NOTHING
            return
        compat = record.name.startswith(COMPAT)
        args = self._dispatch.arguments(call.regs_paddr, compat=compat)
        if not call.is_answered and (nr & 0xFFFFFFFF, args) == (record.nr & 0xFFFFFFFF, record.args):
            return
        name = name_of(nr, compat=compat)
        record.requested = record.requested or record.name
        record.nr, record.name, record.args = nr, name, args
        if call.isolated:
            self._switch.rename(call)
        isolation, gate = state.tenant.isolation, state.tenant.gate
        wanted = isolation.isolates_compat if compat else isolation.isolates(nr)
        if gate is not None:
            planned = gate.decide_entered(state.task, state.pid, nr, name, args)
            wanted = self._note_plan(record, planned)
            if planned.death is not None:
                self._action.end_as_planned(state, record, planned.death)
                return
            if planned.result is not None:
                self._dispatch.answer(call.regs_paddr, planned.result, at_entry=False, compat=compat)
        if wanted and not call.isolated and not state.killed and self._isolate(state, call):
            self._faults.admit_here(state)

    def _note_undispatched(self, call: OpenCall) -> None:
        """No switch was called: the number is none the kernel has a function for, or the call was taken away."""
        record, nr = call.record, self._dispatch.wanted(call.regs_paddr)
        if NOTHING <= nr < len(self._view.facts.sys_call_table):
            record.requested, record.name, record.nr = record.requested or record.name, SKIPPED, NOTHING

    # -- the end of a task --------------------------------------------------------------------------------
    def _exits(self) -> None:
        """`do_exit(code)`: a task that does not end inside an isolated call ends in work that is judged as one."""
        state = self._running()
        if state is None:
            return
        if state.is_exiting and state.killed:
            # Its end was refused once: nothing more of it is run.
            self._cpu.jump(self._view.symbols.address_of("do_task_dead"))
            return
        state.is_exiting = True
        if state.call is not None and state.call.isolated:
            return
        tenant = state.tenant
        if not tenant.isolation.isolates_ends and not state.root and not tenant.record.kills:
            if state.call is None:
                self._outside.count(state, "exits")
            return
        if state.call is not None:
            # It ends in a call that is not isolated: its end is judged all the same.
            self._switch.close(state, state.call, CallEvent.KILL)
        self._outside.count(state, "exits, judged")
        record = CallRecord(-1, tenant.name, state.pid, _EXIT_GROUP, "exit_group", (self._cpu.regs[registers.RDI],))
        call = OpenCall(record, 0, self._slot[slots.CLOCK], time.perf_counter(), isolated=True, is_exit=True)
        state.call, state.bytes_mark = call, self._switch.executed()
        self._integrity.begins(state, call)
        if self._isolate(state, call):
            self._faults.admit_here(state)
