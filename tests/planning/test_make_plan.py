"""From recorded runs to a plan: evidence, limits on arguments, phases, strictness, merging, differences."""

import json

import pytest
from tests.support.call_program import DATA, Step, build_program
from thinbox.cli import group
from thinbox.errors import InputError
from thinbox.planning.difference import compare_plans, render_changes
from thinbox.planning.evidence import gather_evidence
from thinbox.planning.make_plan import PlanOptions, make_plan
from thinbox.planning.verify import verify_plan
from thinbox.sandbox.plan import Disposition, Phase
from thinbox.sandbox.plan_file import parse_plan
from thinbox.sandbox.plan_text import render_plan
from thinbox.session.session import RunOptions, run
from thinbox.syscalls.table import call_number

SCRIPT = "echo hello | wc -c; id -u; ls / | wc -l"


def row(seq, name, args=(), isolated=True, verdict="granted", ret=0, **more):
    args = tuple(args) + (0,) * (6 - len(args))
    return {"seq": seq, "nr": call_number(name), "name": name, "args": args, "isolated": isolated, "verdict": verdict,
            "ret": ret, "code_faults": 3, "data_faults": 4, **more}  # fmt: skip


def made_run(*rows, **more):
    return {"schema": "thinbox.run/1", "kernel": {"release": "6.1"}, "policy": "sci", "command": ["x"], "exit_code": 0,
            "killed": None, "calls": [row(0, "execve"), *rows], **more}  # fmt: skip


def plan_of(*runs, attacks=(), marker=(), **options):
    return make_plan(gather_evidence(runs, attacks, marker), PlanOptions(**options))


def rule(plan, name):
    (found,) = plan.rules[call_number(name)]
    return found


@pytest.fixture(scope="module")
def recorded(guest):
    result = run(guest, ["sh", "-c", SCRIPT], RunOptions(coverage=True))
    return json.loads(json.dumps(result.record.to_json()))


def test_a_recorded_workload_runs_under_its_plan(guest, recorded):
    plan = plan_of(recorded)
    read_back = parse_plan(render_plan(plan), "w.toml", None)
    check = verify_plan(guest, read_back, recorded["command"], recorded["exit_code"])
    assert check.holds, check.render()
    assert check.unisolated == 0 and check.reaching < check.calls
    assert all(r.reason for r in plan.every_rule)
    evidence = rule(plan, "openat").evidence
    assert evidence["times"] == sum(call["name"] == "openat" for call in recorded["calls"])
    assert evidence["policies"] == ["live"] and evidence["functions"]["most"] > 50


def test_a_workload_that_strays_is_refused_with_call_argument_and_line(guest, recorded):
    text = render_plan(plan_of(recorded))
    plan = parse_plan(text, "w.toml", None)
    check = verify_plan(guest, plan, ["sh", "-c", f"{SCRIPT}; mkdir /tmp/new; unshare -n true"], 0)
    assert not check.holds
    assert any(line.startswith("mkdir was refused by workload") for line in check.refusals)
    lines = text.splitlines()
    mkdir = next(line for line in check.refusals if line.startswith("mkdir"))
    assert lines[int(mkdir.split("line ")[1].split(" ")[0]) - 1].startswith("default")


def test_strict_also_runs_its_own_workload(guest, recorded):
    plan = plan_of(recorded, strict=True)
    assert plan.default.disposition is Disposition.KILL
    check = verify_plan(guest, plan, recorded["command"], recorded["exit_code"])
    assert check.holds, check.render()
    killed = verify_plan(guest, plan, ["mkdir", "/tmp/x"], 0)
    assert killed.exit_after == 137 and not killed.holds


def test_arguments_that_decide_are_limited_to_what_was_seen():
    plan = plan_of(
        made_run(
            row(1, "socket", (1, 0x80001)), row(2, "socket", (2, 1)), row(3, "clone", (0x1200011,)),
            row(4, "mmap", (0, 4096, 3, 0x22)), row(5, "ioctl", (1, 0xFFFFFFFF80045430)),
        )
    )  # fmt: skip
    decide = lambda name, *args: plan.decide(call_number(name), args + (0,) * (6 - len(args))).answer.disposition
    assert decide("socket", 2, 3) is Disposition.ISOLATE
    assert decide("socket", 17) is Disposition.DENY
    assert decide("clone", 0x1000011) is Disposition.ISOLATE
    assert decide("clone", 0x10000011) is Disposition.DENY  # CLONE_NEWUSER
    assert decide("mmap", 0, 1, 5, 0x22) is Disposition.ISOLATE
    assert decide("mmap", 0, 1, 7, 0x22) is Disposition.DENY  # writable and executable
    assert decide("mmap", 0, 1, 3, 0x40022) is Disposition.DENY
    assert decide("ioctl", 1, 0x80045430) is Disposition.ISOLATE
    assert decide("ioctl", 1, 0x5412) is Disposition.DENY


