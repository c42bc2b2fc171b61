"""What recorded runs say of each call: how often, under which policy, with what left to an exploit.

Why it exists: a disposition without evidence is an opinion. This reads `thinbox.run/1` and `thinbox.attack/1` objects.

Rules of this file:
- A schema it does not know is refused. Several runs are added up; figures that are not in a run are not made up.
- Start-up is what comes before the phase marker; without one, or where it never comes, everything is steady state.
"""

import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thinbox.errors import InputError
from thinbox.host.files import load_json, show
from thinbox.isolation.verdict import PLANNED
from thinbox.report.page.document import check_record
from thinbox.sandbox.arguments import DECIDING, EXECUTABLE, width_mask
from thinbox.syscalls.table import call_number

RUN_SCHEMA, ATTACK_SCHEMA = "thinbox.run/1", "thinbox.attack/1"
MARKERS = ("accept", "accept4", "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6")
"""Calls a server waits in: the first of them begins the steady state, unless another marker is given."""
MARKER_FD = 0xFFFFFFFF
"""`write` to descriptor -1 marks a phase in any program (`session.plan_gate`)."""
_HALF = 0xFFFFFFFF


@dataclass(slots=True)
class CallEvidence:
    """All calls of one name in all runs. `pages` are granted pages of each isolated call, `functions` of each call with
    coverage; `values` counts each value of an argument by its position. `refused` ones, by a plan, are in `times` only.
    `surface` is the worst run's object."""

    name: str
    start: int = 0
    steady: int = 0
    isolated: int = 0
    policies: set[str] = field(default_factory=set)
    pages: list[int] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    violations: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    failed: int = 0
    values: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    surface: Mapping[str, Any] | None = None

    @property
    def times(self) -> int:
        """How often it was made."""
        return self.start + self.steady + self.refused

    def to_json(self) -> dict[str, Any]:
        """Return what a plan keeps of it."""
        out: dict[str, Any] = {"times": self.times}
        if self.start:
            out["start"] = self.start
        if self.isolated:
            out |= {"isolated": self.isolated, "policies": sorted(self.policies)}
            out["pages"] = {"median": statistics.median_low(self.pages), "most": max(self.pages)}
        if self.functions:
            out["functions"] = {"median": statistics.median_low(self.functions), "most": max(self.functions)}
        if self.surface is not None:
            out["gadgets"] = dict(self.surface["gadgets"])
            out["gadget_share"] = self.surface["gadget_share"]["most"]
        if self.violations:
            out["violations"] = sum(self.violations.values())
        return out


@dataclass(frozen=True, slots=True)
class AttackEvidence:
    """Attacks under one policy: names stopped (`contained`, `detected`), and those that succeeded."""

    stopped: tuple[str, ...]
    succeeded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the runs say. `hap` is the largest of the runs' horizontal attack profiles, None without coverage."""

    calls: Mapping[str, CallEvidence]
    runs: int
    commands: tuple[tuple[str, ...], ...]
    kernels: tuple[str, ...]
    policies: tuple[str, ...]
    hap: int | None
    marked: bool
    compat: int
    attacks: Mapping[str, AttackEvidence]


def load_object(path: Path, schema: str) -> dict[str, Any]:
    """Return the JSON object in `path`; InputError unless it says `schema` and is a whole record of it."""
    data = load_json(path)
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise InputError(f"{path} says schema {str(found)[:60]!r}; {schema!r} is wanted here")
    return check_record(data, show(path)).raw


def require_whole_runs(runs: Iterable[Mapping[str, Any]], otherwise: str) -> None:
    """Raise InputError if a run's record leaves calls out; `otherwise` is what follows from that."""
    for run in runs:
        if left_out := run.get("calls_left_out"):
            command = shlex.join(map(str, run.get("command") or ()))[:60]
            raise InputError(
                f"the record of {command!r} leaves out {left_out:,} calls: {otherwise}; record a shorter run"
            )


