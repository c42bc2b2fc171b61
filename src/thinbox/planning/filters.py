"""A plan as a seccomp filter sees it: calls and numbers, without isolation, emulation or phases.

Why it exists: every export says the same thing in another language; what is said is worked out once, here.

Rules of this file:
- A filter never allows what the plan refuses. What it cannot say is refused with the call's name.
- `isolate`, `pass` and `emulate` become "allow": a container's kernel has to answer what the workload needs.
- Several values of one argument become several rules, for engines read two conditions on one argument in two ways.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from thinbox.errors import InputError
from thinbox.planning.runtime_calls import Runtime
from thinbox.sandbox.arguments import WORD
from thinbox.sandbox.plan import Answer, Condition, Disposition, Phase, Plan, Rule
from thinbox.sandbox.plan_text import show_condition
from thinbox.syscalls.table import call_number


@dataclass(frozen=True, slots=True)
class Compare:
    """`(argument index & mask) == value`."""

    index: int
    mask: int
    value: int

    @property
    def exact(self) -> bool:
        """Whether the whole register is compared."""
        return self.mask == WORD


@dataclass(frozen=True, slots=True)
class FilterRule:
    """One entry: the call, what is done (`allow`, `errno`, `kill`), and the comparisons that must all hold."""

    name: str
    nr: int
    action: str
    errno: int = 0
    compares: tuple[Compare, ...] = ()


@dataclass(frozen=True, slots=True)
class CallNote:
    """Why a call is in a filter: evidence of the plan, or the runtime's need."""

    name: str
    action: str
    reason: str
    arguments: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """A whole filter; `default` as `FilterRule.action`."""

    name: str
    default: str
    default_errno: int
    compat: bool
    rules: tuple[FilterRule, ...]
    notes: tuple[CallNote, ...]

    def allowed(self) -> tuple[str, ...]:
        """Names of the calls that are allowed in some form."""
        return tuple(sorted({rule.name for rule in self.rules if rule.action == "allow"}))


def make_filter(plan: Plan, runtimes: Sequence[Runtime] = (), *, steady_only: bool = False) -> Filter:
    """Return the filter of a plan with what `runtimes` need before the program starts.

    `steady_only` leaves out what only start-up needs, for a filter a program puts on itself.

    Raises:
        InputError: a plan whose order of rules seccomp cannot say, or whose default allows.
    """
    if plan.default.disposition.reaches_kernel or plan.default.disposition is Disposition.EMULATE:
        raise InputError(
            f"plan {plan.name} allows by default; a filter made of it would stop nothing. Give it default deny"
        )
    rules: list[FilterRule] = []
    notes: list[CallNote] = []
    for nr in sorted(plan.rules):
        chosen = [r for r in plan.rules[nr] if not (steady_only and r.phase is Phase.START)]
        made = _rules_of(chosen, plan)
        rules += made
        notes += [_note(rule, made) for rule in chosen]
    wanted: dict[str, list[str]] = {}
    for runtime in runtimes:
        for name in runtime.calls:
            wanted.setdefault(name, []).append(runtime.source)
    for name, sources in sorted(wanted.items()):
        mine = [rule for rule in rules if rule.name == name]
        if any(rule.action == "allow" and not rule.compares for rule in mine):
            continue
        rules = [rule for rule in rules if rule.name != name]
        rules.append(FilterRule(name, call_number(name), "allow"))
        why = "the container runtime makes it before it starts the program"
        if mine:
            why += "; the plan's limits on it are lost"
        notes.append(CallNote(name, "allow", why, source="; ".join(sources)))
    default = "kill" if plan.default.disposition is Disposition.KILL else "errno"
    compat = plan.compat.disposition.reaches_kernel
    rules.sort(key=lambda rule: rule.nr)
    return Filter(plan.name, default, plan.default.errno, compat, tuple(rules), tuple(notes))


def _rules_of(chosen: Sequence[Rule], plan: Plan) -> list[FilterRule]:
    """Turn an ordered list, first match decides, into rules without order; InputError where that cannot be."""
    if not chosen:
        return []
    limited_allow = any(rule.when and _action(rule.answer) == "allow" for rule in chosen)
    out: list[FilterRule] = []
    refused_before = False
    for rule in chosen:
        action = _action(rule.answer)
        if action == "allow":
            if refused_before:
                raise InputError(
                    f"{rule.name} is allowed behind a rule that refuses some of it; seccomp has no order: "
                    "write the rule that allows first, with the values that it allows"
                )
            out += [FilterRule(rule.name, rule.nr, "allow", 0, compares) for compares in _compares(rule.when)]
        else:
            refused_before = True
            # An unconditional rule beside a conditional one would win over it: there the default refuses.
            if limited_allow or rule.answer == plan.default:
                continue
            for compares in _compares(rule.when):
                one = FilterRule(rule.name, rule.nr, action, rule.answer.errno, compares)
                # Of two refusals of the same form seccomp has no first; the later one is left to the default.
                if all(_answers_alike(one, other) or _excludes(one, other) for other in out):
                    out.append(one)
    if any(rule.action == "allow" and not rule.compares for rule in out):
        # An unconditional "allow" makes every narrower one idle.
        out = [rule for rule in out if rule.action == "allow" and not rule.compares][:1]
    return list(dict.fromkeys(out))


def _answers_alike(one: FilterRule, other: FilterRule) -> bool:
    return (one.action, one.errno) == (other.action, other.errno)


def _excludes(one: FilterRule, other: FilterRule) -> bool:
    """Whether no arguments meet the comparisons of both."""
    return any(
        a.index == b.index and (a.value ^ b.value) & a.mask & b.mask for a in one.compares for b in other.compares
    )


def _action(answer: Answer) -> str:
    if answer.disposition is Disposition.KILL:
        return "kill"
    return "errno" if answer.disposition is Disposition.DENY else "allow"


def _compares(when: tuple[Condition, ...]) -> list[tuple[Compare, ...]]:
    each = [[Compare(c.index, c.mask, value) for value in c.values] for c in when]
    return [tuple(combination) for combination in product(*each)]


def _note(rule: Rule, made: Sequence[FilterRule]) -> CallNote:
    reason = rule.reason
    action = _action(rule.answer)
    if rule.answer.disposition is Disposition.EMULATE:
        reason = f"{reason or 'emulated in thinbox'}; in a container the kernel answers it"
    if action != "allow" and not any(r.action == action for r in made):
        reason = f"{reason}; said by the filter's default"
    limits = " and ".join(show_condition(rule, condition) for condition in rule.when)
    return CallNote(rule.name, action, reason, limits, rule.evidence)
