"""Attacks: each succeeds unisolated, by the guest's own evidence; what stops it is what the documents say."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from thinbox.attacks import exploit_runner
from thinbox.attacks.exploit_runner import ExploitRunner
from thinbox.attacks.bug import wrong_registers
from thinbox.attacks.exploit import Exploit, all_exploits, choose_exploits
from thinbox.attacks.exploits import rop_clear_smep
from thinbox.attacks.matrix import MatrixOptions, make_row, run_matrix
from thinbox.records.attack import AttackRecord, AttackRow
from thinbox.attacks.hijack import TARGET_FUNCTION
from thinbox.attacks.kill_stress import KillStress, expected_output
from thinbox.attacks.attacker import O_RDWR
from thinbox.address import page_start
from thinbox.attacks.payload import REGISTERS, Chain
from thinbox.attacks.scenario import COMMON_TEXT, OPEN_FILE, make_scenario
from thinbox.cli.attack import attack
from thinbox.errors import InputError
from thinbox.isolation.policies import load_policy
from thinbox.report.attack import BEGIN, END, replace_generated

THROUGH_SCI = {
    "whole-function",
    "root-program",
    "fault-in",
    "split-gadget",
    "gadget-reuse",
    "own-cred",
    "modprobe-path",
    "own-page-table",
    "timer-function",
    "read-socket",
    "read-memory",
    "read-page-cache",
    "read-pipe",
    "pipe-read-memory",
    "pipe-read-page-cache",
    "write-memory",
    "write-pipe",
    "pipe-write-page-cache",
    "pipe-write-common-file",
    "forged-owner",
    "zero-page",
    "vdso-code",
    "map-common-file",
    "text-by-own-table",
    "text-by-direct-map",
    "remapped-text",
    "forged-vm-ops",
    "cred-in-prctl",
    "cred-in-setresuid",
    "first-namespace",
    "cred-in-failed-execve",
    "cred-in-namespace",
    "forged-id-map",
    "forged-groups",
    "remapped-cred",
    "namespace-of-user-memory",
}
BEST_POLICY, BEST_VIEW = "live+guard", "permissive"


@pytest.fixture(scope="module")
def scenario(guest):
    return make_scenario(guest)


@pytest.fixture(scope="module")
def runner(guest, scenario):
    return ExploitRunner(guest, scenario, load_policy("sci"))


@pytest.fixture(scope="module")
def best(guest):
    return run_matrix(guest, MatrixOptions(policies=("none", BEST_POLICY), views=(BEST_VIEW,)))


def test_there_are_at_least_18():
    assert len(all_exploits()) >= 18


@pytest.mark.parametrize("exploit", all_exploits(), ids=lambda exploit: exploit.name)
def test_each_succeeds_unisolated_and_sci_stops_what_it_is_said_to_stop(runner, exploit):
    plain = runner.run(exploit, isolated=False)
    assert plain.reached and plain.bugs_reached, plain.problem
    isolated = runner.run(exploit, isolated=True)
    assert isolated.reached == (exploit.name in THROUGH_SCI)
    if not isolated.reached:
        assert isolated.violation.rule == "6b"
        assert isolated.violation.undone


@pytest.mark.parametrize("exploit", all_exploits(), ids=lambda exploit: exploit.name)
def test_without_its_bug_an_attack_reaches_nothing_and_is_not_killed(runner, exploit):
    for isolated in (False, True):
        found = runner.run(exploit, isolated=isolated, with_bugs=False)
        assert not found.reached and found.violation is None
        # It was tried: it came to every place where its bugs would have been.
        assert found.bugs_reached, found.problem


def test_with_the_best_policy_and_view_one_attack_is_left(best):
    assert not best.broken
    assert [row.attack for row in best.get_through(BEST_POLICY, BEST_VIEW)] == ["forged-owner"]
    # What an interrupt did to the attacker's ids is put back at its next call: nobody wrote that who could be killed.
    assert not [row.attack for row in best.rows if row.outcome == "detected" and not row.undone]
    (timer,) = [
        row for row in best.rows if (row.attack, row.policy, row.view) == ("timer-function", BEST_POLICY, BEST_VIEW)
    ]
    assert timer.outcome == "contained"


def test_without_the_write_to_cr4_smep_stops_user_code(runner, monkeypatch):
    """The bit is enforced: the exploit's own way out is left away, and the kernel dies of it."""
    (exploit,) = choose_exploits(("rop-clear-smep",))
    monkeypatch.setattr(rop_clear_smep, "SMEP", 0)
    found = runner.run(exploit, isolated=False)
    assert not found.reached
    assert b"unable to execute userspace code" in runner.machine.console


