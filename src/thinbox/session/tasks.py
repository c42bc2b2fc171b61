"""The state SCI keeps for each task of a tenant, and for the call it is in."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from thinbox.isolation.verdict import Violation
from thinbox.session.open_call import OpenCall

if TYPE_CHECKING:
    from thinbox.session.tenants import Tenant


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


class CallWatch(Protocol):
    """Is told what becomes of the tenant's calls, by the enforcer."""

    def opened(self, state: TaskState, call: OpenCall) -> None:
        """A call begins; if it is isolated, on its table already."""
        ...

    def paused(self, state: TaskState, call: OpenCall) -> None:
        """The call's task is switched away from."""
        ...

    def resumed(self, state: TaskState, call: OpenCall) -> None:
        """The call's task runs again; it may be killed before its next instruction."""
        ...

    def granted(self, state: TaskState, call: OpenCall, rows: np.ndarray) -> None:
        """The call was granted `rows`, in this order: told later, but before it pauses or closes."""
        ...

    def closed(self, state: TaskState, call: OpenCall) -> None:
        """The call returned or was killed; unless it was rolled back, its grants are not forgotten yet."""
        ...


class Watches:
    """Tells every watch that was added, in the order they came."""

    def __init__(self) -> None:
        self._watches: list[CallWatch] = []

    def add(self, watch: CallWatch) -> None:
        """Tell `watch` too, from now on."""
        self._watches.append(watch)

    def opened(self, state: TaskState, call: OpenCall) -> None:
        """As `CallWatch.opened`."""
        for watch in self._watches:
            watch.opened(state, call)

    def paused(self, state: TaskState, call: OpenCall) -> None:
        """As `CallWatch.paused`."""
        for watch in self._watches:
            watch.paused(state, call)

    def resumed(self, state: TaskState, call: OpenCall) -> None:
        """As `CallWatch.resumed`."""
        for watch in self._watches:
            watch.resumed(state, call)

    def granted(self, state: TaskState, call: OpenCall, rows: np.ndarray) -> None:
        """As `CallWatch.granted`."""
        for watch in self._watches:
            watch.granted(state, call, rows)

    def closed(self, state: TaskState, call: OpenCall) -> None:
        """As `CallWatch.closed`."""
        for watch in self._watches:
            watch.closed(state, call)
