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
from thinbox.errors import InputError, MachineError
from thinbox.isolation import fault, pagetable
from thinbox.isolation.verdict import Access, AccessKind, Verdict
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.native import hook_address
from thinbox.session.consequence import Consequence
from thinbox.session.grants import Grants
from thinbox.session.guards import Guards
from thinbox.session.judge import COMPAT_KEY, Judge
from thinbox.session.prefault import Prefault
from thinbox.session.records import CallRecord, RunRecord
from thinbox.session.sites import Sites
from thinbox.session.tables import Tables
from thinbox.session.tasks import OpenCall, TaskState, Watches
from thinbox.session.teardown import Teardown
from thinbox.session.tenants import Isolation, Tenant
from thinbox.session.undo import Undo
from thinbox.session.views import Views, view_rule
from thinbox.syscalls.table import call_name

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.machine import Machine

_ARGUMENT_SLOTS = (slots.CALL_ARG0, slots.CALL_ARG1, slots.CALL_ARG2, slots.CALL_ARG3, slots.CALL_ARG4, slots.CALL_ARG5)
_NR_MASK = (1 << 32) - 1
_POOL_EMPTY = Verdict(granted=False, rule="pool", reason="thinbox has no page left for this tenant's page tables")


class Enforcer:
    """Watches one machine for its tenants, each call written into its tenant's record.

    `isolation` and `record` are those of the first tenant; `add_tenant` adds more.
    """

    def __init__(
        self, machine: "Machine", view: "KernelView", sites: Sites, isolation: Isolation, record: RunRecord
    ) -> None:
        self.machine, self.view, self.sites, self.record = machine, view, sites, record
        self.memory, self.cpu, self.slot = machine.memory, machine.cpu, machine.slot
        self.isolation = isolation
        self.watch = Watches()
        self.on_new_task: Callable[[int, int], None] = lambda _parent, _child: None
        self.tasks: dict[int, TaskState] = {}
        self.running: TaskState | None = None
        self.undo = Undo(machine, sites.undone_death) if isolation.on_violation == "undo" else None
        self.tables = Tables(self, undo=self.undo is not None)
        self.consequence = Consequence(self)
        self.grants, self.guards = Grants(self), Guards(self)
        self._views: Views | None = None
        self.tenants: dict[str, Tenant] = {}
        self.judge = self.add_tenant(isolation, record).judge
        machine.on_stop = self._after_stop
        self._install_hooks()

    @property
    def views(self) -> Views:
        """What hides tenants from each other; MachineError on a kernel that cannot tell owners of pages."""
        if self._views is None:
            self._views = Views(self)
        return self._views

    def add_tenant(self, isolation: Isolation, record: RunRecord) -> Tenant:
        """Watch one more tenant; its first task is named by `adopt_current`.

        Raises:
            InputError: there is a tenant of that name, or no such view.
        """
        if isolation.tenant in self.tenants:
            raise InputError(f"two tenants are called {isolation.tenant!r}")
        if isolation.on_violation == "undo" and self.undo is None:
            raise InputError("a tenant's calls can only be undone if the first tenant's are")
        judge = Judge(self, isolation.policy)
        judge.install()
        text_start, known = self.view.symbols.text_start, isolation.prefault
        prefault = Prefault(self.cpu, known, text_start) if known else None
        self.tenants[isolation.tenant] = tenant = Tenant(isolation, record, judge, prefault)
        if view_rule(isolation.view):
            self.views.use(tenant)
        return tenant

    def reset(self, record: RunRecord) -> None:
        """Begin again with `record`, after the machine was restored; what the policy granted for good stays."""
        self.record, self.tasks, self.running = record, {}, None
        self.tenants[self.isolation.tenant].record = record
        for tenant in self.tenants.values():
            tenant.memcg = 0
        self.tables.reset()
        self.consequence.reset()
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
        Teardown(self).install()
        self.guards.install()
        cpu.uc.ctl_flush_tb()

    # -- tasks --------------------------------------------------------------------------------------
    def adopt_current(self, name: str | None = None) -> TaskState:
        """Make the running task the first of tenant `name` (None: of the first tenant), and its cgroup the tenant's."""
        task, root = self.view.current, self.view.kernel_root
        tenant = self.tenants[self.isolation.tenant if name is None else name]
        if self._views is not None or len(self.tenants) > 1:
            self.views.adopt(tenant, task, root)
        self.running = self._add_task(task, root, tenant)
        return self.running

    def _add_task(self, task: int, root: int, tenant: Tenant) -> TaskState:
        state = TaskState(task, self.view.pid_of(task, root), tenant, bytes_mark=self._executed())
        self.tasks[task] = state
        return state

    def _executed(self) -> int:
        return self.slot[slots.CLOCK] - self.slot[slots.SLEPT]

    @property
    def kernel_root(self) -> int:
        """The kernel's own table now, also while an SCI table is active."""
        return self.slot[slots.KERNEL_ROOT] if self.slot[slots.ACTIVE] else self.view.kernel_root

    def _new_task(self) -> None:
        """`wake_up_new_task(p)`: a child of a tenant's task is the tenant's; it starts with no table (9)."""
        parent = self.tasks.get(self.view.current)
        if self.running is not None and parent is not None:
            child = self._add_task(self.cpu.regs[registers.RDI], self.kernel_root, parent.tenant)
            self.guards.born(child)
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
        if state.call is not None and self.consequence.left_unseen(state, state.call):
            return
        root, words, end = self.view.kernel_root, self.memory.quads, self.memory.guest_bytes
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
                self.consequence.end_as_planned(state, record, planned.death)
                return
        isolated, user_ip = wanted and not state.killed, words[(regs + self.view.ip_offset) >> 3]
        call = OpenCall(record, regs, self.slot[slots.CLOCK], time.perf_counter(), isolated, user_ip)
        state.call, state.bytes_mark = call, self._executed()
        if self.guards.begins(state, call):
            return
        if isolated:
            record.isolated, record.verdict = True, "granted"
            if state.root == 0 and not self.tables.make(state, root):
                access = Access(self.cpu.rip, AccessKind.FETCH, self.cpu.rip, None, 0, 0)
                self.consequence.kill(state, call, _POOL_EMPTY, access)
                self.cpu.jump(self.sites.death)
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
        if not (self._views is not None and self._views.ends(state, call)) and not self.guards.ends(state, call):
            self.close_call(state, call)

    def close_call(self, state: TaskState, call: OpenCall) -> None:
        """Rule 4 and 7: back to the kernel's table, and forget what the call was granted."""
        if call.isolated:
            self.grants.drain(state, call)
            self._end_brief()
            self.cpu.leave_table()
            self.slot[slots.SCI_ROOT] = 0
            self.slot[slots.RESUME_RSP] = 0
        self.watch.closed(state, call)
        self.grants.forget(call)
        if call.isolated and self.undo:
            self.undo.end()
        record = call.record
        record.code_bytes += self._executed() - state.bytes_mark
        record.virtual_ns = self.slot[slots.CLOCK] - call.entered_ns
        if call.isolated and not call.slept and call.granted_pages:
            state.tenant.record.fault_us.append((time.perf_counter() - call.entered_host_s) * 1e6 / call.granted_pages)
        state.call = None

    def isolated_calls(self) -> list[tuple[TaskState, OpenCall]]:
        """Every isolated call in progress, of running and sleeping tasks, its log drained."""
        running = self.running
        if running is not None and running.call is not None and running.call.isolated:
            self.grants.drain(running, running.call)
        return [(s, s.call) for s in self.tasks.values() if s.call is not None and s.call.isolated]

    # -- context switches -----------------------------------------------------------------------------
    def _switch_out(self) -> None:
        """`__switch_to_asm(prev, next)`: nobody else runs on this task's table (9)."""
        state = self.running
        if state is None:
            return
        call = state.call
        if call is not None:
            if self._views is not None and self._is_dead(state.task) and self._views.ends_dead(state, call):
                return  # it is undone, and this never was
            call.record.code_bytes += self._executed() - state.bytes_mark
            call.slept = True
            if call.isolated:
                self.grants.drain(state, call)
                call.resume_rsp, call.resume_rip = self.slot[slots.RESUME_RSP], self.slot[slots.RESUME_RIP]
                call.resume_block = (self.slot[slots.RESUME_BLOCK_START], self.slot[slots.RESUME_BLOCK_END])
                if self.undo:
                    self.undo.end()
                self.slot[slots.RESUME_RSP] = 0
                self._end_brief()
                self.cpu.leave_table()
                self.slot[slots.SCI_ROOT] = 0
            self.watch.paused(state, call)
        self.running = None

    def _switch_in(self) -> None:
        """`finish_task_switch(prev)`, run by the next task: back into its isolated call, if it is in one (9)."""
        previous = self.cpu.regs[registers.RDI]
        if previous in self.tasks:
            self._free_if_dead(previous)
        state = self.tasks.get(self.view.current)
        self.running = state
        if state is None or state.call is None:
            return
        state.bytes_mark = self._executed()
        call = state.call
        if call.isolated:
            self._use_table(state, call)
            if self._views is not None:
                self._views.recheck(call)
        self.watch.resumed(state, call)
        # Interrupted, or on an errand: its iretq, or the errand's end, goes back to the table.
        if call.isolated and call.resume_rsp == 0 and call.errand_rsp == 0:
            self.cpu.enter_table()
            self.admit_here(state)

    def admit_here(self, state: TaskState) -> None:
        """Judge the instruction the task goes on at: the start of `finish_task_switch`, or what follows an errand.

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
        access, verdict = state.tenant.judge.ask(state, call, vaddr, error, rip, resumed=resumed)
        hidden = None
        if self._views is not None and access.kind is not AccessKind.FETCH:
            hidden = self._views.check(state.tenant, vaddr, rip, is_write=access.kind is AccessKind.WRITE)
            if hidden is not None and not hidden.verdict.granted:
                self.consequence.of(state, call, hidden.verdict, access, hidden)
                return slots.REDIRECTED
        if verdict.granted:
            result = self._grant(state, vaddr, error, rip, brief=hidden is not None and hidden.is_brief)
            if result == fault.GRANTED:
                return slots.RETRY
            if result == fault.GUEST:
                return slots.DELIVER
            verdict = _POOL_EMPTY
        self.consequence.of(state, call, verdict, access)
        return slots.REDIRECTED

    def _grant(self, state: TaskState, vaddr: int, error: int, rip: int, *, brief: bool) -> int:
        if not brief:
            return self.cpu.grant_page(vaddr, error, rip)
        before = self.views.entry_before(state, vaddr)
        result = self.cpu.grant_page(vaddr, error, rip)
        if result == fault.GRANTED:
            self.views.make_brief(state, vaddr, before, rip)
        return result

    def _end_brief(self) -> None:
        if self._views is not None:
            self._views.end_brief()

    def _after_stop(self) -> None:
        """Between two runs of the CPU."""
        self._end_brief()
        self.consequence.after_stop()

    def _grant_unasked(self, vaddr: int, error: int, rip: int) -> int:
        """On the undo table the log or the pool was full: try again, or go on without undo, on the kernel's table."""
        result = self.cpu.grant_page(vaddr, error, rip)
        if result == fault.GUEST:
            return slots.DELIVER
        if result == fault.EXHAUSTED:
            self.slot[slots.UNDO] = 0
            self.cpu.leave_table()
        return slots.RETRY
