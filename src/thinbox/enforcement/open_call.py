"""A call that has not returned: what it was granted, and how it goes on."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from thinbox.isolation.policies.guard import ProtectedObject
    from thinbox.records.run import CallRecord


@dataclass(slots=True)
class OpenCall:
    """A call that has not returned. `rows` are its grants (arrays with the columns of `isolation.fault`)."""

    record: "CallRecord"
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
    deferred_rsp: int = 0
    """While the call is on deferred work (`enforcement.deferred_work`), RSP behind it, signed; else 0."""
    guarded: "tuple[ProtectedObject, ...]" = ()
    """What was guarded when the call began (policy `guard`)."""
    notes: dict[str, Any] = field(default_factory=dict)
