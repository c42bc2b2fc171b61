"""The list of all tasks: processes from `init_task`, and the threads of each.

One shape is known: `task_struct.tasks`, and `signal_struct.thread_head` with `task_struct.thread_node` (3.14,
"introduce for_each_thread() to replace the buggy while_each_thread()").

Source: include/linux/sched/signal.h (`for_each_process_thread`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "tenants' tasks cannot be counted, and no view can be had"


@dataclass(frozen=True, slots=True)
class TaskShape:
    """Where the lists hang."""

    first_at: int
    tasks_at: int
    node_at: int
    signal_at: int
    threads_at: int


def probe_task(probe: Probe) -> TaskShape:
    """Find it; what is missing is noted in `probe`."""
    return TaskShape(
        first_at=probe.symbol("init_task"),
        tasks_at=probe.offset("task_struct.tasks"),
        node_at=probe.offset("task_struct.thread_node"),
        signal_at=probe.offset("task_struct.signal"),
        threads_at=probe.offset("signal_struct.thread_head"),
    )


def find_task_shape(facts: "KernelFacts") -> TaskShape:
    """Return it; `MissingFactError` if this kernel lists its tasks in another way."""
    probe = Probe(facts, "list of tasks", DISABLES)
    found = probe_task(probe)
    probe.check()
    return found
