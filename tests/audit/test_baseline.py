"""The regression gate names what is worse."""

from dataclasses import replace

import pytest
from thinbox.audit.baseline import compare_with_baseline, make_baseline
from thinbox.records.audit import AuditEntry, AuditRecord
from thinbox.errors import InputError


def entry(call="open", **values):
    given = {"exercised": True, "same": True, "code_faults": 10, "data_faults": 5} | values
    return AuditEntry(call, "test", success=True, **given)


def record(*entries, sha256="k", policy="sci"):
    return AuditRecord("6.1", sha256, policy, list(entries), ("open",), {})


def test_an_equal_audit_passes_and_fewer_grants_too():
    text = make_baseline(record(entry()))
    assert compare_with_baseline(record(entry()), text) == []
    assert compare_with_baseline(record(entry(code_faults=9)), text) == []


def test_one_more_grant_is_named():
    text = make_baseline(record(entry()))
    assert compare_with_baseline(record(entry(code_faults=11)), text) == [
        "open: test: 11 code pages granted, the baseline has 10"
    ]
    assert compare_with_baseline(record(entry(data_faults=6)), text) == [
        "open: test: 6 data pages granted, the baseline has 5"
    ]


def test_on_another_kernel_counts_do_not_matter_but_kills_do():
    text = make_baseline(record(entry()))
    assert compare_with_baseline(record(entry(code_faults=99), sha256="other"), text) == []
    killed = entry(same=False, killed="open was killed", reason="killed")
    assert compare_with_baseline(record(killed, sha256="other"), text) == [
        "open: test: killed, was same: open was killed"
    ]


def test_a_new_case_must_not_be_killed_and_a_lost_one_is_named():
    text = make_baseline(record(entry()))
    fresh = replace(entry("pipe"), same=False, killed="pipe was killed")
    assert compare_with_baseline(record(entry(), fresh), text) == ["pipe: test: new, and killed: pipe was killed"]
    lost = replace(entry(), exercised=False, reason="open returned EIO")
    assert "is exercised no longer: open returned EIO" in compare_with_baseline(record(lost), text)[0]


def test_a_kill_that_was_there_before_passes():
    killed = entry(same=False, killed="open was killed")
    assert compare_with_baseline(record(killed), make_baseline(record(killed))) == []


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": "thinbox.audit-baseline/9"}', '{"schema": 1, "cases": 3}']
)
def test_what_is_no_baseline_is_one_clear_error(text):
    with pytest.raises(InputError, match="baseline"):
        compare_with_baseline(record(entry()), text)


def test_another_policys_baseline_is_refused():
    with pytest.raises(InputError, match="policy sci"):
        compare_with_baseline(record(entry(), policy="patch"), make_baseline(record(entry())))
