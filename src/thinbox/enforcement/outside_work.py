"""Kernel work done for a tenant outside its system calls: counted and named, so that no record hides it.

Why it exists: an isolated call is not all the kernel does for a tenant. Its page faults, interrupts, signals and ends
run outside, io_uring works in threads of its own, and what a call puts off (work items, timers, RCU) runs later, for
nobody in particular. None of that is judged by a policy unless a sentence here says so.

Rules of this file:
- What is counted in the tenant's context is exact. What a call puts off is counted when it is put off.
- Operations of io_uring are no calls, so the tenant's plan is asked about them here.
- Names are bounded: past `MOST_NAMES` different ones the rest is counted as "others".

Source: Linux 6.1 kernel/entry/common.c, kernel/signal.c, kernel/task_work.c, io_uring/io_uring.c, kernel/workqueue.c,
kernel/time/timer.c, kernel/time/hrtimer.c, kernel/rcu/tree.c, kernel/umh.c.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from thinbox.address import U64, to_signed
from thinbox.kernel.io_uring import find_operation
from thinbox.kernel.task_struct import find_task_struct
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.native import hook_address
from thinbox.syscalls.io_uring import operation_name

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList, TaskState
    from thinbox.enforcement.tenants import Tenant
    from thinbox.kernel.io_uring import OperationShape
    from thinbox.records.run import RunRecord

MOST_NAMES = 64
IN_USER_MODE = (
    ("page faults", slots.COUNT_USER_FAULTS),
    ("exceptions", slots.COUNT_USER_EXCEPTIONS),
    ("interrupts", slots.COUNT_USER_INTERRUPTS),
)
"""What interrupted the tenant's own code: counted by the compiled hooks."""
PUT_OFF = (
    ("work items put off", ("__queue_work",)),
    ("timers put off", ("__mod_timer", "mod_timer", "add_timer", "hrtimer_start_range_ns")),
    ("RCU callbacks put off", ("call_rcu", "__call_rcu_common")),
)
"""What is run later, by whoever is on the CPU then: counted at the functions that put it off."""
_POLLER = b"iou-sqp-"
"""What the kernel calls the thread of a polling ring (io_uring/sqpoll.c); workers are `iou-wrk-N`."""


def count_outside(record: "RunRecord", name: str, times: int) -> None:
    """Note in the record that `name` was done `times` outside its calls."""
    outside = record.outside
    if name not in outside and len(outside) >= MOST_NAMES:
        name = "others"
    outside[name] = outside.get(name, 0) + times


class OutsideWork:
    """Counts for the tenants of one machine, into their records."""

    def __init__(self, target: "Target", tasks: "TaskList") -> None:
        self._target, self._tasks, self._slot = target, tasks, target.slot
        self._name_at = find_task_struct(target.view.facts).name_at
        self._operation = find_operation(target.view.facts)
        self._put_off = np.zeros(len(PUT_OFF), dtype=np.int64)
        self._marks: tuple[int, ...] = ()
        address = target.cpu.keep_array(self._put_off)
        for row, (_name, functions) in enumerate(PUT_OFF):
            for function in functions:
                for vaddr in target.view.symbols.addresses_with_variants(function):
                    target.cpu.add_native_hook(vaddr, hook_address("on_count"), address + 8 * row)

    @property
    def places(self) -> "dict[int, Callable[[], None]]":
        """What is to be called at which instruction."""
        find = self._target.view.symbols.addresses_with_variants
        found: dict[int, Callable[[], None]] = dict.fromkeys(find("get_signal"), self._signal)
        found |= dict.fromkeys(find("task_work_run"), self._task_work)
        if self._operation is not None:
            found |= dict.fromkeys(find("io_issue_sqe"), partial(self._io_uring, self._operation))
        return found

    # -- while a tenant's task is on the CPU --------------------------------------------------------------
    def _counters(self) -> tuple[int, ...]:
        return (*(self._slot[slot] for _name, slot in IN_USER_MODE), *self._put_off.tolist())

    def begins(self) -> None:
        """A tenant's task comes onto the CPU."""
        self._marks = self._counters()

    def ends(self, state: "TaskState") -> None:
        """The task leaves the CPU, or the run ends: what happened since `begins` was for its tenant."""
        names = (*(name for name, _slot in IN_USER_MODE), *(name for name, _functions in PUT_OFF))
        now = self._counters()
        for name, before, after in zip(names, self._marks, now, strict=False):
            if after > before:
                self.count(state, name, after - before)
        self._marks = now

    def count(self, state: "TaskState", name: str, times: int = 1) -> None:
        """Note that something was done for the task's tenant outside its calls."""
        count_outside(state.tenant.record, name, times)

    # -- at the kernel's functions ------------------------------------------------------------------------
    def _outside(self) -> "TaskState | None":
        """The tenant's task that runs, if it is in no call."""
        state = self._tasks.running
        return None if state is None or state.call is not None else state

    def _signal(self) -> None:
        state = self._outside()
        if state is not None:
            self.count(state, "looks for signals")

    def _task_work(self) -> None:
        state = self._outside()
        if state is not None:
            self.count(state, "task work")

    def _io_uring(self, operation: "OperationShape") -> None:
        """`io_issue_sqe(req, issue_flags)`: in a call it is the call's; in a thread of the kernel's it is outside."""
        view, word, root = self._target.view, self._target.memory.word_at, self._target.kernel_root
        request = self._target.cpu.regs[registers.RDI]
        state = self._tasks.running
        if state is None and operation.task_at is not None:
            # Before 5.12 workers are no threads of the process.
            state = self._tasks.tasks.get(word(root, request + operation.task_at))
        if state is None:
            return
        at = request + operation.opcode_at
        opcode = word(root, at & ~7) >> 8 * (at & 7) & 0xFF
        name, where = operation_name(opcode), "in calls"
        if state.call is None:
            name_at = view.current + self._name_at
            thread = self._target.memory.read_virtual(root, to_signed(name_at & U64), len(_POLLER))
            where = "sqpoll" if thread == _POLLER else "worker"
        gate = state.tenant.gate
        error = 0 if gate is None else gate.refuses_operation(state.pid, name)
        if error:
            # As if the operation had failed so: io_uring reports a negative result in the ring of completions.
            view.return_at_once(-error)
            where = "refused"
        self.count(state, f"io_uring {where}: {name}")

    @staticmethod
    def program(tenant: "Tenant", path: bytes) -> None:
        """The kernel starts a program (`call_usermodehelper_exec`) for the tenant, which may have chosen its name."""
        shown = "".join(chr(byte) if 0x20 < byte < 0x7F else f"\\x{byte:02x}" for byte in path[:64])
        count_outside(tenant.record, f"program started by the kernel: {shown}", 1)
