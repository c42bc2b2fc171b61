"""Small records of every kind that `thinbox report` shows, each written by the tool's own writer."""

import json

import numpy as np
from thinbox.records.attack import AttackRecord, AttackRow
from thinbox.records.audit import AuditEntry, AuditRecord
from thinbox.cli.results import tenants_json
from thinbox.cost.model import Model
from thinbox.cost.modes import MODES
from thinbox.cost.profiles import cpu_names, find_profile
from thinbox.cost.workload import workload_of
from thinbox.records.coverage import NameCoverage, RunCoverage, Use
from thinbox.isolation.verdict import PLANNED, Violation
from thinbox.planning.call_costs import CallCosts, Column
from thinbox.planning.comparison import Comparison
from thinbox.planning.host_calls import Allowed, HostCalls
from thinbox.planning.runtime_row import EMULATED, HOST, Row, absent
from thinbox.report.cost_table import costs_json
from thinbox.sandbox.plan import Answer, Condition, Disposition, OwnedFile, Phase, Plan, Rule
from thinbox.sandbox.plan_text import render_plan
from thinbox.records.run import CallRecord, RunRecord
from thinbox.records.refusals import Refusal, Refusals
from thinbox.session.session import RunResult
from thinbox.surface.gadget_set import GadgetCounts
from thinbox.surface.residual import Residual
from thinbox.surface.run_surface import MEASURES, CallSurface, RunSurface

KERNEL, SHA = "6.1.0-56-cloud-amd64", "51" * 32


def call(seq, name, nr, code, data, **more):
    return CallRecord(
        seq, "tenant", 79, nr, name, (3, 0x7FFF0000, 5, 0, 0, 0),
        **({"ret": 0, "isolated": True, "verdict": "granted", "code_bytes": 1000 * code, "virtual_ns": 900 * code} | more),
        code_faults=code, data_faults=data,
    )  # fmt: skip


def violation(**more):
    values = {
        "call": "mkdir", "reason": "a jump into the middle of a function", "rule": "6b", "vaddr": 0xFFFFFFFF812FFC55,
        "symbol": "hugetlb_reserve_pages", "offset": 0xC5, "policy": "sci", "kind": "fetch",
    }  # fmt: skip
    return Violation(**(values | more))


def run_record(**more):
    record = RunRecord(KERNEL, SHA, "sci", ("sh", "-c", "echo one | wc -c"))
    record.calls = [
        call(0, "execve", 59, 281, 202),
        call(1, "read", 0, 30, 20),
        call(2, "read", 0, 10, 0),
        call(3, "write", 1, 5, 4, ret=-9),
        call(4, "exit_group", 231, 180, 150, ret=None),
    ]
    record.tables_made = record.tables_freed = 1
    record.table_pages_made = record.table_pages_freed = 34
    record.wall_s, record.fault_us, record.virtual_ns = 98.7654321, [5.4321], 24_019_571
    record.events.rows = [[1, 2, 0, 1, 0, 0, 0]] * 5
    for name, value in more.items():
        setattr(record, name, value)
    return record


def killed_record(**more):
    record = run_record(exit_code=137, kills=[violation(), violation(rule="6c of sci", call="read")], **more)
    record.calls[1].verdict, record.calls[1].ret = "killed", None
    record.killed = record.kills[0]
    return record


def refused_record():
    refusals = Refusals()
    for _ in range(3):
        refusals.add(
            Refusal("socket", 79, "deny EAFNOSUPPORT", 97, "web.toml", 7, "family=AF_INET", "no rule allows it")
        )
    record = run_record(plan="web", steady_seq=3, refusals=refusals)
    for at, each in enumerate(record.calls):
        each.disposition = "isolate" if at else "emulate"
    record.kills = [violation(kind=PLANNED, reason="plan web.toml, line 9: mount", rule="plan")]
    record.killed = record.kills[0]
    return record


def coverage(lost=0):
    use = (Use(0xFFFFFFFF81000000, "do_syscall_64", 4), Use(0xFFFFFFFF81001000, "ksys_read", 2))
    name = NameCoverage("read", 2, 2, use, use, 1, use, use[:1], ())
    return RunCoverage((name, NameCoverage("write", 1, 0, use, use, 1, use, (), ())), use, 2, 2, 1, ("irq",), lost)


def surface():
    whole = Residual(4100, GadgetCounts(500_000, 20_000, 60_000, 10_408), 44_180, 44_180, 139_928, 131_646)
    spread = dict.fromkeys(MEASURES, 35), dict.fromkeys(MEASURES, 286)
    names = [CallSurface(name, 2, 2, *spread) for name in ("execve", "read")]
    return RunSurface("sci", "ab" * 32, whole, tuple(names), CallSurface("*", 4, 4, *spread))


