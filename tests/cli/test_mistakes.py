"""Mistakes of who writes a policy or a plan's handler, or misspells a name: one line that says where, status 2."""

import subprocess
import sys

import pytest

POLICIES = """import thinbox


class Fails(thinbox.Policy):
    name = "fails"

    def check_access(self, access, call):
        return access.nope


class Silent(thinbox.Policy):
    name = "silent"

    def check_access(self, access, call):
        return None
"""
HANDLERS = """def fails(call):
    return 1 // 0


def silent(call):
    return None
"""
PLAN = """schema = "thinbox.plan/1"
name = "test"
default = "isolate"
[calls]
getuid = { emulate = "handlers:NAME" }
"""


@pytest.fixture
def thinbox(tmp_path):
    (tmp_path / "policies.py").write_text(POLICIES)
    (tmp_path / "handlers.py").write_text(HANDLERS)
    (tmp_path / "broken.py").write_text("def (\n")

    def start(*words):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "thinbox", *words], capture_output=True, text=True, cwd=tmp_path
        )
        return done.returncode, done.stderr.splitlines(), done.stdout

    return start


@pytest.mark.guest
@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("policies:Fails", "policies.py:8: AttributeError: 'Access' object has no attribute 'nope'"),
        ("policies:Silent", "returned None; it must return a Verdict"),
        ("policies:Other", "./policies.py has no 'Other'; it has Fails, Silent"),
        ("broken:Any", "invalid syntax (broken.py, line 1)"),
        ("lvie", "there is no policy 'lvie'; did you mean 'live'?"),
    ],
)
def test_a_mistake_in_a_policy_is_one_line(thinbox, policy, said):
    status, lines, _output = thinbox("run", "-q", "--policy", policy, "--", "true")
    assert status == 2 and len(lines) == 1 and said in lines[0]


@pytest.mark.guest
def test_which_call_it_was_asked_about_is_said_and_the_traceback_on_request(thinbox):
    _status, lines, _output = thinbox("run", "-q", "--policy", "policies:Fails", "--", "true")
    assert "policy fails, asked about a fetch at " in lines[0] and " in execve, failed at " in lines[0]
    status, lines, _output = thinbox("--debug", "run", "-q", "--policy", "policies:Fails", "--", "true")
    assert status == 2 and lines[0].startswith("Traceback") and any("check_access" in line for line in lines)


@pytest.mark.guest
@pytest.mark.parametrize(
    ("name", "said"),
    [("fails", "handlers.py:2: ZeroDivisionError: "), ("silent", "returned None; it must return an integer")],
)
def test_a_mistake_in_a_plans_handler_is_one_line(thinbox, tmp_path, name, said):
    (tmp_path / "plan.toml").write_text(PLAN.replace("NAME", name))
    status, lines, _output = thinbox("run", "-q", "--plan", "plan.toml", "--", "id", "-u")
    assert status == 2 and len(lines) == 1 and said in lines[0] and "handler of getuid" in lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ruun", "--", "true"), "No such command 'ruun'; did you mean 'run'?"),
        (("attack", "rop-comit-creds"), "there is no attack 'rop-comit-creds'; did you mean 'rop-commit-creds'?"),
        (("zzzzz",), "No such command 'zzzzz'; see"),
    ],
)
def test_a_misspelled_name_is_told_what_may_be_meant(thinbox, words, said):
    status, lines, _output = thinbox(*words)
    assert status == 2 and len(lines) == 1 and said in lines[0]


def test_a_plan_that_thinbox_brings_is_printed_and_written(thinbox, tmp_path):
    status, lines, printed = thinbox("plan", "nabla")
    assert (status, lines) == (0, []) and 'schema = "thinbox.plan/1"' in printed
    assert thinbox("plan", "nabla", "-o", "mine.toml") == (0, [], "")
    assert (tmp_path / "mine.toml").read_text() == printed
    status, lines, again = thinbox("plan", "mine.toml")
    assert status == 0 and again == printed
