"""The state SCI keeps for each task of a tenant, and for the call it is in."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

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
    rows: list[np.ndarray] = field(default_factory=list)
    granted_pages: int = 0
    resume_rsp: int = 0
    resume_rip: int = 0
    resume_block: tuple[int, int] = (0, 0)
    slept: bool = False
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


class CallWatch(Protocol):
    """Is told what becomes of the tenant's calls, by the enforcer."""

    def opened(self, state: TaskState, call: OpenCall) -> None:
        """A call begins; if it is isolated, on its table already."""
        ...

    def paused(self, state: TaskState, call: OpenCall) -> None:
        """The call's task is switched away from."""
        ...

    def resumed(self, state: TaskState, call: OpenCall) -> None:
        """The call's task runs again."""
        ...

    def closed(self, state: TaskState, call: OpenCall) -> None:
        """The call returned or was killed; its grants are not forgotten yet."""
        ...


class NoWatch:
    """Listens to nothing."""

    def _ignore(self, _state: TaskState, _call: OpenCall) -> None:
        pass

    opened = paused = resumed = closed = _ignore