def audit_record(policy="patch", killed=True):
    sentence = f"open was killed: fetch at x+0x1 (0xff) refused by rule limits (posted) of policy {policy}: no room"
    entries = [
        AuditEntry("getpid", "plain", True, True, ret=79, isolated_ret=79, same=True, code_faults=7, data_faults=8),
        AuditEntry("open", "new file", True, True, "killed", 3, None, not killed, sentence if killed else None, 68, 55),
        AuditEntry("read", "short", True, True, "another result", 3, 2, False),
        AuditEntry("mount", "proc", True, False, "un-isolated it gave EPERM"),
    ]
    return AuditRecord(
        KERNEL, SHA, policy, entries, ("getpid", "open", "read", "mount"), {"mount": "needs a disk"}, 1.5
    )


def attack_record():
    stopped = {"step": "1 lseek: the target", "rule": "6b of live", "vaddr": 0xFFFFFFFF81000123, "symbol": "f", "offset": 5,
               "kind": "fetch", "undone": True, "reason": "a jump into the middle"}  # fmt: skip
    rows = [
        AttackRow("bad-call", "none", "none", "succeeded", "kernel", "1 lseek"),
        AttackRow("bad-call", "sci", "none", "detected", "kernel", **stopped),
        AttackRow("bad-call", "live+guard", "strict", "contained", "kernel", reason="it gained nothing"),
        AttackRow("own-cred", "none", "none", "contained", "kernel", reason="did not work"),
        AttackRow("own-cred", "sci", "none", "succeeded", "kernel", "2 write"),
        AttackRow("own-cred", "live+guard", "strict", "detected", "kernel", **stopped),
    ]
    return AttackRecord(KERNEL, SHA, rows)


def comparison():
    host = HostCalls({"sentry": Allowed(("read",), ("futex",))}, {"sentry": {"futex": 40, "read": 2}}, ("no filter",))
    rows = (
        Row("native", HOST, 0, 73, 73, 73, ratio=1.0, wall_s=0.016, note="calls as counted in thinbox"),
        Row("gVisor, ptrace", HOST, 0, 73, 42, 42, host_calls=69, host_made=2, ratio=8.9, wall_s=0.139, host=host),
        absent("gVisor, systrap", "runsc has no platform systrap"),
        Row("thinbox, isolated", EMULATED, 0, 73, 73, 0, 1192, ratio=1.0, wall_s=0.278, note="each on its own table"),
    )
    return Comparison(("sh", "-c", "echo one"), rows)


def call_costs():
    columns = (Column("native", "native"), Column("gVisor ptrace", "ptrace"), Column("gVisor kvm", "kvm", missing="no"))
    figures = {
        "getppid": {"native": 117.0, "gVisor ptrace": 12760.0},
        "stat": {"native": 1013.0, "gVisor ptrace": None},
    }
    return CallCosts(columns, figures)


def cost_json():
    model = Model(workload_of(run_record().to_json(), None))
    return costs_json("run.json", model, model.costs([find_profile(name) for name in cpu_names()], MODES))


def plan_text():
    answer, deny = Answer(Disposition.ISOLATE), Answer(Disposition.DENY, 97)
    family = Condition(0, "family", 0xFFFFFFFF, (1, 2))
    rules = {
        0: (Rule(0, answer, reason="ran isolated 9 times"),),
        39: (Rule(39, Answer(Disposition.EMULATE)),),
        41: (Rule(41, answer, (family,), phase=Phase.START), Rule(41, deny, reason="nothing else")),
        165: (Rule(165, Answer(Disposition.KILL)), ),
        39 + 63: (Rule(102, Answer(Disposition.PASS)),),
    }  # fmt: skip
    file = OwnedFile("/etc/hostname", b"web\n")
    return render_plan(Plan("web", rules, deny, deny, marker=(288,), files=(file,), source="a run", date="2026"))


def written():
    """Return each kind of record by a name, as a JSON object; of plans, the text."""
    tenants = {
        "web": RunResult(0, b"", b"", run_record(view="strict"), ""),
        "batch": RunResult(137, b"", b"", killed_record(), ""),
    }
    objects = {
        "run": run_record().to_json(),
        "whole run": run_record(coverage=coverage()).to_json() | {"surface": surface().to_json()},
        "killed": killed_record(stuck=True).to_json(),
        "refused": refused_record().to_json(),
        "tenants": tenants_json(tenants),
        "audit": audit_record().to_json(),
        "attack": attack_record().to_json(),
        "compare": comparison().to_json(),
        "compare-calls": call_costs().to_json(),
        "coverage": coverage().to_json(),
        "cost": cost_json(),
    }
    # As it is in a file: tuples are lists, and numpy's numbers would have been an error.
    assert not any(isinstance(value, np.generic) for value in objects["cost"].values())
    return {name: json.loads(json.dumps(value)) for name, value in objects.items()}
