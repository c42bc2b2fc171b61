"""The surface of a whole run: what its calls left to an exploit, by name of the call.

Why it exists: the object under `surface` of `thinbox run --json` and the lines under the summary are built here only.

Rules of this file: figures of a name are the median and the most over its calls; a call that ran
unisolated has the whole kernel.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinbox.records.run import RunRecord
from thinbox.surface.gadgets import gadgets_of
from thinbox.surface.live_kernel import read_live_kernel
from thinbox.surface.residual import Grants, Residual, Surface, grants_of, read_baseline
from thinbox.surface.scan import DEPTH_BYTES

if TYPE_CHECKING:
    from thinbox.session.session import Session

SCHEMA = "thinbox.surface/1"
_WINDOW = 4096
"""Calls whose grants are held at a time: some 100 pages each."""
MEASURES: dict[str, Callable[[Residual], int]] = {
    "code_pages": lambda left: left.code_pages,
    "gadgets": lambda left: left.gadgets.total,
    "functions_in_pages": lambda left: left.functions_in_pages,
    "functions_startable": lambda left: left.functions_startable,
    "data_pages": lambda left: left.data_pages,
    "writable_pages": lambda left: left.writable_pages,
}


@dataclass(frozen=True, slots=True)
class CallSurface:
    """The calls of one name: `median` (the lower of two middle ones) and `most` of each of `MEASURES`."""

    name: str
    times: int
    isolated: int
    median: dict[str, int]
    most: dict[str, int]


@dataclass(frozen=True, slots=True)
class RunSurface:
    """`whole` is the unisolated kernel, `calls` ascend by name, `all_calls` are those of every name together
    (None if there were none)."""

    policy: str
    text_hash: str
    whole: Residual
    calls: tuple[CallSurface, ...]
    all_calls: CallSurface | None

    def to_json(self) -> dict[str, Any]:
        """Return the object of `thinbox run --surface --json`."""
        return {
            "schema": SCHEMA,
            "policy": self.policy,
            "live_text_sha256": self.text_hash,
            "depth_bytes": DEPTH_BYTES,
            "unisolated": self.whole.to_json(),
            "calls": [self._call_json(call) for call in self.calls],
            "all": None if self.all_calls is None else self._call_json(self.all_calls),
        }

    def _call_json(self, call: CallSurface) -> dict[str, Any]:
        out: dict[str, Any] = {"name": call.name, "times": call.times, "isolated": call.isolated}
        for measure in MEASURES:
            out[measure] = {"median": call.median[measure], "most": call.most[measure]}
        gadgets = max(1, self.whole.gadgets.total)
        out["gadget_share"] = {
            "median": round(call.median["gadgets"] / gadgets, 6),
            "most": round(call.most["gadgets"] / gadgets, 6),
        }
        return out


def load_surface(
    session: "Session", say: Callable[[str], None] | None = None, jobs: int | None = None, tenant: str | None = None
) -> Surface:
    """Return the measure for a tenant (None: the only one) of `session`, which must not have begun: the guest stands
    ready.

    Raises:
        MachineError: a process that looks for gadgets died.
    """
    view, memory, enforcer = session.view, session.machine.memory, session.enforcer
    watched = next(iter(enforcer.tenants.values())) if tenant is None else enforcer.tenants[tenant]
    kernel = read_live_kernel(memory, view.kernel_root)
    return Surface(
        gadgets=gadgets_of(kernel, view.symbols, view.facts.sha256, say, jobs),
        symbols=view.symbols,
        baseline=read_baseline(memory, view, enforcer.sites),
        policy=watched.isolation.policy,
        mapped_pages=kernel.mapped_pages,
        writable_pages=kernel.writable_pages,
    )


def tabulate(record: RunRecord, surface: Surface) -> RunSurface:
    """Measure every call of `record`, whose faults must have been kept (`RunOptions.keep_faults`).

    Raises:
        InputError: the record leaves out calls or faults, so the surface would look smaller than it was.
    """
    record.require_whole("its surface cannot be measured")
    whole, none = surface.whole, Grants()
    by_name: dict[str, _Sum] = defaultdict(_Sum)
    every, grants, end = _Sum(), {}, 0
    for number, call in enumerate(record.calls):
        if number == end:
            end += _WINDOW
            grants = grants_of(record.faults.of_calls(number, end))
        left = surface.measure_call(grants.get(call.seq, none)) if call.isolated else whole
        for part in (by_name[call.name], every):
            part.add(left, isolated=call.isolated)
    return RunSurface(
        policy=record.policy,
        text_hash=surface.gadgets.text_hash,
        whole=whole,
        calls=tuple(by_name[name].summarised(name) for name in sorted(by_name)),
        all_calls=every.summarised("*") if every.times else None,
    )


class _Sum:
    """The calls of one name, being added up: how often each value of each measure."""

    def __init__(self) -> None:
        self.times = self._isolated = 0
        self._values: dict[str, Counter[int]] = {measure: Counter() for measure in MEASURES}

    def add(self, left: Residual, *, isolated: bool) -> None:
        """Count one call."""
        self.times += 1
        self._isolated += isolated
        for measure, take in MEASURES.items():
            self._values[measure][take(left)] += 1

    def summarised(self, name: str) -> CallSurface:
        """Return what is promised of them."""
        return CallSurface(
            name=name,
            times=self.times,
            isolated=self._isolated,
            median={measure: _median_low(values) for measure, values in self._values.items()},
            most={measure: max(values) for measure, values in self._values.items()},
        )


def _median_low(values: Counter[int]) -> int:
    left = (values.total() + 1) // 2
    for value in sorted(values):
        left -= values[value]
        if left <= 0:
            break
    return value


def render_surface(found: RunSurface) -> str:
    """Return two lines for the summary of a run."""
    whole, every = found.whole, found.all_calls
    if every is None:
        return (
            f"surface: no calls; the kernel has {whole.gadgets.total:,} gadgets in {whole.code_pages:,} code pages,\n"
            f"{whole.functions_startable:,} functions, {whole.writable_pages:,} writable pages"
        )
    gadgets = max(1, whole.gadgets.total)
    widest = max(found.calls, key=lambda call: (call.most["gadgets"], call.name))
    median, most = every.median, every.most
    return (
        f"surface left in a call, median and most: gadgets {median['gadgets'] / gadgets:.2%} and "
        f"{most['gadgets'] / gadgets:.2%} ({widest.name}) of {whole.gadgets.total:,}; "
        f"code pages {median['code_pages']:,} and {most['code_pages']:,} of {whole.code_pages:,};\n"
        f"functions in these pages {median['functions_in_pages']:,} and {most['functions_in_pages']:,}, "
        f"startable under {found.policy} {median['functions_startable']:,} and {most['functions_startable']:,}, "
        f"of {whole.functions_startable:,}; "
        f"writable pages {median['writable_pages']:,} and {most['writable_pages']:,} of {whole.writable_pages:,}"
    )
