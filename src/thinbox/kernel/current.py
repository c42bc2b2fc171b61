"""Where a CPU keeps its running task, and where that task's kernel stack ends.

Shapes, newest first:
- `current_task` and `cpu_current_top_of_stack`, each a per-CPU variable (arch/x86/include/asm/current.h and
  processor.h since 6.15, "x86/percpu: Move current_task to percpu hot section"; also 5.13 to 6.1).
- both in `pcpu_hot` (6.2, commit e57ef2ed97c1 "x86: Put hot per CPU variables into a struct").
- `current_task`, and the stack's end in `cpu_tss_rw.x86_tss.sp1` (4.16 to 5.12: arch/x86/include/asm/processor.h,
  `#define cpu_current_top_of_stack cpu_tss_rw.x86_tss.sp1`).

Source: arch/x86/kernel/setup_percpu.c (`__per_cpu_offset`, by CPU; a kernel without CONFIG_SMP has no such array, and
its per-CPU variables lie where their symbols say).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.kernel.probe import Probe

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts

DISABLES = "no task can be told from another, and no guest can be used"


@dataclass(frozen=True, slots=True)
class CurrentTask:
    """Per-CPU addresses of the pointer to the running task and of the word that says where its stack ends.

    `offsets_at` is the address of the array of per-CPU offsets, 0 for a kernel for one CPU.
    """

    offsets_at: int
    task_at: int
    stack_end_at: int
    hot_at: int
    """Where `pcpu_hot` lies, 0 if the kernel has none."""


def probe_current(probe: Probe) -> CurrentTask:
    """Find it; what is missing is noted in `probe`."""
    offsets_at = probe.symbol("__per_cpu_offset") if probe.has_symbol("__per_cpu_offset") else 0
    if not probe.has_symbol("current_task") and probe.has_symbol("pcpu_hot"):
        hot = probe.symbol("pcpu_hot")
        task = hot + probe.offset("pcpu_hot.current_task")
        return CurrentTask(offsets_at, task, hot + probe.offset("pcpu_hot.top_of_stack"), hot)
    task = probe.symbol("current_task", "pcpu_hot")
    if probe.has_symbol("cpu_current_top_of_stack") or not probe.has_symbol("cpu_tss_rw"):
        return CurrentTask(offsets_at, task, probe.symbol("cpu_current_top_of_stack", "cpu_tss_rw"), 0)
    return CurrentTask(offsets_at, task, probe.symbol("cpu_tss_rw") + probe.offset("tss_struct.x86_tss.sp1"), 0)


def find_current(facts: "KernelFacts") -> CurrentTask:
    """Return it; `MissingFactError` if this kernel keeps it in another way."""
    probe = Probe(facts, "running task", DISABLES)
    found = probe_current(probe)
    probe.check()
    return found