def test_a_call_killed_under_isolation_is_not_given_to_the_kernel():
    kill = {"call": "mount", "policy": "sci", "reason": "r", "kind": "fetch"}
    killed = made_run(row(1, "mount", verdict="killed"), killed=kill)
    found = rule(plan_of(killed), "mount")
    assert found.answer.disposition is Disposition.DENY and "look before" in found.reason
    also = made_run(row(1, "getpid", verdict="killed"), killed=kill | {"call": "getpid"})
    assert rule(plan_of(also, emulate=False), "getpid").answer.disposition is Disposition.EMULATE


def test_every_call_killed_in_a_run_counts_not_only_the_first(guest):
    words = "(ln -s a /tmp/b); (nc -l -p 80 -w 1); true"
    result = run(guest, ["sh", "-c", words], RunOptions(policy="patch", isolate="symlink,socket"))
    record = json.loads(json.dumps(result.record.to_json()))
    assert [kill["call"] for kill in record["kills"]] == ["symlink", "socket"]
    older = {name: value for name, value in record.items() if name != "kills"}  # as records were written before
    for written, why in ((record, "ran out of room"), (older, "does not say why")):
        found = rule(plan_of(written), "socket")
        assert found.answer.disposition is Disposition.DENY and found.evidence["violations"] == 1
        assert found.reason.startswith("killed 1 of 1 times") and why in found.reason


def test_what_a_plan_refused_in_a_run_is_no_reason_to_allow_it():
    """Not the call, by errno or by death; not the argument; and not the phase."""
    denied = {"isolated": False, "verdict": "denied", "disposition": "deny"}
    dead = {"isolated": False, "verdict": "killed", "disposition": "kill"}
    rows = (
        row(1, "mount", **dead), row(2, "umount2", **denied), row(3, "socket", (1,)), row(4, "socket", (2,), **denied),
        row(5, "ptrace", (1,), **dead), row(6, "ptrace", (0,)), row(7, "accept4"), row(8, "socket", (1,), **denied),
    )  # fmt: skip
    for options in ({}, {"strict": True}):
        plan = plan_of(made_run(*rows), **options)
        for name in ("mount", "umount2"):
            found = rule(plan, name)
            assert not found.answer.disposition.reaches_kernel and "refused by the plan" in found.reason
        assert [(c.name, c.values) for c in rule(plan, "socket").when] == [("family", (1,))]
        assert rule(plan, "socket").phase is Phase.START
        assert rule(plan, "ptrace").when[0].values == (0,)
        assert rule(plan, "socket").evidence["times"] == 3


def test_what_was_never_isolated_is_said_and_strict_refuses_it():
    plain = made_run(row(1, "mount", isolated=False))
    assert "not tried isolated" in rule(plan_of(plain), "mount").reason
    assert rule(plan_of(plain, strict=True), "mount").answer.disposition is Disposition.KILL


def test_runs_are_added_up():
    plan = plan_of(made_run(row(1, "socket", (1,))), made_run(row(1, "socket", (2,)), policy="function"))
    found = rule(plan, "socket")
    assert found.evidence["times"] == 2 and found.evidence["policies"] == ["function", "sci"]
    assert found.when[0].values == (1, 2)


def test_attacks_are_evidence_under_their_policy():
    rows = [
        {"attack": "rop", "policy": "sci", "outcome": "detected"},
        {"attack": "data", "policy": "sci", "outcome": "succeeded"},
    ]
    plan = plan_of(made_run(row(1, "mount")), attacks=[{"schema": "thinbox.attack/1", "rows": rows}])
    assert rule(plan, "mount").evidence["attacks_stopped"] == 1
    assert "1 of the attacks given still succeed" in rule(plan, "mount").reason


