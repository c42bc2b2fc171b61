"""Every export read and enforced by the engine it is for: docker, podman, runc, crun, systemd, and the operator's file.

Rules of this file: an engine runs all its jobs once, in a room of its own; the tests look at what came of them. Where it
is not installed, or cannot run even without a profile, its tests are skipped with the reason.
"""

import shutil
from dataclasses import dataclass

import pytest
from tests.planning.workload import COMMAND, CONNECT, EXPECTED, STRAY, plan_by_hand
from tests.support.engine_room import NoRoomError, require_room, run_in_room
from tests.support.engines import ENGINES, Engine, Job, Ran
from thinbox.planning.exports import EXPORTS
from thinbox.planning.filters import make_filter
from thinbox.planning.make_plan import PlanOptions, make_plan
from thinbox.planning.runtime_calls import find_runtimes
from thinbox.sandbox.plan_file import parse_plan

BUILTIN = ["sh", "-c", "echo on"]
WITH_PRIVILEGES = ("program", "stray, kill", "runtime", "no runtime")
"""What is tried both ways: a runtime loads the filter later where its program may gain no privileges."""
LIMIT = ["sh", "-c", "ulimit -c 0; echo $?"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An engine and what came of its jobs, by their names."""

    engine: Engine
    ran: dict[str, Ran]

    def each(self, name):
        """Return what came of a job, without the right to gain privileges and, where that was tried, with it."""
        return [self.ran[key] for key in (name, f"{name}, privileges") if key in self.ran]


@pytest.fixture(scope="module")
def plans(evidence):
    hand = {
        "inet": plan_by_hand('socket = { do = "isolate", when = { family = "AF_INET" } }'),
        "unix": plan_by_hand('socket = { do = "isolate", when = { family = "AF_UNIX" } }'),
        "no execve": plan_by_hand(without=("execve",)),
        "no limit": plan_by_hand(
            'mkdir = { do = "deny", errno = "EACCES" }\nrmdir = "kill"', without=("prlimit64", "setrlimit", "getrlimit")
        ),
    }
    made = {name: parse_plan(text, "p", None) for name, text in hand.items()}
    return made | {"deny": make_plan(evidence, PlanOptions()), "kill": make_plan(evidence, PlanOptions(strict=True))}


@pytest.fixture(scope="module", params=ENGINES, ids=lambda engine: engine.name)
def outcome(request, root, plans, tmp_path_factory):
    engine = request.param
    if engine.missing():
        pytest.skip(engine.missing())
    try:
        require_room()
    except NoRoomError as error:
        pytest.skip(str(error))
    jobs = {"plain": Job(COMMAND), "plain stray": Job(STRAY), "plain limit": Job(LIMIT)}
    for name, plan, command in (
        ("program", "deny", COMMAND),
        ("program, kill", "kill", COMMAND),
        ("stray", "deny", STRAY),
        ("stray, kill", "kill", STRAY),
        ("inet", "inet", CONNECT),
        ("unix", "unix", CONNECT),
        ("runtime", "no execve", BUILTIN),
        ("no runtime", "no execve", BUILTIN),
        ("limit", "no limit", LIMIT),
        ("own errno", "no limit", ["sh", "-c", "mkdir /tmp/x"]),
        ("own kill", "no limit", ["sh", "-c", "rmdir /tmp/x; echo $?"]),
    ):
        for privileges in (False, True) if name in WITH_PRIVILEGES else (False,):
            own = "none" if name == "no runtime" else engine.runtimes[privileges]
            profile = EXPORTS[engine.export](make_filter(plans[plan], find_runtimes((own,))))
            jobs[name + ", privileges" * privileges] = Job(command, engine.convert(profile), privileges)
    folder = tmp_path_factory.mktemp("room")
    try:
        ran = dict(zip(jobs, engine.run(folder, root, list(jobs.values())), strict=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if ran["plain"].exit_code != 7:
        pytest.skip(f"{engine.name} cannot run here: {ran['plain'].stderr.decode(errors='replace').strip()[-200:]}")
    assert ran["plain"].stdout.rstrip() == EXPECTED.rstrip()  # podman's /etc/hostname ends without a newline
    assert (ran["plain stray"].stdout, ran["plain limit"].stdout) == (b"0\non\n", b"0\n")
    return Outcome(engine, ran)


def test_the_program_runs_to_its_end_under_its_own_profile(outcome):
    for ran in (*outcome.each("program"), *outcome.each("program, kill")):
        assert (ran.exit_code, ran.stdout.rstrip()) == (7, EXPECTED.rstrip()), ran.stderr


def test_a_call_outside_the_profile_fails_as_the_profile_says(outcome):
    for ran in outcome.each("stray"):
        assert ran.stdout == b"1\non\n" and b"mkdir" in ran.stderr and b"Function not implemented" in ran.stderr, ran
    for ran in outcome.each("stray, kill"):
        assert ran.stdout == b"159\non\n", ran
    for ran in outcome.each("own errno"):
        assert ran.exit_code == 1 and b"Permission denied" in ran.stderr, ran
    for ran in outcome.each("own kill"):
        assert ran.stdout == b"159\n", ran


def test_an_argument_outside_the_profile_is_refused(outcome):
    for ran in outcome.each("inet"):
        assert b"can't connect" in ran.stderr, ran
    # systemd limits no arguments but families, with an errno of its own.
    says = b"Address family not supported" if outcome.engine.name == "systemd" else b"Operation not permitted"
    for ran in outcome.each("unix"):
        assert b"nc: socket: " + says in ran.stderr, ran


def test_what_an_engine_allows_of_itself_is_refused_too(outcome):
    # prlimit64 is in systemd's @default.
    for ran in outcome.each("limit"):
        assert ran.stdout != b"0\n" and b"Operation not permitted" in ran.stderr, ran


def test_the_calls_of_the_runtime_are_enough_and_needed(outcome):
    for ran in outcome.each("runtime"):
        assert ran.stdout == b"on\n", ran
    for ran in outcome.each("no runtime"):
        assert ran.exit_code != 0 and ran.stdout == b"", ran


def test_systemd_knows_every_name_and_setting_of_the_drop_in(plans, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    try:
        require_room()
    except NoRoomError as error:
        pytest.skip(str(error))
    for index, plan in enumerate(plans.values()):
        unit = tmp_path / f"job{index}.service"
        unit.write_text("[Service]\nExecStart=/bin/true\n")
        (tmp_path / f"{unit.name}.d").mkdir()
        drop_in = EXPORTS["systemd"](make_filter(plan, find_runtimes(("systemd",))))
        (tmp_path / f"{unit.name}.d" / "thinbox.conf").write_bytes(drop_in)
    bad = tmp_path / "bad.service"
    bad.write_text("[Service]\nExecStart=/bin/true\nSystemCallFilter=no_such_call\n")
    verify = "systemd-analyze --man=no verify"
    # It writes to /tmp, whatever TMPDIR says, and there the host's files are read-only.
    script = "mount --bind . /mnt && cd /mnt && mount -t tmpfs tmpfs /tmp || exit 9\n"
    script += f"for unit in job*.service; do {verify} ./$unit || exit 1; done; {verify} ./bad.service 2>bad; cat bad"
    done = run_in_room(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    assert b"no_such_call" in done.stdout
    assert done.stdout.count(b"\n") == 1, done.stdout
