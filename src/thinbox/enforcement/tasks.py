"""The state SCI keeps for each task of a tenant, and for the call it is in."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.enforcement.open_call import OpenCall
from thinbox.isolation.verdict import Violation

if TYPE_CHECKING:
    from thinbox.enforcement.tenants import Tenant


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
    identity: bytes | None = None
    """The task's ids when its last call ended, once policy `guard` has compared them."""
    planned: "PlannedEntry | None" = None
    """What a plan decided for the call that is about to enter the kernel."""


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """A plan's decision that reaches the kernel: isolated or not; or, with `death`, killed where it enters."""

    isolated: bool
    disposition: str
    line: int
    death: Violation | None = None


class TaskList:
    """The tenants' tasks by task_struct, the one that runs, and the tenants by name."""

    def __init__(self) -> None:
        self.tasks: dict[int, TaskState] = {}
        self.running: TaskState | None = None
        self.tenants: dict[str, Tenant] = {}

    def clear(self) -> None:
        """Begin again: no task is known."""
        self.tasks, self.running = {}, None

    def isolated(self) -> list[tuple[TaskState, OpenCall]]:
        """Every isolated call in progress, of running and sleeping tasks."""
        return [(s, s.call) for s in self.tasks.values() if s.call is not None and s.call.isolated]
