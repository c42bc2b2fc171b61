"""SCI from outside: follows the tenants' tasks and calls through the kernel, asks, and acts.

Why it exists: this is the kernel code of the proposal, run by thinbox at the watched instructions (`guest.sites`). What
may be mapped is decided in `isolation`; the switching of CR3 is in `machine.hooks`; here is when, and for whom.

Rules of this file (numbers are SCI's, docs/rules.md):
- A task's table is active only while that task runs inside its own isolated call (4, 9), or ends.
- Grants are cleared when the call ends, by whatever way (7); tables are freed when the task is dead (8).
- When thinbox cannot decide, it kills: an exhausted table pool is a verdict.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from thinbox.enforcement.call_path import CallPath, Parts
from thinbox.enforcement.call_switch import CallSwitch
from thinbox.enforcement.deferred_work import DeferredWork
from thinbox.enforcement.fault_handler import FaultHandler
from thinbox.enforcement.grants import Grants
from thinbox.enforcement.integrity import Integrity
from thinbox.enforcement.judge import Judge
from thinbox.enforcement.observers import Watches
from thinbox.enforcement.outside_work import OutsideWork
from thinbox.enforcement.prefault import Prefault
from thinbox.enforcement.shootdown import Shootdown
from thinbox.enforcement.tables import Tables
from thinbox.enforcement.target import Target
from thinbox.enforcement.tasks import TaskList, TaskState
from thinbox.enforcement.tenants import Isolation, Tenant
from thinbox.enforcement.undo import Undo
from thinbox.enforcement.views import Views
from thinbox.enforcement.violation_action import ViolationAction
from thinbox.enforcement.wall import Wall
from thinbox.errors import InputError
from thinbox.isolation import fault, pagetable
from thinbox.isolation.policies.live import Live
from thinbox.isolation.view_rules import view_rule
from thinbox.kernel.watched import find_watched
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.native import hook_address
from thinbox.records.run import RunRecord

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.guest.sites import Sites
    from thinbox.machine.machine import Machine


class Enforcer:
    """Watches one machine for its tenants (`add_tenant`), each call written into its tenant's record.

    `undo` is for tenants whose calls are to be rolled back: all of the machine's tables are made for it, or none.
    """

    def __init__(self, machine: "Machine", view: "KernelView", sites: "Sites", *, undo: bool = False) -> None:
        self.target = target = Target(machine, view, sites)
        self.machine, self.view, self.sites = machine, view, sites
        self.memory, self.cpu, self.slot = machine.memory, machine.cpu, machine.slot
        self.watch = Watches()
        self.on_new_task: Callable[[int, int], None] = lambda _parent, _child: None
        self.on_task_gone: Callable[[TaskState], None] = lambda _state: None
        self.task_list = tasks = TaskList()
        self.undo = Undo(machine, sites.undone_death) if undo else None
        self.tables = Tables(target, tasks, undo=undo)
        self.grants = Grants(target, self.tables, self.watch, undo=undo)
        self.switch = CallSwitch(target, self.grants, self.watch, self.undo)
        self.violation_action = ViolationAction(target, tasks, self.switch, self.undo)
        self.faults = FaultHandler(target, tasks, self.grants, self.switch, self.violation_action)
        self.integrity = Integrity(target, tasks, self.grants)
        self.outside = OutsideWork(target, tasks)
        self.wall: Wall | None = None
        self._helpers: dict[int, Tenant] = {}
        """For whom the kernel starts a program, by the address of its `struct subprocess_info`."""
        self._mm_at = target.view.facts.types.offset_of("task_struct", "mm")
        self._shootdown = Shootdown(target, tasks)
        parts = (self.tables, self.grants, self.switch, self.faults, self.violation_action)
        self._path = CallPath(target, tasks, Parts(*parts, self.integrity, self.outside, self.watch))
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
        if self.switch.views is None:
            self.switch.views = Views(self.target, self.task_list, self.grants, self.undo)
            work = DeferredWork(self.target, self.task_list)
            for vaddr in work.starts:
                self.cpu.add_code_hook(vaddr, partial(self._deferred_work_begins, work, vaddr))
            for vaddr in work.ends:
                self.cpu.add_code_hook(vaddr, partial(self._deferred_work_ends, work))
            self.wall = Wall(self.target, self.task_list, self.switch.views, self.violation_action)
        return self.switch.views

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
        prefault = Prefault(self.target, known, text_start) if known else None
        end_judge = Judge(self.target, Live())
        end_judge.install()
        self.tenants[isolation.tenant] = tenant = Tenant(isolation, record, judge, prefault, end_judge=end_judge)
        if view_rule(isolation.view):
            self.views.use_of(tenant, isolation.view)
        return tenant

    def reset(self) -> None:
        """Begin again after the machine was restored; what the policies granted for good stays, and the records."""
        self.task_list.clear()
        self._helpers.clear()
        for tenant in self.tenants.values():
            tenant.memcg = 0
        self.tables.reset()
        self.grants.reset()
        self.violation_action.reset()
        self.integrity.reset()
        if self.switch.views is not None:
            self.switch.views.reset()
        if self.wall is not None:
            self.wall.reset()
        for slot in (slots.ACTIVE, slots.SCI_ROOT, slots.KERNEL_ROOT, slots.RESUME_RSP, slots.LOG_COUNT):
            self.slot[slot] = 0

    def _install_hooks(self) -> None:
        cpu, sites = self.cpu, self.sites
        cpu.set_callback(slots.ON_JUDGE, self.faults.judge)
        for vaddr, function in (self._path.places | self.outside.places).items():
            cpu.add_code_hook(vaddr, function)
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
        for vaddr in sites.range_teardowns:
            cpu.add_code_hook(vaddr, partial(self._drop, self._shootdown.of_range))
        for vaddr in sites.sized_teardowns:
            cpu.add_code_hook(vaddr, partial(self._drop, self._shootdown.of_sized_range))
        for vaddr in sites.whole_teardowns:
            cpu.add_code_hook(vaddr, partial(self._drop, self._shootdown.of_changes))
        cpu.add_code_hook(sites.user_teardown, self._sync_user_half)
        watched = find_watched(self.view.facts)
        for vaddr in watched.programs:
            cpu.add_code_hook(vaddr, self._program_starts)
        for vaddr in watched.programs_run:
            cpu.add_code_hook(vaddr, self._program_runs)
        cpu.uc.ctl_flush_tb()

    # -- tasks --------------------------------------------------------------------------------------
    def adopt_current(self, name: str) -> TaskState:
        """Make the running task the first of tenant `name`, and its cgroup the tenant's."""
        task, root = self.view.current, self.view.kernel_root
        tenant = self.tenants[name]
        if self.switch.views is not None or len(self.tenants) > 1:
            self.views.adopt(tenant, task, root)
        state = self._add_task(task, root, tenant)
        self._runs(state)
        self.outside.begins()
        return state

    def _runs(self, state: TaskState | None) -> None:
        """The CPU runs a tenant's task from here on, or somebody else's."""
        self.task_list.running = state
        if self.wall is not None:
            self.wall.runs(state)

    def disown_current(self) -> None:
        """The running task, between two calls, is no tenant's after all: its program could not be executed."""
        state = self.tasks.pop(self.view.current)
        self.integrity.forget(state)
        self.tables.free(state)
        self._runs(None)

    def _add_task(self, task: int, root: int, tenant: Tenant) -> TaskState:
        state = TaskState(task, self.view.pid_of(task, root), tenant, bytes_mark=self.switch.executed())
        self.tasks[task] = state
        return state

    def _new_task(self) -> None:
        """`wake_up_new_task(p)`: a child of a tenant's task is the tenant's; it starts with no table (9)."""
        parent = self.tasks.get(self.view.current)
        if self.running is None or parent is None:
            return
        child = self._add_task(self.cpu.regs[registers.RDI], self.kernel_root, parent.tenant)
        child.is_helper = parent.is_helper
        found = self.integrity.born(child, parent)
        self.on_new_task(parent.task, child.task)
        if found is not None and parent.call is not None:
            self.violation_action.act_on(parent, parent.call, (found,))

    def _is_dead(self, task: int) -> bool:
        return bool(self.view.read_u32(task + self.view.state_offset, self.kernel_root) & self.view.dead_state)

    def _bury_if_dead(self, task: int) -> None:
        """Rule 8: a dead task has left the CPU for the last time; its table goes back to the pool."""
        if self._is_dead(task):
            state = self.tasks.pop(task)
            self.switch.bury(state)
            self.integrity.forget(state)
            self.tables.free(state)
            self.on_task_gone(state)

    # -- programs and context switches ---------------------------------------------------------------
    def _program_starts(self) -> None:
        """`call_usermodehelper_exec(info, wait)`."""
        state = self.running
        if state is None or state.task != self.view.current:
            if len(self.tenants) == 1:
                # Nobody else can have had the kernel start it, from a thread of its own.
                (tenant,) = self.tenants.values()
                self._helpers[self.cpu.regs[registers.RDI]] = tenant
                self.outside.program(tenant, self.integrity.program())
            else:
                # One that never ran may have left this address behind.
                self._helpers.pop(self.cpu.regs[registers.RDI], None)
            return
        self._helpers[self.cpu.regs[registers.RDI]] = state.tenant
        self.outside.program(state.tenant, self.integrity.program())
        if state.call is None:
            return
        if state.call.isolated:
            self.grants.drain(state, state.call)
        self.violation_action.act_on(state, state.call, self.integrity.starts(state, state.call))

    def _program_runs(self) -> None:
        """`call_usermodehelper_exec_async(info)`, the first that the program's new task does: it is the tenant's from
        here on, for whom the kernel starts it."""
        tenant = self._helpers.pop(self.cpu.regs[registers.RDI], None)
        task = self.view.current
        if tenant is None or task in self.tasks:
            return
        state = self._add_task(task, self.kernel_root, tenant)
        state.is_helper, state.has_program = True, False
        self._runs(state)
        self.outside.begins()

    def _switch_out(self) -> None:
        """`__switch_to_asm(prev, next)`: nobody else runs on this task's table (9)."""
        state = self.running
        if state is None:
            return
        if not state.has_program:
            # Looked at before anybody else runs, who could take it away again.
            state.has_program = bool(self.view.read_u64(state.task + self._mm_at, self.kernel_root))
        call = state.call
        if call is not None:
            if self.switch.views is not None and self._is_dead(state.task):
                seen = self.switch.views.ends(state, call, is_dead=True)
                if seen is not None and self.violation_action.of_dead(state, call, seen[1], seen[0]):
                    return  # it is undone, and this never was
            if call.isolated:
                self.grants.drain(state, call)
                if self.violation_action.act_on(state, call, self.integrity.pauses(state, call)):
                    return
            self.switch.sleep(state, call)
        self.outside.ends(state)
        self._runs(None)

    def _switch_in(self) -> None:
        """`finish_task_switch(prev)`, run by the next task: back into its isolated call, if it is in one (9)."""
        previous = self.cpu.regs[registers.RDI]
        if previous in self.tasks:
            self._bury_if_dead(previous)
        state = self.tasks.get(self.view.current)
        self._runs(state)
        if state is None:
            return
        self.outside.begins()
        if state.call is not None and self.switch.wake(state, state.call):
            self.faults.admit_here(state)

    # -- work that is not the call's own ------------------------------------------------------------------
    def _deferred_work_begins(self, work: DeferredWork, function: int) -> None:
        found = work.begins(function)
        if found is not None:
            self.switch.begin_deferred_work(*found)

    def _deferred_work_ends(self, work: DeferredWork) -> None:
        found = work.is_back()
        if found is not None:
            state, call = found
            self.switch.end_deferred_work(call)
            self.faults.admit_here(state)

    # -- mappings that go away ----------------------------------------------------------------------------
    def _drop(self, find: Callable[[], Iterable[np.ndarray]]) -> None:
        """What the kernel unmaps goes from every table; the one in use is reloaded, for the engine caches."""
        if not self.tasks:
            return
        running, dropped = self.running, False
        if running is not None and running.call is not None and running.call.isolated:
            self.grants.drain(running, running.call)
        for rows in find():
            self.memory.words[rows[:, fault.LOG_INDEX]] = 0
            dropped = True
        if dropped and self.slot[slots.ACTIVE]:
            self.cpu.load_cr3(self.cpu.cr3)

    def _sync_user_half(self) -> None:
        """`flush_tlb_mm_range`: user page-table pages may be freed behind it; follow the kernel's table."""
        if self.slot[slots.UNDO_MODE]:
            self._drop(self._shootdown.of_user_half)
        elif self.slot[slots.ACTIVE]:
            words, end = self.memory.words, self.memory.guest_bytes
            pagetable.sync_user_half(words, end, self.slot[slots.SCI_ROOT], self.slot[slots.KERNEL_ROOT])
            self.cpu.load_cr3(self.slot[slots.SCI_ROOT])

    def _after_stop(self) -> None:
        """Between two runs of the CPU."""
        self.grants.end_one_block()
        self.violation_action.after_stop()
