"""The corpus as data: named, unique, and complete."""

from thinbox.audit.case import all_cases, reasons_not_exercised
from thinbox.syscalls.table import call_info, call_number


def test_titles_are_unique_and_calls_exist():
    cases = all_cases()
    assert len({case.title for case in cases}) == len(cases)
    for case in cases:
        call_number(case.call)


def test_every_reason_names_a_call_without_a_success_path():
    with_success = {case.call for case in all_cases() if case.success}
    for name, reason in reasons_not_exercised().items():
        call_number(name)
        assert name not in with_success, f"{name} has a success path and a reason why it has none"
        assert len(reason) > 10


def test_nearly_every_implemented_call_has_a_success_path_and_the_rest_a_reason(guest):
    missing = guest.facts.unimplemented
    infos = [call_info(nr) for nr in range(len(guest.facts.sys_call_table)) if nr not in missing]
    implemented = {info.name for info in infos if info is not None}
    with_success = {case.call for case in all_cases() if case.success}
    silent = implemented - with_success - set(reasons_not_exercised())
    assert not silent, f"neither a success path nor a reason: {sorted(silent)}"
    assert len(implemented & with_success) >= 0.95 * len(implemented)