def test_a_bug_that_is_never_reached_is_no_success(runner):
    def body(attacker):
        place, register = attacker.text.indirect_call("ksys_lseek")
        yield from attacker.attack("getuid", bug=wrong_registers(place, {register: 0}))
        return True

    never = Exploit("never", "", "", "kernel", False, body)
    found = runner.run(never, isolated=False)
    assert not found.reached and "did not come to the place of the bug" in found.problem
    assert not found.bugs_reached and not runner.run(never, isolated=False, with_bugs=False).bugs_reached


def test_of_several_candidates_the_first_that_succeeds_unisolated_is_taken(runner, scenario):
    """One that brings the guest down is none, and neither is one that the exploit cannot use."""
    tried = []

    def body(attacker):
        tried.append(attacker.candidate)
        place, register = attacker.text.indirect_call("ksys_lseek")
        target = attacker.text.function(str(attacker.candidate))
        handle = yield from attacker.own_file()
        bug = wrong_registers(place, {register: target, "rdi": attacker.text.data("init_cred")})
        yield from attacker.attack("lseek", handle, 0, 0, bug=bug)
        return (yield from attacker.is_root())

    names = ("panic", "no_such_function", "commit_creds", "machine_restart")
    choosing = Exploit("choosing", "", "", "kernel", False, body, lambda _text: names)
    assert runner.run(choosing, isolated=False).reached
    assert tried == ["panic", "no_such_function", "commit_creds", "commit_creds"]
    # Under isolation the same payload is tried, and none is looked for again.
    runner.run(choosing, isolated=True)
    assert tried[4:] == ["commit_creds"]
    hopeless = Exploit("hopeless", "", "", "kernel", False, body, lambda _text: ("panic",))
    found = runner.run(hopeless, isolated=False)
    assert not found.reached and "None" in found.problem


def test_what_a_read_runs_is_looked_at(scenario):
    text, run = scenario.text, scenario.read_run
    assert {page_start(text.function(name)) for name in ("do_syscall_64", "vfs_read")} <= run.pages
    assert page_start(text.copy_routine) in run.pages and run.count_register in ("rcx", "rdx")
    assert page_start(text.function("hugetlb_reserve_pages")) not in run.pages
    assert len(run.pages) < 100


@pytest.mark.parametrize("register", ["rdi", "rsi", "rcx", "rsp", "r12"])
def test_a_loader_pops_what_it_says(scenario, register):
    loader = scenario.text.loader(register)
    *popped, end = scenario.text.decode(loader.vaddr, loader.size_bytes)
    assert [operands for _vaddr, _size, mnemonic, operands in popped if mnemonic == "pop"] == [
        REGISTERS[number] for number in loader.registers
    ]
    assert end[2] == "ret" and register in loader.name
    values = Chain().load(loader, {register: 7}).words
    assert values[0] == loader.vaddr and values.count(7) == 1 and len(values) == 1 + len(loader.registers)


def test_an_attack_without_end_ends_and_is_no_success(runner, monkeypatch):
    """Calls take next to no virtual time, and much of the host's."""

    def body(attacker):
        while (yield from attacker.call("getuid")) != 0:
            pass
        return True

    monkeypatch.setattr(exploit_runner, "_LIMITS", replace(exploit_runner._LIMITS, syscalls=5_000))
    endless = Exploit("endless", "", "", "kernel", False, body)
    found = runner.run(endless, isolated=False)
    assert not found.reached and found.problem == "the try did not end within 5000 system calls"
    row = make_row(endless, "none", "none", found)
    assert (row.outcome, row.reason) == ("contained", found.problem)


