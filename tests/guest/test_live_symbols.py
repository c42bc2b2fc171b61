"""Modules and generated code are found in the running kernel's own lists."""

import pytest
from thinbox.audit.case import all_cases
from thinbox.audit.case_runner import CaseRunner, make_checkpoint
from thinbox.audit.pool import audit_case
from thinbox.isolation.policies import load_policy

TITLES = {case.title: case for case in all_cases()}


@pytest.fixture(scope="module")
def template(guest):
    return make_checkpoint(guest)


GENERATED = (
    "open: under a seccomp filter that looks at its arguments",
    "getppid: refused by a seccomp filter",
    "getuid: with a probe on it",
    "bpf: BPF_PROG_TEST_RUN, SOCKET_FILTER",
)


def test_generated_code_runs_under_live_and_is_killed_by_rule_6c_under_sci(guest, template):
    live, sci = (CaseRunner(guest, template, load_policy(name)) for name in ("live", "sci"))
    for title in GENERATED:
        entry = audit_case(live, TITLES[title])
        assert entry.same, f"{title}: {entry.reason} {entry.killed}"
        killed = audit_case(sci, TITLES[title]).killed
        assert killed and "rule 6c of policy sci" in killed, title
    assert "seccomp_filter+0x0" in audit_case(sci, TITLES[GENERATED[0]]).killed


def test_a_modules_functions_have_names(guest, template):
    """Its code runs in `init_module` and `delete_module`: granted by rule 6a as text of a module."""
    sci = CaseRunner(guest, template, load_policy("sci"))
    for title in ("init_module: with code that runs", "delete_module: with code that runs"):
        entry = audit_case(sci, TITLES[title])
        assert entry.same, f"{title}: {entry.killed}"


def test_a_lazy_flush_over_the_whole_text_takes_nothing_that_is_still_mapped(guest, template):
    entry = audit_case(CaseRunner(guest, template, load_policy("sci")), TITLES["delete_module: without code"])
    assert entry.same, entry.killed


def test_a_call_that_a_handler_interrupted_has_its_own_result(guest, template):
    entry = audit_case(CaseRunner(guest, template, load_policy("sci")), TITLES["read: empty pipe, a signal comes"])
    assert entry.ret == entry.isolated_ret == -4
