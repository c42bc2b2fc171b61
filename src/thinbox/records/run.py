"""What a run leaves behind: one record per call, totals, and the JSON of the contract.

Why it exists: the schema `thinbox.run/1` is promised to readers; it is built here only.

Rules of this file:
- Emulated counts are never worded as hardware time; host time stands only in `wall_s` and `fault_us_median`, everything
  else is the same in every run.
- A record takes flat memory, however many calls a tenant makes: what grows with them is packed, and bounded on disk.
  Totals are exact all the same, and what was left out is said.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from thinbox.errors import InputError
from thinbox.isolation.verdict import Violation
from thinbox.records.call import CallRecord
from thinbox.records.call_log import CallLog
from thinbox.records.coverage import RunCoverage
from thinbox.records.events import Events
from thinbox.records.fault_log import FaultLog, FaultRecord
from thinbox.records.json_rows import JsonRows
from thinbox.records.kill_list import KillList
from thinbox.records.median import Median
from thinbox.records.refusals import Refusals

SCHEMA = "thinbox.run/1"
_BOUNDED: dict[str, Callable[[Any], Any]] = {
    "calls": CallLog,
    "faults": FaultLog,
    "kills": KillList,
    "fault_us": Median,
}
"""Fields that grow with what a tenant does; a plain list given for one becomes one of these."""


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
    kills: KillList = field(default_factory=KillList)
    calls: CallLog = field(default_factory=CallLog)
    faults: FaultLog = field(default_factory=FaultLog)
    tables_made: int = 0
    tables_freed: int = 0
    table_pages_made: int = 0
    table_pages_freed: int = 0
    wall_s: float = 0.0
    fault_us: Median = field(default_factory=Median)
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
    not_started: str = ""
    """Why the program could not be executed, empty if it was."""
    kernel_slide: int = 0
    """How many bytes above its link addresses the kernel ran (KASLR)."""

    def __setattr__(self, name: str, value: Any) -> None:
        bounded = _BOUNDED.get(name)
        if bounded is not None and isinstance(value, list):
            value = bounded(value)
        object.__setattr__(self, name, value)

    @property
    def totals(self) -> dict[str, Any]:
        """The sums of the contract: of all that happened, kept or left out."""
        tally, median = self.calls.tally, self.fault_us.value
        return {
            "calls": len(self.calls),
            "isolated": tally.all_calls.isolated,
            "reaching_kernel": tally.reaching_kernel,
            "reaching_unisolated": tally.reaching_unisolated,
            "refused": self.refusals.count,
            "killed": len(self.kills),
            "code_faults": tally.all_calls.code_faults,
            "data_faults": tally.all_calls.data_faults,
            "tables_made": self.tables_made,
            "tables_freed": self.tables_freed,
            "table_pages_made": self.table_pages_made,
            "table_pages_freed": self.table_pages_freed,
            "virtual_ns": self.virtual_ns,
            "wall_s": round(self.wall_s, 6),
            "fault_us_median": None if median is None else round(median, 3),
        }

    @property
    def left_out(self) -> dict[str, int]:
        """How many calls, kills, faults and rows of events found no room in the record; empty if all did."""
        counts = {
            "calls_left_out": self.calls.left_out,
            "kills_left_out": self.kills.left_out,
            "faults_left_out": self.faults.left_out,
            "event_rows_left_out": self.events.left_out,
        }
        return {name: count for name, count in counts.items() if count}

    def left_out_sentence(self) -> str:
        """Say in one sentence what was left out, and why; empty if nothing was."""
        words = {name: name.removesuffix("_left_out").replace("_", " ") for name in self.left_out}
        left = [f"{count:,} {words[name]}" for name, count in self.left_out.items()]
        if not left:
            return ""
        why = self.calls.why_left_out or self.faults.why_left_out
        return f"the record leaves out {' and '.join(left)}{f', for {why}' if why else ''}; totals are of all"

    def require_whole(self, otherwise: str) -> None:
        """Raise InputError if calls or faults were left out; `otherwise` is what cannot be done then."""
        if self.calls.left_out or self.faults.left_out:
            raise InputError(f"{self.left_out_sentence()}: {otherwise}; record a shorter run")

    def json_object(self) -> dict[str, Any]:
        """Return the object of the contract (DESIGN section 6) for a writer that streams: long lists are `JsonRows`."""
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
            "not_started": self.not_started,
            "calls": JsonRows(lambda: (call.to_json() for call in self.calls)),
            "totals": self.totals,
            "events": self.events.json_object(),
            "coverage": None if self.coverage is None else self.coverage.totals,
            **self.left_out,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the object of the contract, whole: its lists may be long."""
        data = self.json_object()
        data["calls"], data["events"] = list(data["calls"]), self.events.to_json()
        return data


__all__ = ["SCHEMA", "CallRecord", "FaultRecord", "RunRecord"]
