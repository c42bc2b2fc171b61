"""What a run leaves behind: one record per call, totals, and the JSON of the contract.

Why it exists: the schema `thinbox.run/1` is promised to readers; it is built here only.

Rules of this file: emulated counts are never worded as hardware time; host time stands only in `wall_s`
and `fault_us_median`, everything else is the same in every run.
"""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from thinbox.isolation.verdict import Violation
from thinbox.records.coverage import CallCounts, RunCoverage
from thinbox.records.events import Events
from thinbox.records.refusals import Refusals

SCHEMA = "thinbox.run/1"


@dataclass(slots=True)
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
        return self.disposition not in ("emulate", "deny", "kill")


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One granted page: which call, where, by which instruction. `writable` is the mapping's own bit: a page
    granted for a read may be written too if the kernel's mapping may."""

    seq: int
    vaddr: int
    rip: int
    kind: str
    symbol: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """A protected object that was changed and put back: by rule `rule` of the policy, at `vaddr`, of tenant `whose` (or
    the kernel's), found in call `during`; `by_the_call` if that call wrote it (and was killed for it)."""

    rule: str
    vaddr: int
    whose: str
    during: str
    by_the_call: bool


@dataclass(slots=True)
class RunRecord:
    """A whole run; `to_json` gives the object of `thinbox run --json`."""

    kernel_release: str
    kernel_sha256: str
    policy: str
    command: tuple[str, ...]
    exit_code: int = 0
    killed: Violation | None = None
    kills: list[Violation] = field(default_factory=list)
    calls: list[CallRecord] = field(default_factory=list)
    faults: list[FaultRecord] = field(default_factory=list)
    tables_made: int = 0
    tables_freed: int = 0
    table_pages_made: int = 0
    table_pages_freed: int = 0
    wall_s: float = 0.0
    fault_us: list[float] = field(default_factory=list)
    virtual_ns: int = 0
    events: Events = field(default_factory=Events)
    coverage: RunCoverage | None = None
    view: str = "none"
    """What is hidden of other tenants' data."""
    plan: str = ""
    """Name of the plan in force, empty without one."""
    refusals: Refusals = field(default_factory=Refusals)
    steady_seq: int | None = None
    """The first call of the steady state, where a plan with a phase marker was in force and reached it."""
    stopped: bool = False
    """A violation ended the run at once (`--on-violation stop`)."""
    stuck: bool = False
    """A killed task could not end (it waits for a lock it holds); the guest was given up."""
    outside: dict[str, int] = field(default_factory=dict)
    """Kernel work done for the tenant outside its calls: what, and how often (`enforcement.outside_work`)."""
    restored: list[Restored] = field(default_factory=list)
    """What policy `guard` put back."""
    kernel_slide: int = 0
    """How many bytes above its link addresses the kernel ran (KASLR)."""

    @property
    def totals(self) -> dict[str, Any]:
        """The sums of the contract."""
        return {
            "calls": len(self.calls),
            "isolated": sum(call.isolated for call in self.calls),
            "reaching_kernel": sum(call.reaches_kernel for call in self.calls),
            "reaching_unisolated": sum(call.reaches_kernel and not call.isolated for call in self.calls),
            "refused": self.refusals.count,
            "killed": len(self.kills),
            "code_faults": sum(call.code_faults for call in self.calls),
            "data_faults": sum(call.data_faults for call in self.calls),
            "tables_made": self.tables_made,
            "tables_freed": self.tables_freed,
            "table_pages_made": self.table_pages_made,
            "table_pages_freed": self.table_pages_freed,
            "virtual_ns": self.virtual_ns,
            "wall_s": round(self.wall_s, 6),
            "fault_us_median": round(statistics.median(self.fault_us), 3) if self.fault_us else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the object of the contract (DESIGN section 6)."""
        return {
            "schema": SCHEMA,
            "kernel": {"release": self.kernel_release, "sha256": self.kernel_sha256, "slide": self.kernel_slide},
            "policy": self.policy,
            "view": self.view,
            "command": list(self.command),
            "exit_code": self.exit_code,
            "killed": None if self.killed is None else asdict(self.killed),
            "kills": [asdict(violation) for violation in self.kills],
            "stuck": self.stuck,
            "plan": self.plan,
            "refusals": self.refusals.to_json(),
            "refusals_truncated": self.refusals.truncated,
            "outside": dict(sorted(self.outside.items())),
            "restored": [asdict(each) for each in self.restored],
            "steady_seq": self.steady_seq,
            "stopped": self.stopped,
            "calls": [asdict(call) for call in self.calls],
            "totals": self.totals,
            "events": self.events.to_json(),
            "coverage": None if self.coverage is None else self.coverage.totals,
        }
