"""Measure: the whole audit under each policy, two workloads, gadgets left, pre-populated pages; into one JSON.

Rules of this file: counts only, from deterministic runs; host time stands in one place and is called so.
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thinbox.audit.run import AuditOptions, audit, implemented_names, touched_in
from thinbox.boot.ready import ReadyGuest, prepare
from thinbox.errors import InputError
from thinbox.records.audit import AuditEntry, AuditRecord
from thinbox.records.profile import KnownPages, profile_from, profile_of
from thinbox.session.session import RunOptions, Session, run
from thinbox.surface.residual import Grants, Surface
from thinbox.surface.run_surface import load_surface

SCHEMA = "thinbox.study/1"
POLICIES = ("sci", "patch", "function", "live", "transfer", "callgraph", "profile", "live+transfer")
PIPELINE = ("sh", "-c", "echo hello | wc -c; ls -l /; cat /proc/self/status; uname -a")
COMMON = (
    "read", "write", "open", "openat", "close", "stat", "fstat", "newfstatat", "lstat", "poll", "lseek", "mmap",
    "mprotect", "munmap", "brk", "rt_sigaction", "rt_sigprocmask", "ioctl", "pread64", "pwrite64", "readv", "writev",
    "access", "pipe", "pipe2", "select", "sched_yield", "madvise", "dup", "dup2", "nanosleep", "getpid", "socket",
    "connect", "accept", "sendto", "recvfrom", "sendmsg", "recvmsg", "bind", "listen", "setsockopt", "clone", "fork",
    "execve", "exit_group", "wait4", "kill", "uname", "fcntl", "fsync", "getdents64", "getcwd", "chdir", "rename",
    "mkdir", "unlink", "readlink", "chmod", "futex", "epoll_wait", "epoll_ctl", "clock_gettime", "getrandom",
)  # fmt: skip
"""About 60 calls that containers use most (the issue's list; its order has no meaning)."""

Say = Callable[[str], None]


def collect(folder: Path, jobs: int, say: Say) -> dict[str, Any]:
    """Run everything; return the study's data. `folder` gets the profiles that policies need."""
    guest = prepare(None, None, say)
    profile = folder / "workload.json"
    profile.write_bytes(_learn_workload(guest))
    specs = {name: f"profile:{profile}" if name == "profile" else name for name in POLICIES}
    audits: dict[str, AuditRecord] = {}
    plain: dict[str, AuditEntry] = {}
    for name, spec in specs.items():
        options = AuditOptions(policy=spec, jobs=jobs, plain=plain, progress=say, step=_named(say, name))
        audits[name] = _audited(guest, options, folder / f"{name}.audit.json")
        plain = plain or {entry.title: entry for entry in audits[name].entries if entry.memory}
    surface = load_surface(Session.alone(guest, ("true",)), say, jobs)
    known = folder / "corpus.json"
    known.write_bytes(profile_from(touched_in(audits["live"]), guest.facts.symbols, guest.facts.sha256))
    options = AuditOptions(
        policy="live",
        jobs=jobs,
        prefault=KnownPages.load(known),
        plain=plain,
        step=_named(say, "live, prefaulted"),
    )
    early = _audited(guest, options, folder / "prefault.audit.json")
    say("workloads")
    return {
        "schema": SCHEMA,
        "kernel": {"release": guest.facts.release, "sha256": guest.facts.sha256},
        "text_gadgets": surface.whole.gadgets.total,
        "text_pages": surface.whole.code_pages,
        "audits": {name: _audit_row(record, surface) for name, record in audits.items()},
        "calls": _call_rows(audits["live"]),
        "named": _named_cases(audits["live"]),
        "prefault": {"without": _audit_row(audits["live"], surface), "with": _audit_row(early, surface)},
        "workloads": {
            name: {policy: _workload_row(guest, command, stdin, spec) for policy, spec in specs.items()}
            for name, (command, stdin) in _workloads().items()
        },
        "fault_us": _fault_us(guest),
    }


def _audited(guest: ReadyGuest, options: AuditOptions, path: Path) -> AuditRecord:
    """Audit, or take what an interrupted study left in its folder."""
    if not path.exists():
        path.write_text(json.dumps(audit(guest, options).to_json(with_grants=True)))
    stored = json.loads(path.read_text())
    if stored["kernel"]["sha256"] != guest.facts.sha256:
        raise InputError(f"{path} is of another kernel; give --work another folder")
    entries = [AuditEntry.from_json(entry) for entry in stored["entries"]]
    return AuditRecord(
        guest.facts.release,
        guest.facts.sha256,
        stored["policy"],
        entries,
        implemented_names(guest),
        stored["not_exercised"],
    )


def _named(say: Say, name: str) -> Say:
    return lambda text: say(f"{name}: {text}")


def _workloads() -> dict[str, tuple[tuple[str, ...], Path | None]]:
    import thinbox

    script = Path(thinbox.__file__).parent / "data" / "script.sh"
    return {"pipeline": (PIPELINE, None), "script": (("sh", "-s"), script)}


def _learn_workload(guest: ReadyGuest) -> bytes:
    """The profile of policy `profile`: learned from the two workloads, judged on the corpus it has never seen."""
    records = []
    for command, stdin in _workloads().values():
        with open(stdin or "/dev/null", "rb") as stream:
            records.append(run(guest, command, RunOptions(policy="live", keep_faults=True, stdin=stream)).record)
    return profile_of(records, guest.facts.symbols)


def _workload_row(guest: ReadyGuest, command: tuple[str, ...], stdin: Path | None, spec: str) -> dict[str, Any]:
    with open(stdin or "/dev/null", "rb") as stream:
        result = run(guest, command, RunOptions(policy=spec, stdin=stream))
    totals = result.record.totals
    return {key: totals[key] for key in ("calls", "isolated", "killed", "code_faults", "data_faults")}


def _audit_row(record: AuditRecord, surface: Surface) -> dict[str, Any]:
    alive = [entry for entry in record.entries if entry.exercised and entry.killed is None]
    faults = [entry.code_faults + entry.data_faults for entry in alive]
    left = []
    for entry in alive:
        code = frozenset(grant.page for grant in entry.grants if grant.kind == "fetch")
        data = frozenset(grant.page for grant in entry.grants if grant.kind != "fetch")
        left.append(surface.measure_call(Grants(code, data, frozenset())))
    killed = [entry for entry in record.entries if entry.killed]
    return {
        "policy": record.policy,
        "totals": record.totals,
        "faults": _spread(faults),
        "code_faults": _spread([entry.code_faults for entry in alive]),
        "prefaulted": _spread([entry.prefaulted for entry in alive]),
        "gadget_share": _spread([round(r.gadgets.total / surface.whole.gadgets.total, 6) for r in left]),
        "code_pages": _spread([r.code_pages for r in left]),
        "killed_calls": dict(sorted(Counter(entry.call for entry in killed).items())),
        "killed_rules": dict(sorted(Counter(_rule(entry.killed or "") for entry in killed).items())),
        "killed": sorted(entry.title for entry in killed),
        "different": sorted(e.title for e in record.entries if e.exercised and not e.same and not e.killed),
    }


def _rule(sentence: str) -> str:
    return sentence.partition("refused by rule ")[2].partition(" of policy")[0]


def _spread(values: list[Any]) -> dict[str, Any]:
    if not values:
        return {}
    tenths = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
    return {
        "least": min(values),
        "p10": round(tenths[0], 6),
        "median": statistics.median(values),
        "p90": round(tenths[8], 6),
        "most": max(values),
    }


def _call_rows(record: AuditRecord) -> dict[str, Any]:
    """Faults of the success paths of each call, so that distributions can be drawn."""
    rows: dict[str, list[list[int]]] = {}
    for entry in record.entries:
        if entry.success and entry.exercised:
            rows.setdefault(entry.call, []).append([entry.code_faults, entry.data_faults])
    return rows


def _named_cases(record: AuditRecord) -> dict[str, Any]:
    success = [entry for entry in record.entries if entry.success and entry.exercised]
    least = min(success, key=lambda entry: (entry.code_faults + entry.data_faults, entry.title))
    wanted = {"getpid: plain", "getuid: plain", "write: /dev/kmsg", least.title}
    found = {e.title: [e.code_faults, e.data_faults] for e in success if e.title in wanted}
    return {"least": least.title, "cases": found}


def _fault_us(guest: ReadyGuest) -> dict[str, Any]:
    """CPU time of this process for one granted fault, by difference: the pipeline isolated and not, the least of seven.

    CPU time and the least, because other work on the machine can only add to both.
    """

    def once(isolate: str) -> tuple[float, int]:
        started = time.process_time()
        record = run(guest, PIPELINE, RunOptions(isolate=isolate)).record
        return time.process_time() - started, record.totals["code_faults"] + record.totals["data_faults"]

    once("all")  # what is imported and allocated once is neither's
    pairs = [(once("none")[0], once("all")) for _ in range(7)]
    faults = pairs[0][1][1]
    plain, isolated = min(took for took, _ in pairs), min(took for _, (took, _faults) in pairs)
    return {"faults": faults, "cpu_us_per_fault": round((isolated - plain) / faults * 1e6, 2)}


def save(data: dict[str, Any], path: Path) -> None:
    """Write the study's data."""
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
