"""Every rule that can refuse has its meaning and remedy, and no other has."""

import re
from pathlib import Path

import thinbox
from tests.support.written_records import violation
from thinbox.isolation.verdict import PLANNED
from thinbox.report.page.remedy import BY_PLAN, REMEDIES, UNKNOWN, plain_rule, remedy_of

SOURCE = Path(thinbox.__file__).parent


def refusing_rules():
    text = "\n".join(path.read_text() for path in sorted((SOURCE / "isolation").rglob("*.py")))
    text += (SOURCE / "enforcement/enforcer.py").read_text() + (SOURCE / "enforcement/violation_action.py").read_text()
    return {
        *re.findall(r'granted=False,\s*rule="([^"{]+)"', text),
        *re.findall(r'_refused\("(V\d)"', text),
    }


def test_every_rule_that_can_refuse_has_a_remedy_and_no_other_has():
    assert len(refusing_rules()) > 15
    assert refusing_rules() == set(REMEDIES)
    for remedy in REMEDIES.values():
        assert len(remedy.meaning) > 40
        assert len(remedy.action) > 40


def test_a_rule_of_a_combination_is_found_by_its_own_name():
    assert plain_rule("6b of live") == "6b"
    assert plain_rule("limits (posted) of patch") == "limits (posted)"
    assert plain_rule("P of profile:caae04c48a11") == "P"
    assert remedy_of(violation(rule="T3 of transfer")) is REMEDIES["T3"]
    assert remedy_of(violation(rule="start")) is UNKNOWN
    assert remedy_of(violation(rule="6b", kind=PLANNED)) is BY_PLAN
