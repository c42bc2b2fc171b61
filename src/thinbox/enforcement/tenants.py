"""The tenants of one machine: who they are, and whose a memory cgroup or a task is.

Why it exists: isolation, policy, view and record are each tenant's own. Whose a page or a task is, the guest's own
structures say: a tenant is a memory cgroup, with all cgroups below it.

Rules of this file:
- A tenant's calls are followed from its first task by forks (`Enforcer`), whatever cgroup a child is moved to; whose
  memory is, and whose any task of the guest is, the cgroups say.
- Nothing is remembered of cgroups but the tenants' own pointers, which live as long as the tenants.

Source: Linux 6.1 include/linux/cgroup-defs.h (struct css_set, struct cgroup_subsys_state), include/linux/sched.h.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from thinbox.isolation.policies.live import judges_ends

if TYPE_CHECKING:
    from thinbox.enforcement.judge import Judge
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.planned_entry import PlannedEntry
    from thinbox.enforcement.prefault import Prefault
    from thinbox.isolation.policies import Policy
    from thinbox.records.profile import KnownPages
    from thinbox.records.run import RunRecord


@dataclass(frozen=True, slots=True)
class Isolation:
    """What is isolated and by what: `isolates(nr)` picks the 64-bit calls, `isolates_compat` all others."""

    policy: "Policy"
    isolates: Callable[[int], bool]
    isolates_compat: bool = True
    keep_faults: bool = False
    on_violation: str = "oops"
    """"oops": the task ends as after a kernel oops; "undo": the call is rolled back first; "stop": the run ends."""
    prefault: "KnownPages | None" = None
    tenant: str = "tenant"
    view: str = "none"
    """What other tenants' data is hidden by: "none", "permissive" or "strict" (docs/views.md)."""
    isolates_ends: bool = False
    """Whether a task that never made an isolated call ends in judged work too; one that did always does."""
    ends_by_policy: bool = True
    """Whether it is the policy that judges the ends of tasks, if it can (`judges_ends`), or `live`."""


class Gate(Protocol):
    """A plan, as the enforcer asks it."""

    def decide_entered(self, task: int, pid: int, nr: int, name: str, args: tuple[int, ...]) -> "PlannedEntry":
        """For a task (task_struct) and its thread id: decide on a call that has entered the kernel undecided, or is
        dispatched as another than it began as."""
        ...

    def executed(self, task: int) -> None:
        """A task (task_struct) runs a new program: its execve returned 0."""
        ...

    def refuses_operation(self, pid: int, operation: str) -> int:
        """Decide on an operation of io_uring: 0 to go on, else what it fails with (a positive errno)."""
        ...


@dataclass(slots=True)
class Tenant:
    """One tenant: what is isolated and by what, its record, and its memory cgroup (0 while it has none of its own)."""

    isolation: Isolation
    record: "RunRecord"
    judge: "Judge"
    prefault: "Prefault | None" = None
    memcg: int = 0
    end_judge: "Judge | None" = None
    """Judges the ends of its tasks where its policy does not: it is about calls only (`judges_ends`), or is not to
    (`ends_by_policy`)."""
    gate: "Gate | None" = None
    """What its plan says of calls that are in the kernel already."""

    def judge_of(self, call: "OpenCall") -> "Judge":
        """Return what judges `call`, which may be the end of a task."""
        if not call.is_exit or self.end_judge is None:
            return self.judge
        by_policy = self.isolation.ends_by_policy and judges_ends(self.isolation.policy)
        return self.judge if by_policy else self.end_judge

    @property
    def name(self) -> str:
        """As in records, options and sentences."""
        return self.isolation.tenant
