"""A plan: what the sandbox does with each call of a tenant.

Why it exists: what is enforced, what is exported and what is compared is this one value.

Rules of this file:
- No I/O. The first rule whose conditions all hold decides; where none does, the plan's default.
- A number the kernel has no call for is decided by the default too.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thinbox.sandbox.arguments import show_value
from thinbox.syscalls.table import call_info, call_name


class Disposition(enum.StrEnum):
    """What becomes of a call: run isolated; run as it is; answered outside the kernel; refused; its process killed."""

    ISOLATE = "isolate"
    PASS = "pass"  # noqa: S105 - not a password
    EMULATE = "emulate"
    DENY = "deny"
    KILL = "kill"

    @property
    def reaches_kernel(self) -> bool:
        """Whether the kernel runs the call."""
        return self in (Disposition.ISOLATE, Disposition.PASS)


class Phase(enum.StrEnum):
    """When a rule holds: always, until the phase marker, or from it on."""

    ALWAYS = "always"
    START = "start"
    STEADY = "steady"


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds if `(argument & mask)` is one of `values`; `index` is the argument's position, from 0."""

    index: int
    name: str
    mask: int
    values: tuple[int, ...]

    def holds(self, args: tuple[int, ...]) -> bool:
        """Tell whether it holds for the six register arguments."""
        return args[self.index] & self.mask in self.values


@dataclass(frozen=True, slots=True)
class Answer:
    """A disposition with what belongs to it: the errno of `deny`, the handler of `emulate` (empty: thinbox's own)."""

    disposition: Disposition
    errno: int = 0
    handler: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of a plan. `otherwise` is what happens where an emulation says that the call is not its own.
    `line` is the plan's, from 1, or 0 if it came from nowhere. `evidence` is kept, not judged."""

    nr: int
    answer: Answer
    when: tuple[Condition, ...] = ()
    otherwise: Answer | None = None
    phase: Phase = Phase.ALWAYS
    line: int = 0
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The call's name."""
        return call_name(self.nr)


@dataclass(frozen=True, slots=True)
class OwnedFile:
    """A file the sandbox owns: its absolute path in the tenant's eyes, and its bytes. `origin` is the host's path."""

    path: str
    data: bytes
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a plan says of one call. `rule` is None where the default decided; `arguments` and `why` say why then."""

    answer: Answer
    line: int
    rule: Rule | None = None
    arguments: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole plan. `marker` are the numbers of the calls whose first one begins the steady state (docs/plan.md)."""

    name: str
    rules: Mapping[int, tuple[Rule, ...]]
    default: Answer
    compat: Answer
    seed: int = 0
    marker: tuple[int, ...] = ()
    files: tuple[OwnedFile, ...] = ()
    default_line: int = 0
    compat_line: int = 0
    source: str = ""
    date: str = ""

    @property
    def every_rule(self) -> tuple[Rule, ...]:
        """All rules, by number."""
        return tuple(rule for nr in sorted(self.rules) for rule in self.rules[nr])

    def decide(self, nr: int, args: tuple[int, ...], *, steady: bool = False) -> Decision:
        """Return what happens to call `nr` with the six register arguments `args` (unsigned)."""
        rules = self.rules.get(nr, ())
        past = Phase.START if steady else Phase.STEADY
        now = [rule for rule in rules if rule.phase is not past]
        for rule in now:
            if all(condition.holds(args) for condition in rule.when):
                return Decision(rule.answer, rule.line, rule)
        if not rules:
            return Decision(self.default, self.default_line, None, "", "the plan does not name this call")
        if not now:
            when = "start-up" if steady else "the steady state"
            return Decision(self.default, rules[0].line, None, "", f"the plan allows it in {when} only")
        strange = [c for c in now[0].when if not c.holds(args)]
        shown = ", ".join(f"{c.name}={show_value(call_name(nr), c.index, args[c.index] & c.mask)}" for c in strange)
        return Decision(self.default, now[0].line, None, shown, "no rule of the plan allows this argument")

    def decide_unseen(self, nr: int | None, *, steady: bool = False) -> Decision:
        """Return what happens to what does as call `nr` would, its arguments not known: io_uring's operations. It goes
        on only if every rule that may hold, and the default where none need hold, lets the call into the kernel; nr
        None is no call of this list.

        A decision that does not is the first of those: an answer that is no `deny` is then for the caller to refuse.
        """
        past = Phase.START if steady else Phase.STEADY
        rules = [] if nr is None else [rule for rule in self.rules.get(nr, ()) if rule.phase is not past]
        default = Decision(self.default, self.default_line, None, "", "the plan does not name this call")
        outcomes: list[Decision] = []
        for rule in rules:
            answer = rule.answer
            if answer.disposition is Disposition.EMULATE:
                answer = rule.otherwise or self.default
            why = "" if not rule.when else "its arguments cannot be compared with the plan's"
            outcomes.append(Decision(answer, rule.line, rule, "", why))
            if not rule.when:
                break
        else:
            outcomes.append(default)
        refused = [decision for decision in outcomes if not decision.answer.disposition.reaches_kernel]
        return (refused or outcomes)[0]

    def decide_compat(self) -> Decision:
        """Return what happens to every call by a 32-bit entry."""
        return Decision(self.compat, self.compat_line, None, "", "the plan does not allow 32-bit calls")


def argument_index(nr: int, name: str) -> int | None:
    """Return the position of the argument `name` of call `nr`; None if it has none of that name."""
    info = call_info(nr)
    names = [argument.name for argument in info.args] if info else []
    return names.index(name) if name in names else None
