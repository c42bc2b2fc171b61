"""An audit from start to end: choose cases, freeze a machine, run, keep a journal, collect.

Why it exists: it is the Python API as well as the command: `audit(guest, AuditOptions(calls=("getpid",)))`.

Rules of this file:
- The journal holds finished entries of an audit that was interrupted; its key covers everything a result
  depends on (kernel, guest, policy, thinbox's own source), so a resumed audit equals one that was not.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from thinbox.audit.case import Case, all_cases, reasons_not_exercised
from thinbox.errors import InputError, TrustError
from thinbox.foreign_text import parse_json
from thinbox.image.cache import create_cached, read_cached
from thinbox.records.audit import AuditEntry, AuditRecord

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.records.profile import KnownPages, Touched

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """`calls`: names of calls, empty for all. `policy` and `view` as for a run. `jobs`: processes. `resume`: go on
    where an interrupted audit of the same things stopped. `plain`: entries by title of another audit of this thinbox
    on this kernel, whose un-isolated runs are taken over. `progress` hears of each phase, `step` of each case."""

    calls: tuple[str, ...] = ()
    policy: str = "live"
    view: str = "none"
    jobs: int = 1
    resume: bool = False
    prefault: "KnownPages | None" = None
    plain: "Mapping[str, AuditEntry] | None" = None
    progress: Progress | None = field(default=None)
    step: Progress | None = field(default=None)


def touched_in(record: AuditRecord) -> "list[Touched]":
    """Return what each case's measured call touched, killed ones left out: what a profile is learned from."""
    from thinbox.records.profile import Touched

    wanted = [entry for entry in record.entries if entry.exercised and entry.killed is None]
    return [Touched(entry.call, tuple((grant.page, grant.kind) for grant in entry.grants)) for entry in wanted]


def choose_cases(calls: Sequence[str]) -> tuple[Case, ...]:
    """Return the cases of these calls, or the whole corpus; `InputError` for an unknown call or one without cases."""
    from thinbox.syscalls.table import call_number

    cases = all_cases()
    if not calls:
        return cases
    for name in calls:
        call_number(name)
        if not any(case.call == name for case in cases):
            reason = reasons_not_exercised().get(name, "it has no case yet")
            raise InputError(f"{name} cannot be audited: {reason}; `thinbox audit --list` shows what can")
    return tuple(case for case in cases if case.call in calls)


def audit(guest: "ReadyGuest", options: AuditOptions | None = None) -> AuditRecord:
    """Run the cases and return the record.

    Raises:
        InputError: an unknown call or policy.
        MachineError: the machine cannot be prepared. What fails within a case is that case's result.
    """
    from thinbox.audit.case_runner import CaseRunner, make_checkpoint
    from thinbox.audit.pool import run_cases
    from thinbox.isolation.policies import load_policy
    from thinbox.records.profile import (
        load_policy_object,
        read_policy_file,
        require_known_here,
        require_same_kernel,
    )

    options = options or AuditOptions()
    say = options.progress or (lambda _line: None)
    step = options.step or (lambda _line: None)
    policy = load_policy(options.policy, read_policy_file, load_policy_object)
    require_same_kernel(policy, guest.facts.sha256)
    unimplemented = _unimplemented_names(guest)
    cases = [case for case in choose_cases(options.calls) if case.call not in unimplemented]
    require_known_here(options.prefault, guest.facts)
    if not cases:
        raise InputError(
            "this kernel implements none of the calls named; `thinbox audit --list` shows what can be audited"
        )
    started = time.perf_counter()
    say("freezing a machine for the audit")
    checkpoint = make_checkpoint(guest, tenants=options.view != "none")
    journal = Journal(_journal_path(guest, f"{options.policy} {options.view} {options.prefault!r}", cases))
    done = journal.read(cases) if options.resume else {}
    todo = [number for number in range(len(cases)) if number not in done]
    with journal:
        for entry in done.values():
            journal.add(entry)
        if todo:
            for number, entry in run_cases(
                cases,
                lambda: CaseRunner(guest, checkpoint, policy, view=options.view, prefault=options.prefault),
                options.jobs,
                todo,
                options.plain,
            ):
                done[number] = entry
                journal.add(entry)
                step(f"{len(done)} of {len(cases)} cases: {entry.title}")
    journal.remove()
    entries = [done[number] for number in range(len(cases))]
    implemented = implemented_names(guest)
    record = AuditRecord(
        guest.facts.release,
        guest.facts.sha256,
        policy.name,
        entries,
        implemented,
        {},
        time.perf_counter() - started,
        guest.initramfs_sha256,
    )
    if not options.calls:
        record.not_exercised = _why_not(record)
    return record


