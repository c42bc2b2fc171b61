"""Every rule that can refuse has its meaning and remedy, and no other has."""

import ast
from pathlib import Path

import pytest
import thinbox
from tests.support.written_records import violation
from thinbox.isolation.verdict import PLANNED
from thinbox.report.page.remedy import BY_PLAN, REMEDIES, UNKNOWN, plain_rule, remedy_of

SOURCE = Path(thinbox.__file__).parent


REFUSERS = {"Verdict": 1, "_refused": 0}
"""What makes a refusal, by its name, and which of its arguments the rule is."""
COMPOSED = {"isolation/policies/all_of.py", "isolation/page_ownership.py", "api/policy.py"}
"""Here a refusal of another one is made again with more words: `6b of live`, what `_refused` itself is given, and the
rule that a user's own policy names."""


def refusals(tree):
    """Every call in a module that makes a refusal: where it is, and the rule's expression."""
    for node in ast.walk(tree):
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if name not in REFUSERS:
            continue
        given = {word.arg: word.value for word in node.keywords}
        granted = given.get("granted", node.args[0] if node.args else None)
        if name == "Verdict" and isinstance(granted, ast.Constant) and granted.value is True:
            continue
        place = REFUSERS[name]
        yield node.lineno, given.get("rule") or (node.args[place] if len(node.args) > place else None)


def refusing_rules(source=SOURCE):
    """The rules of all refusals in the source; whatever is no plain word must be in a module that composes."""
    found = set()
    for path in sorted(source.rglob("*.py")):
        where = path.relative_to(source).as_posix()
        # The answers of emulated calls are refused by another function of that name.
        text = path.read_text()
        if "sandbox/" in where or not any(f"{name}(" in text for name in REFUSERS):
            continue
        for line, rule in refusals(ast.parse(text)):
            if isinstance(rule, ast.Constant) and isinstance(rule.value, str):
                found.add(rule.value)
            else:
                assert where in COMPOSED, f"{where}:{line}: no plain rule"
    return found


@pytest.mark.parametrize(
    "code",
    [
        'Verdict(granted=False, rule="X1", reason="")',
        'Verdict(False, "X1", "")',
        'Verdict(\n    granted=allowed,\n    rule="X1",\n    reason=f"{why}",\n)',
        '_refused("X1", "", None, None)',
    ],
)
def test_a_rule_is_found_wherever_and_however_a_refusal_is_written(tmp_path, code):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "new.py").write_text(code + '\nVerdict(granted=True, rule="6a", reason="")\n')
    assert refusing_rules(tmp_path) == {"X1"}


def test_a_refusal_without_a_plain_rule_is_noticed(tmp_path):
    (tmp_path / "new.py").write_text('Verdict(granted=False, rule=rule, reason="")')
    with pytest.raises(AssertionError, match="new.py:1"):
        refusing_rules(tmp_path)


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
