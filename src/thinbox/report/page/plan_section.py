"""A plan as a section of the page: what becomes of each call, when, and why."""

from collections import Counter

from thinbox.report.page.blocks import (
    Cell,
    Fact,
    Facts,
    Headline,
    Part,
    Section,
    Table,
    Tone,
    cells,
    columns,
    count,
    without_empty,
)
from thinbox.report.page.visible import shorten
from thinbox.sandbox.plan import Disposition, Phase, Plan
from thinbox.sandbox.plan_text import show_answer, show_condition
from thinbox.syscalls.table import call_name

_LONGEST = 400
_SHOWN = 1000
_TONES: dict[Disposition, Tone] = {
    Disposition.PASS: "warn", Disposition.ISOLATE: "good", Disposition.EMULATE: "good",
    Disposition.DENY: "plain", Disposition.KILL: "bad",
}  # fmt: skip


def plan_section(plan: Plan, source: str) -> Section:
    """Return the section of a plan."""
    rules = plan.every_rule
    sums = Counter(rule.answer.disposition for rule in rules)
    sums_said = [f"{amount:,} {kind.value}" for kind in Disposition if (amount := sums[kind])]
    passed = f" {count(sums[Disposition.PASS], 'rule')} lets calls run un-isolated." if sums[Disposition.PASS] else ""
    text = (
        f"{count(len(rules), 'rule')} for {count(len(plan.rules), 'call')}: {', '.join(sums_said) or 'none'}; "
        f"everything else: {show_answer(plan.default)}.{passed}"
    )
    facts = [
        Fact("Everything else", show_answer(plan.default)),
        Fact("32-bit calls", show_answer(plan.compat)),
        Fact("The steady state begins with", ", ".join(call_name(nr) for nr in plan.marker) or "no marker"),
    ]
    facts += [
        Fact(term, shorten(said, _LONGEST)) for term, said in (("Source", plan.source), ("Date", plan.date)) if said
    ]
    facts += [Fact("File of its own", shorten(file.path, _LONGEST), code=True) for file in plan.files[:_SHOWN]]
    rows = [
        cells(
            Cell(rule.name, code=True),
            Cell(show_answer(rule.answer) + (f" by {rule.answer.handler}" if rule.answer.handler else ""),
                 _TONES[rule.answer.disposition]),
            "" if rule.phase is Phase.ALWAYS else rule.phase.value,
            Cell(shorten("; ".join(show_condition(rule, condition) for condition in rule.when), _LONGEST), code=True),
            shorten(rule.reason, _LONGEST),
        )
        for rule in rules[:_SHOWN]
    ]  # fmt: skip
    note = "Of the rules of one call the first whose conditions hold decides."
    if len(rules) > _SHOWN:
        note += f" {len(rules) - _SHOWN:,} more are in the file."
    table = Table(
        "Rules, by number of the call", columns("call", "what becomes of it", "phase", "if", "why"), tuple(rows), note
    )
    tone: Tone = "warn" if sums[Disposition.PASS] else "plain"
    return Section(
        "Plan",
        source,
        shorten(plan.name, _LONGEST),
        Headline(tone, text),
        (Facts(tuple(facts)),),
        (Part("Rules", (without_empty(table),)),),
    )
