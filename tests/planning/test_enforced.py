"""The compiled program enforced by this machine's own kernel, under bubblewrap; test_engines.py has the other exports."""

import pytest
from tests.planning.workload import COMMAND, CONNECT, EXPECTED, STRAY, plan_by_hand
from thinbox.errors import InputError
from thinbox.planning import runtimes
from thinbox.planning.exports.bpf import render_bpf
from thinbox.planning.filters import make_filter
from thinbox.planning.make_plan import PlanOptions, make_plan
from thinbox.planning.runtime_calls import find_runtimes
from thinbox.sandbox.plan_file import parse_plan

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def native(root):
    """Skips where this machine has no bubblewrap, or does not let it make namespaces."""
    try:
        plain = runtimes.run_native(root, COMMAND)
    except InputError as error:
        pytest.skip(str(error))
    if plain.exit_code != 7:
        pytest.skip(f"bubblewrap cannot run here: {plain.stderr.decode(errors='replace').strip()}")
    assert plain.stdout == EXPECTED
    return plain


def program(plan):
    return render_bpf(make_filter(plan, find_runtimes(("exec",))))


def test_the_program_runs_to_its_end_under_its_own_profile(native, evidence, root):
    for strict in (False, True):
        plan = make_plan(evidence, PlanOptions(strict=strict))
        under = runtimes.run_native(root, COMMAND, program=program(plan))
        assert (under.exit_code, under.stdout) == (7, EXPECTED), under.stderr


def test_a_call_outside_the_profile_fails_as_the_profile_says(native, evidence, root):
    denied = runtimes.run_native(root, STRAY, program=program(make_plan(evidence, PlanOptions())))
    assert denied.stdout == b"1\non\n" and b"Function not implemented" in denied.stderr
    killed = runtimes.run_native(root, STRAY, program=program(make_plan(evidence, PlanOptions(strict=True))))
    assert killed.stdout == b"159\non\n"
    assert runtimes.run_native(root, STRAY).stdout == b"0\non\n"


def test_an_argument_outside_the_profile_fails_as_the_profile_says(native, root):
    inside = plan_by_hand('socket = { do = "isolate", when = { family = "AF_INET" } }')
    unix_only = plan_by_hand('socket = { do = "isolate", when = { family = "AF_UNIX" } }')
    for plan, says in ((inside, b"can't connect"), (unix_only, b"Operation not permitted")):
        ran = runtimes.run_native(root, CONNECT, program=program(parse_plan(plan, "p", None)))
        assert says in ran.stderr, ran.stderr