def audit_own_cases(guest: "ReadyGuest", cases: Sequence[Case], options: AuditOptions) -> AuditRecord:
    """Run cases that are not in the corpus, in this process; `options.calls` adds the corpus's cases of these calls.

    Raises:
        InputError: as `audit`.
    """
    from thinbox.audit.case_runner import CaseRunner, make_checkpoint
    from thinbox.audit.pool import audit_case
    from thinbox.isolation.policies import load_policy
    from thinbox.records.profile import load_policy_object, read_policy_file, require_same_kernel
    from thinbox.syscalls.table import call_number

    policy = load_policy(options.policy, read_policy_file, load_policy_object)
    require_same_kernel(policy, guest.facts.sha256)
    for case in cases:
        if not isinstance(case, Case):
            raise InputError(f"an audit takes names of calls and cases, not {case!r}")
        call_number(case.call)
    started = time.perf_counter()
    checkpoint = make_checkpoint(guest, tenants=options.view != "none")
    runner = CaseRunner(guest, checkpoint, policy, view=options.view, prefault=options.prefault)
    known = choose_cases(options.calls) if options.calls else ()
    entries = [audit_case(runner, case) for case in (*known, *cases)]
    facts, taken_s = guest.facts, time.perf_counter() - started
    names = implemented_names(guest)
    return AuditRecord(facts.release, facts.sha256, policy.name, entries, names, {}, taken_s, guest.initramfs_sha256)


def implemented_names(guest: "ReadyGuest") -> tuple[str, ...]:
    """Return the names of the calls this kernel has, by number."""
    from thinbox.syscalls.table import call_info

    missing, count = guest.facts.unimplemented, len(guest.facts.sys_call_table)
    infos = [call_info(nr) for nr in range(count) if nr not in missing]
    return tuple(info.name for info in infos if info is not None)


def _unimplemented_names(guest: "ReadyGuest") -> frozenset[str]:
    from thinbox.syscalls.table import all_calls

    return frozenset(info.name for info in all_calls()) - frozenset(implemented_names(guest))


def _why_not(record: AuditRecord) -> dict[str, str]:
    """Say for each implemented call without a working success path why."""
    known, exercised = reasons_not_exercised(), record.exercised_calls
    out = {}
    for name in record.implemented:
        if name in exercised:
            continue
        failed = next((entry.reason for entry in record.entries if entry.call == name and entry.reason), None)
        out[name] = known.get(name) or failed or "it has no case"
    return out


class Journal:
    """Finished entries, one JSON object a line, of an audit under way."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, cases: Sequence[Case]) -> dict[int, AuditEntry]:
        """Return what is there by case number; a damaged line ends the reading."""
        numbers = {case.title: number for number, case in enumerate(cases)}
        found: dict[int, AuditEntry] = {}
        try:
            for line in read_cached(self._path).splitlines():
                entry = AuditEntry.from_json(parse_json(line, "journal"))
                found[numbers[entry.title]] = entry
        except TrustError:
            raise
        except (OSError, InputError, ValueError, TypeError, KeyError):
            pass
        return found

    def __enter__(self) -> Self:
        self._stream = create_cached(self._path)
        return self

    def add(self, entry: AuditEntry) -> None:
        """Write one entry; it is on disk when this returns."""
        self._stream.write(json.dumps(entry.to_json(with_grants=True)) + "\n")
        self._stream.flush()

    def __exit__(self, *_details: object) -> None:
        self._stream.close()

    def remove(self) -> None:
        """The audit is complete."""
        self._path.unlink(missing_ok=True)


def _journal_path(guest: "ReadyGuest", policy: str, cases: Sequence[Case]) -> Path:
    from thinbox.image.cache import cache_dir

    package = Path(__file__).parent.parent
    found = hashlib.sha256("\0".join((guest.facts.sha256, repr(guest.params), policy)).encode())
    found.update("\0".join(case.title for case in cases).encode())
    for path in sorted(package.rglob("*.py")):
        found.update(path.read_bytes())
    return cache_dir() / "audits" / f"{found.hexdigest()[:32]}.jsonl"
