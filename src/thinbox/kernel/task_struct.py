"""`struct task_struct`: a task's ids, name, kernel stack, whether it is dead, and whether it is traced.

Shapes, newest first:
- its state is `__state`, 32 bits (5.14, commit 2f064a59a11f "sched: Change task_struct::state"); before, `state`, 64
  bits, of which the lower half says the same.

Source: include/linux/sched.h.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "no task can be told from another, and no guest can be used"
DEAD = 0x80
"""TASK_DEAD in a task's state; the same since 4.14, and not in BTF (a macro)."""


@dataclass(frozen=True, slots=True)
class TaskStruct:
    """Offsets."""

    pid_at: int
    tgid_at: int
    stack_at: int
    state_at: int
    name_at: int
    ptrace_at: int


def probe_task_struct(probe: Probe) -> TaskStruct:
    """Find it; what is missing is noted in `probe`."""
    return TaskStruct(
        pid_at=probe.offset("task_struct.pid"),
        tgid_at=probe.offset("task_struct.tgid"),
        stack_at=probe.offset("task_struct.stack"),
        state_at=probe.offset("task_struct.__state", "task_struct.state"),
        name_at=probe.offset("task_struct.comm"),
        ptrace_at=probe.offset("task_struct.ptrace"),
    )


def find_task_struct(facts: "KernelFacts") -> TaskStruct:
    """Return it; `MissingFactError` if this kernel keeps a task in another way."""
    probe = Probe(facts, "tasks", DISABLES)
    found = probe_task_struct(probe)
    probe.check()
    return found
