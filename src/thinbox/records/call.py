"""One call of a tenant, as a record tells of it.

Why it exists: the objects under `calls` of `thinbox.run/1` are promised to readers; they are built here only.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from thinbox.records.coverage import CallCounts

UNREACHING = frozenset({"emulate", "deny", "kill"})
"""Dispositions of calls of which the kernel runs nothing."""


@dataclass(slots=True, weakref_slot=True)
class CallRecord:
    """One call. `ret` is None if it never returned; `code_bytes` counts the guest code executed while it
    was on the CPU (interrupts included), `virtual_ns` the virtual time from entry to return, sleep included."""

    seq: int
    tenant: str
    pid: int
    nr: int
    name: str
    args: tuple[int, ...]
    ret: int | None = None
    isolated: bool = False
    verdict: str = "pass"
    code_faults: int = 0
    data_faults: int = 0
    prefaulted: int = 0
    """Pages mapped at its entry by `--prefault`; they are no faults."""
    code_bytes: int = 0
    virtual_ns: int = 0
    disposition: str = ""
    """What a plan said of it: isolate, pass, emulate, deny, kill, or populate (made for an emulated call, to bring its
    buffer into memory); empty without a plan."""
    plan_line: int = 0
    """The line of the plan that said so; 0 without a plan."""
    coverage: CallCounts | None = None
    """What it executed and touched; None where that was not recorded."""
    requested: str = ""
    """The call at the call instruction, where a tracer or a filter put another in its place; else empty."""

    @property
    def reaches_kernel(self) -> bool:
        """Whether the kernel ran anything of this call: not if a plan answered or refused it."""
        return self.disposition not in UNREACHING

    @property
    def faults(self) -> int:
        """Pages granted to it, code and data."""
        return self.code_faults + self.data_faults

    def to_json(self) -> dict[str, Any]:
        """Return its object under `calls`."""
        out = {name: getattr(self, name) for name in _FIELDS}
        if self.coverage is not None:
            out["coverage"] = asdict(self.coverage)
        return out


_FIELDS = tuple(each.name for each in fields(CallRecord))
