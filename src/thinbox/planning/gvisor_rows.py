"""The rows of gVisor in a comparison: one for each binary and platform that was asked for.

Why it exists: platforms differ by more than versions do, in time and in what they ask of the host.

Rules of this file: a platform that does not work is a row that says why; a figure that was not measured here is marked
with its source.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from thinbox.errors import InputError
from thinbox.planning import runtimes
from thinbox.planning.host_calls import HostCalls, measure_host_calls
from thinbox.planning.runsc import PLATFORMS, Runsc, find_runsc
from thinbox.planning.runtime_row import HOST, Row, absent
from thinbox.sandbox.plan import Plan
from thinbox.sandbox.plan_file import load_plan

_LISTED = ("ptrace", "systrap")
"""Platforms whose Sentry's list comes with thinbox, as plan `gvisor-PLATFORM-sentry`."""


@dataclass(frozen=True, slots=True)
class GvisorChoice:
    """Which gVisor: binaries (none: the installed one) and platforms."""

    binaries: tuple[str, ...] = ()
    platforms: tuple[str, ...] = PLATFORMS


@dataclass(frozen=True, slots=True)
class Workload:
    """What is run: command, root, how often, calls it makes, wall seconds of the native run if there was one."""

    command: tuple[str, ...]
    root: Path
    runs: int
    calls: int
    native_s: float | None


def gvisor_rows(choice: GvisorChoice, workload: Workload, say: Callable[[str], None]) -> list[Row]:
    """Run the workload on every platform of every binary."""
    rows = []
    for named in choice.binaries or (None,):
        try:
            runsc = find_runsc(named)
        except InputError as error:
            rows += [_unmeasured(f"gVisor, {platform}", platform, str(error)) for platform in choice.platforms]
            continue
        for platform in choice.platforms:
            runtime = f"gVisor, {platform}" + (f" ({runsc.version})" if len(choice.binaries) > 1 else "")
            say(f"under {runtime}")
            try:
                rows.append(_row(runtime, runsc, platform, workload))
            except InputError as error:
                rows.append(_unmeasured(runtime, platform, str(error)))
    return rows


def _row(runtime: str, runsc: Runsc, platform: str, workload: Workload) -> Row:
    empty_s = runsc.require(platform)
    ran = runtimes.run_gvisor(workload.root, workload.command, runsc, platform, runs=workload.runs)
    host = measure_host_calls(runsc, platform, workload.root, workload.command)
    notes = [f"runsc {runsc.version}; {empty_s * 1000:.0f} ms of it from start to exit of an empty program"]
    notes += [*_describe(host, platform), *host.missing]
    sentry = host.allowed.get("sentry")
    listed = _list_of(platform)
    if sentry is None and listed:
        notes.append(f"host calls allowed: not read here, {listed.source} ({listed.date})")
    return Row(
        runtime,
        HOST,
        ran.exit_code,
        workload.calls,
        host.total,
        host.total,
        host_calls=sentry.count if sentry else len(listed.rules) if listed else None,
        host_made=len(host.made["sentry"]) if host.made else None,
        ratio=round(ran.wall_s / workload.native_s, 3) if workload.native_s else None,
        wall_s=ran.wall_s,
        note="; ".join(notes),
        host=host,
    )


def _describe(host: HostCalls, platform: str) -> list[str]:
    notes = []
    for role, allowed in host.allowed.items():
        text = f"{role}: {len(allowed.any_args)} host calls with any arguments, {len(allowed.checked)} checked"
        listed = _list_of(platform, role)
        if listed:
            ours = {rule.name for rule in listed.every_rule}
            differ = len(ours ^ {*allowed.any_args, *allowed.checked})
            text += (
                " (as in the list that comes with thinbox)"
                if not differ
                else f" ({differ} unlike the list of {listed.name})"
            )
        notes.append(text)
    if host.made:
        each = ", ".join(f"{sum(calls.values()):,} of the {role}" for role, calls in host.made.items())
        notes.append(f"made, once confined: {each.replace('the stub', 'the processes the tenant runs in')}")
    return notes


def _unmeasured(runtime: str, platform: str, why: str) -> Row:
    listed = _list_of(platform)
    if listed is None:
        return absent(runtime, why)
    note = f"{why}; host calls allowed: {listed.source} ({listed.date})"
    return replace(absent(runtime, note), host_calls=len(listed.rules))


def _list_of(platform: str, role: str = "sentry") -> Plan | None:
    return load_plan(f"gvisor-{platform}-{role}") if platform in _LISTED else None
