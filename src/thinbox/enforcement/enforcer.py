"""SCI from outside: enters and leaves tables, judges faults, follows tasks, kills.

Why it exists: this is the kernel code of the proposal, run by thinbox at the watched instructions
(`sites`). What may be mapped is decided in `isolation`; the switching of CR3 is in `machine.hooks`; here is
when, and for whom.

Rules of this file (numbers are SCI's, docs/rules.md):
- A task's table is active only while that task runs inside its own isolated call (4, 9).
- Grants are cleared when the call ends, by whatever way (7); tables are freed when the task is dead (8).
- When thinbox cannot decide, it kills: an exhausted table pool is a verdict.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import U64, to_signed
from thinbox.enforcement.call_switch import CallSwitch
from thinbox.enforcement.grants import Grants
from thinbox.enforcement.integrity import Integrity
from thinbox.enforcement.judge import COMPAT_KEY, Judge
from thinbox.enforcement.observers import Watches
from thinbox.enforcement.open_call import OpenCall
from thinbox.enforcement.prefault import Prefault
from thinbox.enforcement.shootdown import Shootdown
from thinbox.enforcement.tables import Tables
from thinbox.enforcement.target import Target
from thinbox.enforcement.tasks import TaskList, TaskState
from thinbox.enforcement.tenants import Isolation, Tenant
from thinbox.enforcement.undo import Undo
from thinbox.enforcement.views import Views
from thinbox.enforcement.violation_action import ViolationAction
from thinbox.errors import InputError, MachineError
from thinbox.guest.sites import Sites
from thinbox.isolation import fault, pagetable
from thinbox.isolation.verdict import Access, AccessKind, Verdict
from thinbox.isolation.view_rules import view_rule
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.native import hook_address
from thinbox.records.run import CallRecord, RunRecord
from thinbox.syscalls.table import call_name

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.machine import Machine

_ARGUMENT_SLOTS = (slots.CALL_ARG0, slots.CALL_ARG1, slots.CALL_ARG2, slots.CALL_ARG3, slots.CALL_ARG4, slots.CALL_ARG5)
_NR_MASK = (1 << 32) - 1
_POOL_EMPTY = Verdict(granted=False, rule="pool", reason="thinbox has no page left for this tenant's page tables")


class Enforcer:
    """Watches one machine for its tenants (`add_tenant`), each call written into its tenant's record.

    `undo` is for tenants whose calls are to be rolled back: all of the machine's tables are made for it, or none.
    """

    def __init__(self, machine: "Machine", view: "KernelView", sites: Sites, *, undo: bool = False) -> None:
        self.target = target = Target(machine, view, sites)
        self.machine, self.view, self.sites = machine, view, sites
        self.memory, self.cpu, self.slot = machine.memory, machine.cpu, machine.slot
        self.watch = Watches()
        self.on_new_task: Callable[[int, int], None] = lambda _parent, _child: None
        self.task_list = TaskList()
        self.undo = Undo(machine, sites.undone_death) if undo else None
        self.tables = Tables(target, self.task_list, undo=undo)
        self.grants = Grants(target, self.tables, self.watch, undo=undo)
        self.switch = CallSwitch(target, self.grants, self.watch, self.undo)
        self.violation_action = ViolationAction(target, self.task_list, self.switch, self.grants, self.undo)
        self.integrity = Integrity(target, self.task_list)
        self._views: Views | None = None
        machine.on_stop = self._after_stop
        self._install_hooks()

    @property
    def tasks(self) -> dict[int, TaskState]:
        """The tenants' tasks by task_struct."""
        return self.task_list.tasks

    @property
    def running(self) -> TaskState | None:
        """The tenants' task on the CPU, if it is one's."""
        return self.task_list.running

    @property
    def tenants(self) -> dict[str, Tenant]:
        """The tenants by name."""
        return self.task_list.tenants

    @property
    def kernel_root(self) -> int:
        """The kernel's own table now, also while an SCI table is active."""
        return self.target.kernel_root

    @property
    def views(self) -> Views:
        """What hides tenants from each other; MachineError on a kernel that cannot tell owners of pages."""
        if self._views is None:
            self._views = Views(self.target, self.task_list, self.grants, self.undo, self.admit_here)
        return self._views

    def add_tenant(self, isolation: Isolation, record: RunRecord) -> Tenant:
        """Watch one more tenant; its first task is named by `adopt_current`.

        Raises:
            InputError: there is a tenant of that name, no such view, or undo is wanted and not made for.
        """
        if isolation.tenant in self.tenants:
            raise InputError(f"two tenants are called {isolation.tenant!r}")
        if isolation.on_violation == "undo" and self.undo is None:
            raise InputError(f"tenant {isolation.tenant} wants undo, and this guest is not made for it")
        judge = Judge(self.target, isolation.policy)
        judge.install()
        text_start, known = self.view.symbols.text_start, isolation.prefault
        prefault = Prefault(self.cpu, known, text_start) if known else None
        self.tenants[isolation.tenant] = tenant = Tenant(isolation, record, judge, prefault)
        if view_rule(isolation.view):
            self.views.use(tenant)
        return tenant

    def reset(self) -> None:
        """Begin again after the machine was restored; what the policies granted for good stays, and the records."""
        self.task_list.clear()
        for tenant in self.tenants.values():
            tenant.memcg = 0
        self.tables.reset()
        self.grants.reset()
        self.violation_action.reset()
        if self._views is not None:
            self._views.reset()
        for slot in (slots.ACTIVE, slots.SCI_ROOT, slots.KERNEL_ROOT, slots.RESUME_RSP, slots.LOG_COUNT):
            self.slot[slot] = 0

    def _install_hooks(self) -> None:
        cpu, sites = self.cpu, self.sites
        cpu.set_callback(slots.ON_JUDGE, self._judge)
        for entry, name in sites.entries.items():
            cpu.add_code_hook(entry, self._enter if name == "do_syscall_64" else self._enter_compat)
        for vaddr in sites.returns:
            cpu.add_code_hook(vaddr, self._leave)
        cpu.add_native_hook(sites.iretq, hook_address("on_iretq"))
        for vaddr in sites.cr3_written:
            cpu.add_native_hook(vaddr, hook_address("on_cr3_written"))
        for vaddr, register in sites.cr3_read:
            pair = np.array([cpu.core.ctypes.data, register], dtype=np.int64)
            cpu.add_native_hook(vaddr, hook_address("on_cr3_read"), cpu.keep_array(pair))
        cpu.add_code_hook(sites.switch_out, self._switch_out)
        for vaddr in sites.switch_in:
            cpu.add_code_hook(vaddr, self._switch_in)
        cpu.add_code_hook(sites.new_task, self._new_task)
        Shootdown(self.target, self.task_list, self.grants).install()
        self.integrity.install(self.violation_action.refuse_here)
        cpu.uc.ctl_flush_tb()

    # -- tasks --------------------------------------------------------------------------------------
    def adopt_current(self, name: str) -> TaskState:
        """Make the running task the first of tenant `name`, and its cgroup the tenant's."""
        task, root = self.view.current, self.view.kernel_root
        tenant = self.tenants[name]
        if self._views is not None or len(self.tenants) > 1:
            self.views.adopt(tenant, task, root)
        self.task_list.running = state = self._add_task(task, root, tenant)
        return state

    def disown_current(self) -> None:
        """The running task, between two calls, is no tenant's after all: its program could not be executed."""
        state = self.tasks.pop(self.view.current)
        self.tables.free(state)
        self.task_list.running = None

    def _add_task(self, task: int, root: int, tenant: Tenant) -> TaskState:
        state = TaskState(task, self.view.pid_of(task, root), tenant, bytes_mark=self.switch.executed())
        self.tasks[task] = state
        return state

    def _new_task(self) -> None:
        """`wake_up_new_task(p)`: a child of a tenant's task is the tenant's; it starts with no table (9)."""
        parent = self.tasks.get(self.view.current)
        if self.running is not None and parent is not None:
            child = self._add_task(self.cpu.regs[registers.RDI], self.kernel_root, parent.tenant)
            self.integrity.born(child)
            self.on_new_task(parent.task, child.task)

    # -- enter and leave ------------------------------------------------------------------------------
    def _enter(self) -> None:
        if self.running is not None:
            nr = self.slot[slots.CALL_NR]
            self._open_call(nr, call_name(nr) if 0 <= nr < 1 << 31 else f"#{nr}")

    def _enter_compat(self) -> None:
        if self.running is not None:
            nr = self.slot[slots.CALL_NR] & 0xFFFFFFFF
            self._open_call(nr, f"i386#{nr}")

    def _open_call(self, nr: int, name: str) -> None:
        state = self.running
        if state is None or state.task != self.view.current:
            return
        if state.call is not None and state.call.entered_ns == self.slot[slots.CLOCK]:
            return  # its first instruction faulted (with undo, the stack is read-only until then) and runs again
        if state.call is not None and self.violation_action.left_unseen(state, state.call):
            return
        root, words, end = self.view.kernel_root, self.memory.quads, self.memory.total_bytes
        args = tuple(self.slot[slot] & U64 for slot in _ARGUMENT_SLOTS)
        isolation, calls = state.tenant.isolation, state.tenant.record.calls
        record = CallRecord(len(calls), isolation.tenant, state.pid, nr, name, args)
        calls.append(record)
        regs = paging.translate(words, end, root, to_signed(self.cpu.regs[registers.RDI]))
        wanted = isolation.isolates_compat if name.startswith("i386#") else isolation.isolates(nr)
        planned, state.planned = state.planned, None
        if planned is not None:
            wanted, record.disposition, record.plan_line = planned.isolated, planned.disposition, planned.line
            if planned.death is not None:
                self.violation_action.end_as_planned(state, record, planned.death)
                return
        isolated, user_ip = wanted and not state.killed, words[(regs + self.view.ip_offset) >> 3]
        call = OpenCall(record, regs, self.slot[slots.CLOCK], time.perf_counter(), isolated, user_ip)
        state.call, state.bytes_mark = call, self.switch.executed()
        found = self.integrity.begins(state, call)
        if found is not None:
            self._kill_here(state, call, found[0], Access(found[1], AccessKind.WRITE, self.cpu.rip, None, 0, 0))
            return
        if isolated:
            record.isolated, record.verdict = True, "granted"
            if state.root == 0 and not self.tables.make(state, root):
                access = Access(self.cpu.rip, AccessKind.FETCH, self.cpu.rip, None, 0, 0)
                self._kill_here(state, call, _POOL_EMPTY, access)
                return
            self._use_table(state, call)
            if self.undo and isolation.on_violation == "undo":
                self.undo.begin()
            self.cpu.enter_table()
            if state.tenant.prefault:
                state.tenant.prefault.enter(name)
        self.watch.opened(state, call)

    def _use_table(self, state: TaskState, call: OpenCall) -> None:
        """Tell the compiled hooks whose call this is, and how it goes on if it was interrupted."""
        slot = self.slot
        slot[slots.SCI_ROOT] = state.root
        slot[slots.CALL_KEY] = call.record.nr & _NR_MASK | (COMPAT_KEY if call.record.name.startswith("i386#") else 0)
        slot[slots.RESUME_RSP], slot[slots.RESUME_RIP] = call.resume_rsp, call.resume_rip
        slot[slots.RESUME_BLOCK_START], slot[slots.RESUME_BLOCK_END] = call.resume_block
        state.tenant.judge.use()
        if self._views is not None:
            self._views.use(state.tenant)

    def _leave(self) -> None:
        state = self.running
        if state is None or state.call is None or state.task != self.view.current:
            return
        call = state.call
        call.record.ret = self.view.result_of(call.regs_paddr, call.user_ip, call.record.name)
        seen = None if self._views is None else self._views.ends(state, call)
        if seen is not None:
            hidden, vaddr = seen
            self.violation_action.refuse_here(state, call, hidden.verdict, vaddr, hidden)
            return
        found = self.integrity.ends(state, call)
        if found is not None:
            self.violation_action.refuse_here(state, call, *found)
            return
        self.switch.close(state, call)

    def _kill_here(self, state: TaskState, call: OpenCall, verdict: Verdict, access: Access) -> None:
        """From inside a code hook: the task ends here."""
        self.violation_action.kill(state, call, verdict, access)
        self.cpu.jump(self.sites.death)

    def isolated_calls(self) -> list[tuple[TaskState, OpenCall]]:
        """Every isolated call in progress, of running and sleeping tasks, its log drained."""
        running = self.running
        if running is not None and running.call is not None and running.call.isolated:
            self.grants.drain(running, running.call)
        return self.task_list.isolated()

    # -- context switches -----------------------------------------------------------------------------
    def _switch_out(self) -> None:
        """`__switch_to_asm(prev, next)`: nobody else runs on this task's table (9)."""
        state = self.running
        if state is None:
            return
        call = state.call
        if call is not None:
            if self._views is not None and self._is_dead(state.task):
                seen = self._views.ends(state, call, is_dead=True)
                if seen is not None and self.violation_action.of_dead(state, call, seen[1], seen[0]):
                    return  # it is undone, and this never was
            call.record.code_bytes += self.switch.executed() - state.bytes_mark
            call.slept = True
            if call.isolated:
                self.grants.drain(state, call)
                call.resume_rsp, call.resume_rip = self.slot[slots.RESUME_RSP], self.slot[slots.RESUME_RIP]
                call.resume_block = (self.slot[slots.RESUME_BLOCK_START], self.slot[slots.RESUME_BLOCK_END])
                if self.undo:
                    self.undo.end()
                self.switch.leave(state, call)
            self.watch.paused(state, call)
        self.task_list.running = None

    def _switch_in(self) -> None:
        """`finish_task_switch(prev)`, run by the next task: back into its isolated call, if it is in one (9)."""
        previous = self.cpu.regs[registers.RDI]
        if previous in self.tasks:
            self._free_if_dead(previous)
        state = self.tasks.get(self.view.current)
        self.task_list.running = state
        if state is None or state.call is None:
            return
        state.bytes_mark = self.switch.executed()
        call = state.call
        if call.isolated:
            self._use_table(state, call)
            if self._views is not None:
                self._views.recheck(call)
        self.watch.resumed(state, call)
        # Interrupted, or on deferred work: its iretq, or the deferred work's end, goes back to the table.
        if call.isolated and call.resume_rsp == 0 and call.deferred_rsp == 0:
            self.cpu.enter_table()
            self.admit_here(state)

    def admit_here(self, state: TaskState) -> None:
        """Judge the instruction the task goes on at: the start of `finish_task_switch`, or what follows deferred work.

        The engine has fetched it already, on the kernel's table, so no fault will ask; the next block of the
        function would be the first to fault, and look like a jump into its middle.
        """
        rip = self.cpu.rip
        if pagetable.is_executable(self.memory.quads, self.memory.total_bytes, state.root, to_signed(rip)):
            return
        if self._judge(to_signed(rip), paging.FAULT_FETCH, to_signed(rip), resumed=True) == slots.REDIRECTED:
            self.cpu.jump(self.sites.death)

    def _is_dead(self, task: int) -> bool:
        return bool(self.view.read_u32(task + self.view.state_offset, self.kernel_root) & self.view.dead_state)

    def _free_if_dead(self, task: int) -> None:
        """Rule 8: a dead task has left the CPU for the last time; its table goes back to the pool."""
        if not self._is_dead(task):
            return
        state = self.tasks.pop(task)
        if state.call is not None:
            call, state.call = state.call, None
            call.record.virtual_ns = self.slot[slots.CLOCK] - call.entered_ns
        self.tables.free(state)

    # -- judging and killing ----------------------------------------------------------------------------
    def _judge(self, vaddr: int, error: int, rip: int, *, resumed: bool = False) -> int:
        """Called by the fault hook when the policy has to be asked."""
        state = self.running
        if state is None or state.call is None:
            raise MachineError("a fault on an SCI table outside an isolated call")
        call = state.call
        self.grants.drain(state, call)
        if self.slot[slots.ACTIVE] == slots.ON_UNDO:
            return self._grant_unasked(vaddr, error, rip)
        access, verdict = state.tenant.judge.ask(state.root, call, vaddr, error, rip, resumed=resumed)
        hidden = None
        if self._views is not None and access.kind is not AccessKind.FETCH:
            hidden = self._views.check(state.tenant, vaddr, rip, is_write=access.kind is AccessKind.WRITE)
            if hidden is not None and not hidden.verdict.granted:
                self.violation_action.of(state, call, hidden.verdict, access, hidden)
                return slots.REDIRECTED
        if verdict.granted:
            result = self._grant(state, vaddr, error, rip, one_block=hidden is not None and hidden.is_one_block)
            if result == fault.GRANTED:
                return slots.RETRY
            if result == fault.GUEST:
                return slots.DELIVER
            verdict = _POOL_EMPTY
        self.violation_action.of(state, call, verdict, access)
        return slots.REDIRECTED

    def _grant(self, state: TaskState, vaddr: int, error: int, rip: int, *, one_block: bool) -> int:
        if not one_block:
            return self.cpu.grant_page(vaddr, error, rip)
        before = self.grants.entry_before(state, vaddr)
        result = self.cpu.grant_page(vaddr, error, rip)
        if result == fault.GRANTED:
            self.grants.make_one_block(state, vaddr, before, rip)
        return result

    def _after_stop(self) -> None:
        """Between two runs of the CPU."""
        self.grants.end_one_block()
        self.violation_action.after_stop()

    def _grant_unasked(self, vaddr: int, error: int, rip: int) -> int:
        """On the undo table the log or the pool was full: try again, or go on without undo, on the kernel's table."""
        result = self.cpu.grant_page(vaddr, error, rip)
        if result == fault.GUEST:
            return slots.DELIVER
        if result == fault.EXHAUSTED:
            self.slot[slots.UNDO] = 0
            self.cpu.leave_table()
        return slots.RETRY
