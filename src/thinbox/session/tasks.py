"""The state SCI keeps for each task of a tenant, and for the call it is in."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from thinbox.isolation.verdict import Violation
from thinbox.session.records import CallRecord

if TYPE_CHECKING:
    from thinbox.isolation.policies.guard import Guarded
    from thinbox.session.tenants import Tenant


@dataclass(slots=True)
class OpenCall:
    """A call that has not returned. `rows` are its grants (arrays with the columns of `isolation.fault`)."""

    record: CallRecord
    regs_paddr: int
    entered_ns: int
    entered_host_s: float
    isolated: bool
    user_ip: int = 0
    rows: list[np.ndarray] = field(default_factory=list)
    granted_pages: int = 0
    resume_rsp: int = 0
    resume_rip: int = 0
    resume_block: tuple[int, int] = (0, 0)
    slept: bool = False
    errand_rsp: int = 0
    """While the call is on an errand (`session.errands`), RSP behind it, signed; else 0."""
    guarded: "tuple[Guarded, ...]" = ()
    """What was guarded when the call began (policy `guard`)."""
    notes: dict[str, Any] = field(default_factory=dict)


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