def gather_evidence(
    runs: Sequence[Mapping[str, Any]], attacks: Sequence[Mapping[str, Any]] = (), marker: Iterable[str] = ()
) -> Evidence:
    """Add the runs up; `marker` are names of calls instead of `MARKERS`.

    Raises:
        InputError: an unknown marker, an object that lacks what its schema promises, or one that leaves calls out.
    """
    marks = frozenset(call_number(name) for name in (tuple(marker) or MARKERS))
    calls: dict[str, CallEvidence] = {}
    compat, marked = 0, False
    require_whole_runs(runs, "a plan, or a comparison with one, made of it would miss what they did")
    try:
        for run in runs:
            seen, compat_here = _add_run(calls, run, marks)
            marked, compat = marked or seen, compat + compat_here
        return Evidence(
            calls=dict(sorted(calls.items())),
            runs=len(runs),
            commands=tuple(tuple(run["command"]) for run in runs),
            kernels=tuple(sorted({run["kernel"]["release"] for run in runs})),
            policies=tuple(sorted({run["policy"] for run in runs})),
            hap=max((run["coverage"]["hap"] for run in runs if run.get("coverage")), default=None),
            marked=marked,
            compat=compat,
            attacks=_attacks(attacks),
        )
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"a run lacks what {RUN_SCHEMA} promises ({error!r}); record it again") from error


def _add_run(calls: dict[str, CallEvidence], run: Mapping[str, Any], marks: frozenset[int]) -> tuple[bool, int]:
    """Add one run; return whether its marker came, and how many 32-bit calls it made."""
    rows, compat = run["calls"], 0
    killed: Counter[str] = Counter()
    boundary = _boundary(rows, marks)
    for row in rows:
        name, nr = row["name"], row["nr"]
        if name.startswith("i386#"):
            compat += 1
            continue
        starts = row["seq"] == 0 and name == "execve"  # thinbox's own, by which the program begins
        if starts or row.get("disposition") == "populate" or name.startswith("#"):
            continue
        entry = calls.setdefault(name, CallEvidence(name))
        if row["verdict"] == "denied" or row.get("disposition") == "kill":
            # What a plan refused the run did not do: it is no reason to allow it, nor its arguments, nor its phase.
            entry.refused += 1
            continue
        if boundary is not None and row["seq"] < boundary:
            entry.start += 1
        else:
            entry.steady += 1
        if row["isolated"]:
            entry.isolated += 1
            entry.policies.add(run["policy"])
            entry.pages.append(row["code_faults"] + row["data_faults"])
        if row.get("coverage"):
            entry.functions.append(row["coverage"]["functions"])
        killed[name] += row["verdict"] == "killed"
        entry.failed += row["ret"] is not None and -4096 < row["ret"] < 0
        for index in _kept(name):
            entry.values[index][row["args"][index] & width_mask(nr, index)] += 1
    _add_violations(calls, run, killed)
    for row in (run.get("surface") or {}).get("calls", ()):
        known = calls.get(row["name"])
        if known and (known.surface is None or row["gadgets"]["most"] > known.surface["gadgets"]["most"]):
            known.surface = row
    return boundary is not None, compat


def _add_violations(calls: Mapping[str, CallEvidence], run: Mapping[str, Any], killed: Counter[str]) -> None:
    """Add the run's violations; `killed` counts the rows that say so, of which older records name one only."""
    for kill in run.get("kills") or ([run["killed"]] if run.get("killed") else []):
        if kill.get("kind") != PLANNED and kill["call"] in calls:
            calls[kill["call"]].violations[f"{kill['policy']}: {kill['reason']}"] += 1
            killed[kill["call"]] -= 1
    for name, unnamed in killed.items():
        if unnamed > 0:
            calls[name].violations[f"{run['policy']}: the record does not say why"] += unnamed


def _kept(name: str) -> tuple[int, ...]:
    deciding = DECIDING.get(name)
    found = (() if deciding is None else (deciding.index,)) + ((EXECUTABLE[name],) if name in EXECUTABLE else ())
    return tuple(sorted(set(found)))


def _boundary(rows: Sequence[Mapping[str, Any]], marks: frozenset[int]) -> int | None:
    for row in rows:
        written = row["name"] == "write" and row["args"][0] & _HALF == MARKER_FD
        if written or (row["nr"] in marks and not row["name"].startswith("i386#")):
            return int(row["seq"])
    return None


def _attacks(objects: Sequence[Mapping[str, Any]]) -> dict[str, AttackEvidence]:
    stopped: dict[str, set[str]] = defaultdict(set)
    succeeded: dict[str, set[str]] = defaultdict(set)
    for data in objects:
        for row in data["rows"]:
            (succeeded if row["outcome"] == "succeeded" else stopped)[row["policy"]].add(row["attack"])
    names = sorted({*stopped, *succeeded})
    return {n: AttackEvidence(tuple(sorted(stopped[n] - succeeded[n])), tuple(sorted(succeeded[n]))) for n in names}