def test_start_up_is_what_comes_before_the_marker():
    rows = (row(1, "socket", (1,)), row(2, "read"), row(3, "accept4"), row(4, "read"))
    plan = plan_of(made_run(*rows))
    assert rule(plan, "socket").phase is Phase.START and rule(plan, "read").phase is Phase.ALWAYS
    assert call_number("accept4") in plan.marker
    memory = plan_of(made_run(row(1, "brk"), row(2, "getuid"), *(r | {"seq": r["seq"] + 2} for r in rows)))
    assert rule(memory, "brk").phase is rule(memory, "getuid").phase is Phase.ALWAYS
    assert plan_of(made_run(row(1, "socket", (1,)))).marker == ()
    other = plan_of(made_run(*rows), marker=("read",))
    assert other.rules[call_number("socket")][0].phase is Phase.START
    written = plan_of(made_run(row(1, "socket", (1,)), row(2, "write", (0xFFFFFFFF,)), row(3, "getpid")), emulate=False)
    assert rule(written, "socket").phase is Phase.START and rule(written, "getpid").phase is Phase.ALWAYS


def test_a_server_is_held_to_its_steady_state(guest, tmp_path):
    """socket, poll, getpid … recorded; then a second phase that opens a socket again is refused."""
    image = lambda *steps: build_program(*steps)
    program = tmp_path / "program"

    def start(*steps, plan=None):
        program.write_bytes(image(*steps))
        program.chmod(0o755)
        return run(guest, ["/program"], RunOptions(rootfs=tmp_path, plan=plan))

    socket, poll, stat = Step("socket", (1, 1, 0)), Step("poll", (0, 0, 0)), Step("stat", (DATA + 64, DATA + 512))
    recorded = start(socket, poll, stat)
    plan = make_plan(gather_evidence([json.loads(json.dumps(recorded.record.to_json()))]), PlanOptions())
    again = start(socket, poll, stat, plan=plan)
    assert again.stdout == recorded.stdout and not again.record.refusals
    strays = start(socket, poll, stat, socket, plan=plan)
    (refusal,) = strays.record.refusals
    assert refusal.call == "socket" and "start-up only" in refusal.reason


def test_a_difference_says_what_got_looser():
    old = plan_of(made_run(row(1, "socket", (1,)), row(2, "mount")))
    new = plan_of(made_run(row(1, "socket", (2,)), row(2, "openat")))
    changes = {change.call: change for change in compare_plans(old, new)}
    assert changes["mount"].direction == "tighter" and changes["openat"].direction == "looser"
    assert changes["socket"].direction == "other"
    assert "+ openat: deny:ENOSYS (default) -> isolate" in render_changes(tuple(changes.values()))
    assert compare_plans(old, old) == ()


@pytest.mark.parametrize("damage", ["calls", "kernel", "policy", "command"])
def test_a_run_that_lacks_something_is_one_line(damage):
    broken = made_run()
    del broken[damage]
    with pytest.raises(InputError, match="record it again"):
        gather_evidence([broken])


def test_the_command_makes_exports_and_compares(tmp_path, recorded):
    from click.testing import CliRunner

    (tmp_path / "run.json").write_text(json.dumps(recorded))
    place = str(tmp_path)
    words = ["plan", f"{place}/run.json", "-o", f"{place}/w.toml"]
    words += [
        w
        for kind in ("oci", "docker", "systemd", "spo", "bpf", "gvisor")
        for w in ("--export", f"{kind}={place}/{kind}")
    ]
    done = CliRunner().invoke(group, words)
    assert done.exit_code == 0, done.output
    assert {"oci.evidence.json", "bpf.evidence.json", "docker.evidence.json"} <= {p.name for p in tmp_path.iterdir()}
    from_plan = CliRunner().invoke(group, ["plan", f"{place}/w.toml", "--export", f"oci={place}/again"])
    assert from_plan.exit_code == 0 and (tmp_path / "again").read_bytes() == (tmp_path / "oci").read_bytes()
    same = CliRunner().invoke(group, ["plan", f"{place}/w.toml", "--diff", f"{place}/w.toml"])
    assert same.exit_code == 0
    looser = CliRunner().invoke(group, ["plan", f"{place}/w.toml", "--diff", "nabla"])
    assert looser.exit_code == 1
    imported = CliRunner().invoke(group, ["plan", f"{place}/run.json", "--import", f"{place}/oci"])
    assert "made and not allowed: none" in imported.output


def test_a_bad_export_is_noticed_before_anything_is_written(tmp_path):
    from click.testing import CliRunner

    (tmp_path / "run.json").write_text(json.dumps(made_run()))
    words = ["plan", str(tmp_path / "run.json"), "-o", str(tmp_path / "p.toml"), "--export", f"oci={tmp_path}/a"]
    done = CliRunner().invoke(group, [*words, "--export", "nothing=x"])
    assert isinstance(done.exception, InputError) and "no export 'nothing'" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
