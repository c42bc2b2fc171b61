"""A run as the page reads it: what `thinbox.run/1` and `thinbox.tenants/1` promise, checked.

Why it exists: a record that comes by mail is input like any other. Fields that the contract names must be there and
have their type; fields it does not know are left alone, for later versions may add some.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from thinbox.isolation.verdict import Violation
from thinbox.records.refusals import Refusal

Count = Annotated[int, Meta(ge=0)]
"""A number of things, or virtual ns."""


@dataclass(frozen=True, slots=True)
class KernelName:
    """Which kernel ran; `slide` is where KASLR put it, in bytes above its link address."""

    release: str
    sha256: str
    slide: int = 0


@dataclass(frozen=True, slots=True)
class RunCall:
    """One call, as `records.run.CallRecord` writes it."""

    seq: Count
    tenant: str
    pid: int
    nr: int
    name: str
    args: tuple[int, ...]
    ret: int | None
    isolated: bool
    verdict: str
    code_faults: Count
    data_faults: Count
    code_bytes: Count
    virtual_ns: Count
    prefaulted: Count = 0
    disposition: str = ""

    @property
    def faults(self) -> int:
        """Pages granted to it, code and data."""
        return self.code_faults + self.data_faults


@dataclass(frozen=True, slots=True)
class RunRefusal(Refusal):
    """A refusal of the plan, and how often it came; a record without `times` lists each one."""

    times: Count = 1


@dataclass(frozen=True, slots=True)
class RunTotals:
    """The sums; `wall_s` and `fault_us_median` are host time, thinbox's own."""

    calls: Count
    isolated: Count
    killed: Count
    code_faults: Count
    data_faults: Count
    tables_made: Count
    tables_freed: Count
    table_pages_made: Count
    table_pages_freed: Count
    wall_s: float
    fault_us_median: float | None
    refused: Count = 0
    reaching_unisolated: Count | None = None
    virtual_ns: Count | None = None


@dataclass(frozen=True, slots=True)
class EventReferences:
    """The trace of pages that was written beside the record; `lost` words found no room."""

    lost: Count = 0


@dataclass(frozen=True, slots=True)
class RunEvents:
    """What `cost` counts, by call."""

    columns: tuple[str, ...]
    calls: tuple[tuple[Count, ...], ...]
    references: EventReferences | None = None


@dataclass(frozen=True, slots=True)
class CoverageTotals:
    """Kernel functions and pages the whole run used; `lost_blocks` is 0 unless these are lower bounds."""

    hap: Count
    hap_traceable: Count
    functions_executed: Count
    executed_pages: Count
    lost_blocks: Count


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the most over the calls of one name."""

    median: Count
    most: Count


@dataclass(frozen=True, slots=True)
class GadgetTotal:
    """Gadgets of the unisolated kernel."""

    total: Count


@dataclass(frozen=True, slots=True)
class WholeSurface:
    """The unisolated kernel, the 100 %."""

    code_pages: Count
    gadgets: GadgetTotal
    functions_in_pages: Count
    functions_startable: Count
    data_pages: Count
    writable_pages: Count


@dataclass(frozen=True, slots=True)
class CallSurface:
    """What the calls of one name left to an exploit."""

    name: str
    times: Count
    isolated: Count
    code_pages: Spread
    gadgets: Spread
    functions_in_pages: Spread
    functions_startable: Spread
    data_pages: Spread
    writable_pages: Spread


@dataclass(frozen=True, slots=True)
class SurfaceFile:
    """The object under `surface`."""

    schema: Literal["thinbox.surface/1"]
    policy: str
    unisolated: WholeSurface
    calls: tuple[CallSurface, ...]
    all: CallSurface | None


@dataclass(frozen=True, slots=True)
class RunFile:
    """A whole run. `view` is None in records of before it was noted there."""

    schema: Literal["thinbox.run/1"]
    kernel: KernelName
    policy: str
    command: tuple[str, ...]
    exit_code: int
    killed: Violation | None
    calls: tuple[RunCall, ...]
    totals: RunTotals
    kills: tuple[Violation, ...] = ()
    view: str | None = None
    stuck: bool = False
    stopped: bool = False
    not_started: str = ""
    outside: dict[str, Count] = field(default_factory=dict)
    plan: str = ""
    refusals: tuple[RunRefusal, ...] = ()
    refusals_truncated: bool = False
    steady_seq: int | None = None
    events: RunEvents | None = None
    coverage: CoverageTotals | None = None
    surface: SurfaceFile | None = None
    calls_left_out: Count = 0
    kills_left_out: Count = 0
    faults_left_out: Count = 0
    event_rows_left_out: Count = 0

    def __post_init__(self) -> None:
        """Refuse sums that are not those of the calls: a record cut or edited. Calls that a record says it leaves out
        are in the sums."""
        more = bool(self.calls_left_out)
        for name, ours in (
            ("calls", len(self.calls) + self.calls_left_out),
            ("isolated", sum(call.isolated for call in self.calls)),
            ("code_faults", sum(call.code_faults for call in self.calls)),
            ("data_faults", sum(call.data_faults for call in self.calls)),
            ("refused", self.refused),
        ):
            said = getattr(self.totals, name)
            may_be_more = self.refusals_truncated if name == "refused" else more and name != "calls"
            if said != ours and not (may_be_more and said > ours):
                raise ValueError(f"`totals.{name}` says {said}, what it lists adds up to {ours}")
        listed = len(self.violations) + self.kills_left_out
        if self.totals.killed != listed and (self.kills or not self.totals.killed or not listed):
            raise ValueError(f"`totals.killed` says {self.totals.killed}, it lists {listed}")
        if not listed and any(call.verdict == "killed" for call in self.calls):
            raise ValueError("a call's `verdict` is killed, and no kill is listed")

    @property
    def refused(self) -> int:
        """How many calls the listed refusals stand for."""
        return sum(refusal.times for refusal in self.refusals)

    @property
    def violations(self) -> tuple[Violation, ...]:
        """All kills; of a record without `kills`, the first."""
        return self.kills or ((self.killed,) if self.killed else ())


@dataclass(frozen=True, slots=True)
class TenantsFile:
    """Several tenants on one guest, each a run."""

    schema: Literal["thinbox.tenants/1"]
    kernel: KernelName
    exit_code: int
    tenants: dict[str, RunFile] = field(default_factory=dict)


__all__ = ["CallSurface", "Count", "KernelName", "RunCall", "RunFile", "SurfaceFile", "TenantsFile"]