def test_the_rows_do_not_depend_on_the_number_of_jobs(guest):
    names = ("rop-commit-creds", "read-pipe")
    options = [MatrixOptions(names, ("none", "sci"), ("none", "permissive"), jobs) for jobs in (1, 2)]
    first, second = (run_matrix(guest, one).rows for one in options)
    assert first == second and len(first) == 6


def test_the_command_writes_the_json_of_the_contract(tmp_path):
    path = tmp_path / "rows.json"
    done = CliRunner().invoke(attack, ["-q", "bad-call", "--policy", "none,sci", "--json", str(path)])
    assert done.exit_code == 0
    values = json.loads(path.read_text())
    assert values["schema"] == "thinbox.attack/1" and set(values["kernel"]) == {"release", "sha256"}
    plain, isolated = values["rows"]
    assert (plain["policy"], plain["outcome"]) == ("none", "succeeded")
    assert isolated.items() >= {"attack": "bad-call", "policy": "sci", "view": "none", "outcome": "detected"}.items()
    assert isolated["symbol"] == TARGET_FUNCTION and isolated["offset"] > 0
    assert isolated["undone"] is True and isolated["step"].startswith("1 lseek")


@pytest.mark.parametrize("arguments", [["no-such"], ["jop", "--view", "no-such"], ["jop", "--policy", "x"], []])
def test_bad_usage_is_refused(arguments):
    done = CliRunner().invoke(attack, arguments)
    assert isinstance(done.exception, InputError)


def test_an_attack_that_fails_unisolated_is_broken():
    record = AttackRecord("r", "s", [AttackRow("a", "none", "none", "contained", "kernel")])
    assert record.broken == record.rows


def test_only_the_marked_part_of_a_document_is_replaced():
    assert replace_generated(f"a{BEGIN}old{END}b", "new\n") == f"a{BEGIN}\nnew\n{END}b"


def test_a_victim_does_not_feel_kills_that_are_undone(guest, scenario):
    stress = KillStress(guest, scenario, load_policy("sci"), "undo")
    calm, attacked = stress.stress(0, 60), stress.stress(30, 60)
    assert (attacked.kills, attacked.undone, attacked.is_wounded) == (30, 30, False)
    assert calm.output == attacked.output == expected_output(60)
    assert attacked.victim_ns < 3 * calm.victim_ns
    assert (attacked.locks, attacked.blocked, attacked.tasks) == ("", "procs_blocked 0", calm.tasks)
    for name in ("MemFree", "AnonPages", "KernelStack", "PageTables", "Shmem"):
        assert abs(attacked.counts[name] - calm.counts[name]) <= 256
    assert abs(attacked.counts["Slab"] - calm.counts["Slab"]) <= 512


def test_as_an_oops_the_first_kill_with_a_lock_held_wounds_the_guest(guest, scenario):
    stress = KillStress(guest, scenario, load_policy("sci"), "oops")
    found = stress.stress(30, 60, 5_000_000_000)
    assert found.is_wounded and found.kills < 30 and found.undone == 0


@pytest.mark.parametrize("view", ["permissive", "strict"])
def test_a_file_of_nobodys_is_written_by_who_opened_it_for_that(guest, scenario, view):
    """Its page is not the attacker's, the file is: no violation."""

    def body(attacker):
        handle = yield from attacker.must("open", OPEN_FILE, O_RDWR, 0)
        done = yield from attacker.attack("pwrite64", handle, attacker.buffer(b"written"), 7, 0)
        place = attacker.buffer(32)
        back = yield from attacker.attack("pread64", handle, place, 32, 0)
        return (done, back) == (7, 32) and attacker.read(place, 32) == b"written" + COMMON_TEXT[7:]

    runner = ExploitRunner(guest, scenario, load_policy("live+guard"), view=view)
    found = runner.run(Exploit("plain", "", "", "tenant", True, body), isolated=True)
    assert found.reached and found.violation is None, (found.problem, found.violation)
