"""When a guest is given up: a call killed as by an oops keeps its locks, and somebody waits for one for ever.

Why it exists: `--on-violation oops` kills as the kernel itself would, and leaves the wounds an oops leaves. The dying
task may need a lock it holds; another may spin for it, or sleep and never be woken. Then nothing ends any more.

Rules of this file:
- Nothing is given up unless a task was killed and not undone.
- Where a task's very end was refused, nobody is told of it: whoever waits for it waits for ever. Only its own tenant
  waits for it; while others have tasks, which may sleep as long as they like, nothing is given up for that.
- Where a lock was lost that is taken with interrupts off, the CPU runs and takes no interrupt any more.
- A call that begins, a task that comes or goes, and user code on the CPU are signs of life, and begin the wait anew.
"""

from typing import TYPE_CHECKING

from thinbox.isolation.verdict import PLANNED, Violation

if TYPE_CHECKING:
    from thinbox.enforcement.target import Target
    from thinbox.enforcement.tasks import TaskList

DEATH_LIMIT_NS = 10_000_000_000
"""Virtual time a killed task may take to end, and a task may wait uninterruptibly without a sign of life."""
SPIN_LIMIT_NS = 2_000_000_000
"""Virtual time the kernel may run, for a tenant or without an interrupt, without a sign of life: 2 GB of code (bytes
are ns), of one call."""
_UNINTERRUPTIBLE, _TRACED, _WAKEKILL = 2, 8, 0x100
"""Bits of task_struct.__state (include/linux/sched.h). A task that waits killably (vfork) waits for no lock."""
_USER = 3


class HangDetector:
    """Looks, between stretches of CPU, whether the guest of one target still lives."""

    def __init__(self, target: "Target", tasks: "TaskList") -> None:
        self._target, self._tasks = target, tasks
        self._seen: tuple[int, int] = (0, 0)
        self._life_ns = 0
        self._interrupts, self._busy_ns = 0, 0
        """External interrupts taken when last one was, and what the CPU had run by then."""

    def is_hung(self) -> bool:
        """Tell whether to give the guest up; the records of the tenants that were killed say so then."""
        wounded = [t for t in self._tasks.tenants.values() if any(is_wound(kill) for kill in t.record.kills)]
        if not wounded or not self._is_dead():
            return False
        # Whoever still runs is cut off too.
        for tenant in {id(t): t for t in (*wounded, *(s.tenant for s in self._tasks.tasks.values()))}.values():
            tenant.record.stuck = True
        return True

    def _is_dead(self) -> bool:
        tasks, now = self._tasks, self._target.machine.now_ns
        dying = (task for task in tasks.tasks.values() if task.killed and now - task.killed_ns > DEATH_LIMIT_NS)
        if any(not self._state(task.task) & _TRACED for task in dying):
            return True
        seen = sum(len(tenant.record.calls) for tenant in tasks.tenants.values()), len(tasks.tasks)
        if seen != self._seen or (tasks.running is not None and self._target.cpu.privilege == _USER):
            self._seen, self._life_ns = seen, now
        quiet_ns, machine = now - self._life_ns, self._target.machine
        if quiet_ns == 0 or machine.interrupts != self._interrupts:
            self._interrupts, self._busy_ns = machine.interrupts, machine.busy_ns
        is_spinning = machine.busy_ns - self._busy_ns > SPIN_LIMIT_NS
        if is_spinning or (quiet_ns > SPIN_LIMIT_NS and tasks.running is not None):
            return True
        if quiet_ns <= DEATH_LIMIT_NS:
            return False
        is_waited_for = tasks.parked and all(task.tenant.name in tasks.parked for task in tasks.tasks.values())
        return bool(is_waited_for) or any(self._waits(task) for task in tasks.tasks)

    def _state(self, task: int) -> int:
        view = self._target.view
        return view.read_u32(task + view.state_offset, self._target.kernel_root)

    def _waits(self, task: int) -> bool:
        return self._state(task) & (_UNINTERRUPTIBLE | _WAKEKILL) == _UNINTERRUPTIBLE


def is_wound(kill: Violation) -> bool:
    """Tell whether a kill may have left locks held: not one that was rolled back, nor one that a plan made at the
    call's first instruction."""
    return not kill.undone and kill.kind != PLANNED
