"""`--prefault`: known pages are mapped at the entry, counted apart, and forgotten like any other."""

import json

import pytest
from thinbox.errors import InputError
from thinbox.records.profile import KnownPages, profile_from, touched_by
from thinbox.session.session import RunOptions, run

SCRIPT = ["sh", "-c", "echo hello | wc -c; ls / | head -3; cat /proc/self/status | head -2"]


@pytest.fixture(scope="module")
def plain(guest):
    return run(guest, SCRIPT, RunOptions(keep_faults=True))


@pytest.fixture(scope="module")
def profile(guest, plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    path.write_bytes(profile_from(touched_by(plain.record), guest.facts.symbols, guest.facts.sha256))
    return path


def faults(result):
    return result.record.totals["code_faults"] + result.record.totals["data_faults"]


def test_known_pages_save_faults_and_change_nothing_else(guest, plain, profile):
    known = run(guest, SCRIPT, RunOptions(prefault=KnownPages.load(profile)))
    assert known.stdout == plain.stdout and known.exit_code == plain.exit_code == 0
    assert [call.ret for call in known.record.calls] == [call.ret for call in plain.record.calls]
    assert faults(known) < faults(plain) / 4
    assert sum(call.prefaulted for call in known.record.calls) > faults(plain) / 2
    assert known.record.table_pages_made == known.record.table_pages_freed


def test_what_was_mapped_early_is_in_the_faults_but_no_fault(guest, profile):
    options = RunOptions(prefault=KnownPages.load(profile), keep_faults=True)
    record = run(guest, ["true"], options).record
    for call in record.calls:
        kept = sum(fault.seq == call.seq for fault in record.faults)
        assert kept == call.code_faults + call.data_faults + call.prefaulted
    early = sum(call.prefaulted for call in record.calls)
    # Without the first of these two the equation would hold of a run that mapped nothing early.
    assert early > 100
    assert sum(call.code_faults + call.data_faults for call in record.calls) < early / 2


def test_with_undo_too(guest, plain, profile):
    options = RunOptions(prefault=KnownPages.load(profile), on_violation="undo")
    result = run(guest, SCRIPT, options)
    assert result.stdout == plain.stdout and faults(result) < faults(plain) / 4


def test_a_page_needed_by_fewer_than_half_of_the_calls_is_not_mapped(guest):
    from thinbox.records.profile import Touched

    start = guest.facts.symbols.text_start
    often, rarely = start + 0x1000, start + 0x5000
    calls = [Touched("getpid", ((often, "fetch"), (rarely, "fetch"))), *[Touched("getpid", ((often, "fetch"),))] * 2]
    content = json.loads(profile_from(calls, guest.facts.symbols, guest.facts.sha256))
    assert content["known"] == {"getpid": {"code": [1], "data": []}}
    assert content["calls"] == {"getpid": [1, 5]}


def test_another_kernels_profile_and_no_profile_are_refused(guest, profile, tmp_path):
    other = tmp_path / "other.json"
    content = json.loads(profile.read_text())
    content["kernel"]["sha256"] = "0" * 64
    other.write_text(json.dumps(content))
    with pytest.raises(InputError, match="another kernel"):
        run(guest, ["true"], RunOptions(prefault=KnownPages.load(other)))
    content["kernel"] = {"sha256": guest.facts.sha256, "text_start": hex(guest.facts.symbols.text_start + 0x200000)}
    other.write_text(json.dumps(content))
    with pytest.raises(InputError, match="--kaslr"):
        run(guest, ["true"], RunOptions(prefault=KnownPages.load(other)))
    for text in (
        "",
        "[]",
        '{"schema": "thinbox.profile/2", "by": "pages"}',
        '{"schema": "thinbox.profile/1", "by": "pages"}',
    ):
        other.write_text(text)
        with pytest.raises(InputError):
            KnownPages.load(other)
    with pytest.raises(InputError, match="cannot read"):
        KnownPages.load(tmp_path / "nothing")
