"""An audit from start to end: choosing, the journal, totals."""

import json

import pytest
from thinbox.audit.run import AuditOptions, Journal, audit, choose_cases
from thinbox.errors import InputError


def test_an_unknown_call_and_one_that_is_not_built_in_are_refused(guest):
    with pytest.raises(InputError, match="no x86-64 system call"):
        choose_cases(("opne",))
    with pytest.raises(InputError, match="cannot be audited"):
        choose_cases(("uselib",))


def test_the_record_has_the_contracts_fields(guest):
    record = audit(guest, AuditOptions(("getpid", "uname")))
    data = json.loads(json.dumps(record.to_json()))
    assert data["schema"] == "thinbox.audit/1" and data["policy"] == "live"
    fields = {
        "call",
        "case",
        "exercised",
        "reason",
        "ret",
        "isolated_ret",
        "same",
        "killed",
        "code_faults",
        "data_faults",
    }
    assert all(fields <= set(entry) for entry in data["entries"])
    assert {"implemented", "exercised", "different", "killed"} <= set(data["totals"])
    assert data["totals"]["exercised"] == 2 and data["totals"]["different"] == 0
    assert data["totals"]["implemented"] > 300


def test_an_interrupted_audit_goes_on_and_ends_the_same(guest, tmp_path, monkeypatch):
    monkeypatch.setattr("thinbox.audit.run._journal_path", lambda *_: tmp_path / "journal")
    whole = audit(guest, AuditOptions(("getpid", "uname")))
    assert not (tmp_path / "journal").exists(), "a complete audit leaves no journal"

    done = []

    def interrupt(text):
        done.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(guest, AuditOptions(("getpid", "uname"), step=interrupt))
    assert (tmp_path / "journal").read_text().count("\n") == 1
    steps = []
    again = audit(guest, AuditOptions(("getpid", "uname"), resume=True, step=steps.append))
    assert len(steps) == len(whole.entries) - 1
    assert again.entries == whole.entries


def test_a_damaged_journal_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "journal"
    path.write_text('{"call": "getpid"\n')
    assert Journal(path).read(choose_cases(("getpid",))) == {}


def test_a_profile_is_learned_from_an_audit_and_judges_the_next(guest, tmp_path):
    from thinbox.audit.run import touched_in
    from thinbox.records.profile import profile_from

    path = tmp_path / "profile.json"
    learned = audit(guest, AuditOptions(("getpid",)))
    path.write_bytes(profile_from(touched_in(learned), guest.facts.symbols, guest.facts.sha256))
    again = audit(guest, AuditOptions(("getpid", "uname"), policy=f"profile:{path}", plain={}))
    killed = {entry.call for entry in again.entries if entry.killed}
    assert killed == {"uname"}, "what was not learned is killed, what was learned is not"
    with pytest.raises(InputError, match="profile"):
        audit(guest, AuditOptions(("getpid",), policy=f"profile:{tmp_path}/nothing"))
