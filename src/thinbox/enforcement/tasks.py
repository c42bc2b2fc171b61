"""The state SCI keeps for each task of a tenant, and for the call it is in."""

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinbox.enforcement.open_call import OpenCall

if TYPE_CHECKING:
    from thinbox.enforcement.planned_entry import PlannedEntry
    from thinbox.enforcement.tenants import Tenant
    from thinbox.isolation.policies.guard import ProtectedObject


@dataclass(slots=True)
class TaskState:
    """One task of `tenant`: `root` is its SCI table (0 until its first isolated call), `call` what it is doing."""

    task: int
    pid: int
    tenant: "Tenant"
    root: int = 0
    stack: int = 0
    pages_made: int = 0
    call: OpenCall | None = None
    killed: bool = False
    killed_ns: int = 0
    bytes_mark: int = 0
    identity: "ProtectedObject | None" = None
    """The task's ids when its last call ended, and where they lie, once policy `guard` has compared them."""
    identity_frames: tuple[int, ...] = ()
    """The frames that hold them, and the pointer to them."""
    is_exiting: bool = False
    """It has entered `do_exit`."""
    is_helper: bool = False
    """The kernel started it for the tenant: its memory is charged to nobody, so no view holds."""
    has_program: bool = True
    """It has been on the CPU with an address space of its own. What the kernel starts begins without one."""
    planned: "PlannedEntry | None" = None
    """What a plan decided for the call that is about to enter the kernel."""
    number: int = field(default_factory=itertools.count(1).__next__)
    """No two tasks have the same, also where one has another's `task_struct`."""

    @property
    def view(self) -> str:
        """What other tenants' data is hidden from it by."""
        return "none" if self.is_helper else self.tenant.isolation.view


class TaskList:
    """The tenants' tasks by task_struct, the one that runs, and the tenants by name."""

    def __init__(self) -> None:
        self.tasks: dict[int, TaskState] = {}
        self.running: TaskState | None = None
        self.tenants: dict[str, Tenant] = {}
        self.parked: set[str] = set()
        """Tenants of which a task's very end was refused: it is gone, and nobody was told."""

    def clear(self) -> None:
        """Begin again: no task is known."""
        self.tasks, self.running, self.parked = {}, None, set()

    def isolated(self) -> list[tuple[TaskState, OpenCall]]:
        """Every isolated call in progress, of running and sleeping tasks."""
        return [(s, s.call) for s in self.tasks.values() if s.call is not None and s.call.isolated]
