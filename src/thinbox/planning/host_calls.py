"""What gVisor asks of the host: which calls its processes make for a workload, and which its loaded filters allow.

Why it exists: a sandbox is as thin as what it lets through to the shared kernel. Lists age; these are counted and read
back where the comparison runs.

Rules of this file:
- Made: every call that the kernel ran for the process after it had loaded its filter, counted in the kernel.
- Allowed: by the filter read back from a waiting sandbox of the same binary, platform and options.
- What cannot be measured is no number; one line says what it needs.
"""

import os
import select
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thinbox.errors import InputError
from thinbox.planning.call_counter import CallCounter
from thinbox.planning.classic_bpf import Reach, reach_of
from thinbox.planning.host_process import Start, descendants, program_name, running
from thinbox.planning.loaded_filter import Program, read_filters
from thinbox.planning.microbench import build_waiter
from thinbox.planning.runsc import Runsc, make_loop_root
from thinbox.syscalls.table import all_calls, call_name

ROLES = {"runsc-sandbox": "sentry", "runsc-gofer": "gofer"}
STUB = "stub"
"""A process of the Sentry's in which the tenant's code runs, between its calls."""
_READY_S = 20.0
_EXECVE = 59


@dataclass(frozen=True, slots=True)
class Allowed:
    """Names of the calls a filter allows: with any arguments, and with some."""

    any_args: tuple[str, ...]
    checked: tuple[str, ...]

    @property
    def count(self) -> int:
        """Different calls allowed in some form."""
        return len(self.any_args) + len(self.checked)


@dataclass(frozen=True, slots=True)
class HostCalls:
    """One workload on one platform. By role; a part that was not measured is empty and `missing` says why."""

    allowed: Mapping[str, Allowed] = field(default_factory=dict)
    made: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def total(self) -> int | None:
        """Calls that reached the shared kernel, of all roles; None if they were not counted."""
        return sum(sum(calls.values()) for calls in self.made.values()) if self.made else None

    def to_json(self) -> dict[str, Any]:
        """Return the object of a row of `thinbox compare --json`."""
        return {
            "allowed": {
                role: {"any": list(one.any_args), "checked": list(one.checked)} for role, one in self.allowed.items()
            },
            "made": {role: dict(calls) for role, calls in self.made.items()},
            "missing": list(self.missing),
        }


def measure_host_calls(runsc: Runsc, platform: str, root: Path, command: Sequence[str]) -> HostCalls:
    """Run `command` once more, counted, and a waiting program to read the filters; never raises for lack of rights."""
    missing: list[str] = []
    allowed: Mapping[str, Allowed] = {}
    made: Mapping[str, Mapping[str, int]] = {}
    try:
        allowed = read_allowed(runsc, platform)
    except InputError as error:
        missing.append(str(error))
    try:
        made = count_made(runsc, platform, root, command)
    except InputError as error:
        missing.append(str(error))
    return HostCalls(allowed, made, tuple(missing))


def count_made(runsc: Runsc, platform: str, root: Path, command: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the host calls of one run by role and name, most first.

    Raises:
        InputError: they cannot be counted here, or the Sentry was not seen.
    """
    roles: dict[int, str] = {}

    def watch(pid: int) -> None:
        for process in descendants(pid):
            if process not in roles:
                role = ROLES.get(program_name(process))
                # A stub was forked off the Sentry and has its name until it has its own memory, then none.
                parent_is_sentry = _parent(process) in roles and roles[_parent(process)] != "gofer"
                if parent_is_sentry or role:
                    roles[process] = STUB if parent_is_sentry else str(role)

    with CallCounter() as counter:
        runsc.run(root, command, platform, watch=watch)
        counts = counter.read()
    found: dict[str, Counter[str]] = {}
    for pid, role in roles.items():
        calls = counts.get(pid)
        if calls is not None:
            mine = calls.all if role == STUB else calls.confined
            if role == STUB and _EXECVE in mine:
                # Not a stub: runsc's own helper for the end of the start-up.
                continue
            found.setdefault(role, Counter()).update({call_name(nr): n for nr, n in mine.items()})
    if not found.get("sentry"):
        raise InputError("counting host calls failed: no Sentry with a filter was seen")
    return {role: dict(found[role].most_common()) for role in sorted(found, reverse=True)}


def read_allowed(runsc: Runsc, platform: str) -> dict[str, Allowed]:
    """Return what the loaded filters of Sentry and gofer allow.

    Raises:
        InputError: the program did not start, or the filters cannot be read here.
    """
    with tempfile.TemporaryDirectory(prefix="thinbox-waiter-") as folder:
        make_loop_root(Path(folder), build_waiter())
        with (
            runsc.prepared(Path(folder), ["/bin/loop"], platform) as (words, env),
            running(words, Start(_READY_S, env, stdin=subprocess.PIPE)) as child,
        ):
            assert child.stdout is not None
            # Once its program runs, Sentry and gofer have loaded their filters.
            if not select.select([child.stdout], [], [], _READY_S)[0] or not os.read(child.stdout.fileno(), 1):
                raise InputError(f"the filter could not be read back: no program started on platform {platform}")
            found: dict[str, Allowed] = {}
            for process in descendants(child.pid):
                role = ROLES.get(program_name(process))
                if role and role not in found:
                    found[role] = classify(read_filters(process))
    if not found:
        raise InputError("the filter could not be read back: no Sentry was seen")
    return dict(sorted(found.items(), reverse=True))


def classify(programs: Sequence[Program]) -> Allowed:
    """Sort every call the table knows by what `programs` leave of it."""
    reach = {call.name: reach_of(programs, call.nr) for call in all_calls()}
    chosen = {wanted: tuple(name for name, is_ in reach.items() if is_ is wanted) for wanted in Reach}
    return Allowed(chosen[Reach.ANY], chosen[Reach.CHECKED])


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, ValueError):
        return 0
