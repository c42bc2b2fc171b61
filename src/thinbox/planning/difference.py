"""What changed between two plans: calls gained, lost, and treated otherwise."""

from dataclasses import dataclass

from thinbox.sandbox.plan import Disposition, Phase, Plan, Rule
from thinbox.sandbox.plan_text import show_answer, show_condition
from thinbox.syscalls.table import call_name

_STRENGTH = {
    Disposition.PASS: 0,
    Disposition.ISOLATE: 1,
    Disposition.EMULATE: 2,
    Disposition.DENY: 3,
    Disposition.KILL: 4,
}


@dataclass(frozen=True, slots=True)
class Change:
    """One call. `direction` is "looser", "tighter" or "other" (arguments, phases, errno)."""

    call: str
    before: str
    after: str
    direction: str


def compare_plans(old: Plan, new: Plan) -> tuple[Change, ...]:
    """Return what differs, by number of the call; the defaults as calls named `default` and `compat`."""
    out = []
    for nr in sorted({*old.rules, *new.rules}):
        before, after = _show(old, nr), _show(new, nr)
        if before != after:
            out.append(Change(call_name(nr), before, after, _direction(_weakest(old, nr), _weakest(new, nr))))
    for key, one, two in (("default", old.default, new.default), ("compat", old.compat, new.compat)):
        if one != two:
            out.append(Change(key, show_answer(one), show_answer(two), _direction(one.disposition, two.disposition)))
    return tuple(out)


def _weakest(plan: Plan, nr: int) -> Disposition:
    rules = plan.rules.get(nr)
    return min((r.answer.disposition for r in rules), key=_STRENGTH.__getitem__) if rules else plan.default.disposition


def _direction(before: Disposition, after: Disposition) -> str:
    if _STRENGTH[before] == _STRENGTH[after]:
        return "other"
    return "tighter" if _STRENGTH[after] > _STRENGTH[before] else "looser"


def _show(plan: Plan, nr: int) -> str:
    rules = plan.rules.get(nr)
    return "; ".join(show_rule(rule) for rule in rules) if rules else f"{show_answer(plan.default)} (default)"


def show_rule(rule: Rule) -> str:
    """Return a rule in words, without its reason."""
    words = [rule.answer.handler or show_answer(rule.answer)]
    if rule.when:
        words.append("if " + " and ".join(show_condition(rule, condition) for condition in rule.when))
    if rule.phase is not Phase.ALWAYS:
        words.append(f"({rule.phase})")
    if rule.otherwise is not None:
        words.append(f"else {show_answer(rule.otherwise)}")
    return " ".join(words)


def render_changes(changes: tuple[Change, ...]) -> str:
    """Return one line a change, tighter ones marked -, looser ones +."""
    marks = {"looser": "+", "tighter": "-", "other": "~"}
    return "\n".join(f"{marks[c.direction]} {c.call}: {c.before} -> {c.after}" for c in changes)
