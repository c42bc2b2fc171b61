"""Audits as sections of the page: one each, and several beside one another, case by case.

Rules of this file: a killed case is never called merely different; a case that was not exercised says nothing and is
counted apart.
"""

import re
from collections import Counter
from collections.abc import Sequence

from thinbox.report.audit import result_text
from thinbox.report.page.audit_file import AuditCase, AuditFile
from thinbox.report.page.blocks import (
    Advice,
    Block,
    Cell,
    Column,
    Fact,
    Facts,
    Headline,
    Part,
    Section,
    Table,
    Tile,
    Tiles,
    Tone,
    cells,
    columns,
    count,
    number,
)
from thinbox.report.page.remedy import REMEDIES, plain_rule
from thinbox.report.page.visible import shorten

_SHOWN = 400
_LONGEST = 300
_RULE = re.compile(r" refused by rule (.{1,80}?) of (?:policy|view) ", re.DOTALL)


def audit_section(audit: AuditFile, source: str) -> Section:
    """Return the section of one audit."""
    totals = audit.totals
    broken = [case for case in audit.entries if not case.exercised]
    differing = [case for case in audit.entries if case.differs]
    only_different = totals.different - sum(case.killed is not None for case in differing)
    tiles = Tiles(
        (
            Tile("cases", number(len(audit.entries)), f"{number(len(broken))} not exercised"),
            Tile(
                "calls with a success path", number(totals.exercised), f"of {number(totals.implemented)} the kernel has"
            ),
            Tile("cases killed", number(totals.killed), "", "bad" if totals.killed else "good"),
            Tile("otherwise different", number(only_different), "", "warn" if only_different else "good"),
        )
    )
    facts = Facts(
        (
            Fact("Kernel", f"Linux {audit.kernel.release}"),
            Fact("Its SHA-256", audit.kernel.sha256, code=True),
            Fact("Policy", audit.policy),
            Fact("Pages granted", number(sum(case.code_faults + case.data_faults for case in audit.entries))),
        )
    )
    parts = []
    if differing:
        parts.append(Part("Killed and differing cases", (_by_rule(differing), *_advice(differing), _cases(differing))))
    if broken or audit.not_exercised:
        parts.append(Part("Not exercised", _not_exercised(audit, broken)))
    what = f"system calls one by one under policy {shorten(audit.policy, _LONGEST)}"
    return Section("Audit", source, what, _headline(audit, only_different), (tiles, facts), tuple(parts))


def _headline(audit: AuditFile, only_different: int) -> Headline:
    cases, killed = len(audit.entries), audit.totals.killed
    kills = f"{killed:,} killed" if killed else "none killed"
    others = f"{only_different:,} otherwise different" if only_different else "no other difference"
    tone: Tone = "bad" if killed else "warn" if only_different else "good"
    return Headline(
        tone, f"Of {count(cases, 'case')} that do nothing wrong, {kills} under policy {audit.policy}, {others}."
    )


def rule_of(case: AuditCase) -> str:
    """Return the rule that killed a case, as its sentence says it."""
    found = _RULE.search(case.killed or "")
    return plain_rule(found.group(1)) if found else "?"


def _by_rule(differing: Sequence[AuditCase]) -> Table:
    kills = Counter((rule_of(case), case.call) for case in differing if case.killed is not None)
    rules: dict[str, list[tuple[str, int]]] = {}
    for (rule, call), times in kills.items():
        rules.setdefault(rule, []).append((call, times))
    rows = []
    for rule, calls in sorted(rules.items(), key=lambda item: (-sum(times for _call, times in item[1]), item[0])):
        ordered = sorted(calls, key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{call} {times:,}" for call, times in ordered[:12])
        more = f" and {count(len(ordered) - 12, 'other call')}" if len(ordered) > 12 else ""
        rows.append(
            cells(Cell(rule, "bad"), sum(times for _call, times in calls), len(calls), Cell(named + more, code=True))
        )
    others = Counter(case.call for case in differing if case.killed is None)
    if others:
        named = ", ".join(f"{call} {times:,}" for call, times in others.most_common(12))
        rows.append(cells(Cell("not killed", "warn"), sum(others.values()), len(others), Cell(named, code=True)))
    return Table(
        "By rule, most cases first", columns("rule", "#cases", "#calls", "which calls, cases of each"), tuple(rows)
    )


def _advice(differing: Sequence[AuditCase]) -> tuple[Block, ...]:
    rules = Counter(rule_of(case) for case in differing if case.killed is not None)
    known = [rule for rule, _times in rules.most_common() if rule in REMEDIES]
    return tuple(Advice(f"Rule {rule}", REMEDIES[rule].meaning, REMEDIES[rule].action) for rule in known)


def _cases(differing: Sequence[AuditCase]) -> Table:
    rows = [
        cells(
            Cell(case.call, code=True),
            shorten(case.case, _LONGEST),
            Cell(result_text(case.ret), code=True),
            Cell(result_text(case.isolated_ret), code=True),
            Cell("killed", "bad") if case.killed is not None else Cell("different", "warn"),
            shorten((case.killed or case.reason).partition(" was killed: ")[2] or case.reason, _LONGEST),
        )
        for case in differing[:_SHOWN]
    ]
    note = f"{len(differing) - _SHOWN:,} more are in the record." if len(differing) > _SHOWN else ""
    heads = columns("call", "case", "result", "isolated", "verdict", "why")
    return Table("Each case that differs from its un-isolated run", heads, tuple(rows), note)


def _not_exercised(audit: AuditFile, broken: Sequence[AuditCase]) -> tuple[Block, ...]:
    rows = [cells(Cell(case.title, code=True), shorten(case.reason, _LONGEST)) for case in broken[:_SHOWN]]
    rows += [
        cells(Cell(name, code=True), shorten(reason, _LONGEST))
        for name, reason in list(audit.not_exercised.items())[:_SHOWN]
    ]
    return (Table("Cases and calls without a working un-isolated run", columns("case or call", "why"), tuple(rows)),)


def audits_part(audits: Sequence[tuple[str, AuditFile]]) -> Part:
    """Return several audits, named by their files, beside one another."""
    rows = [
        cells(
            audit.policy,
            source,
            f"Linux {audit.kernel.release}",
            len(audit.entries),
            Cell(number(audit.totals.killed), "bad" if audit.totals.killed else "good"),
            audit.totals.different - audit.totals.killed,
            sum(not case.exercised for case in audit.entries),
            sum(case.code_faults for case in audit.entries),
            sum(case.data_faults for case in audit.entries),
        )
        for source, audit in audits
    ]
    heads = columns(
        "policy",
        "file",
        "kernel",
        "#cases",
        "#killed",
        "#otherwise different",
        "#not exercised",
        "#code pages",
        "#data pages",
    )
    sums = Table("Audits side by side", heads, tuple(rows))
    return Part("Audits by policy", (sums, _matrix(audits)))


def _matrix(audits: Sequence[tuple[str, AuditFile]]) -> Table:
    found = [{case.title: case for case in audit.entries} for _source, audit in audits]
    titles = list(dict.fromkeys(case.title for _source, audit in audits for case in audit.entries if case.differs))
    rows = [
        cells(Cell(shorten(title, _LONGEST), code=True), *(_cell(cases.get(title)) for cases in found))
        for title in titles[:_SHOWN]
    ]
    note = f"{len(titles) - _SHOWN:,} more differ somewhere; they are in the records." if len(titles) > _SHOWN else ""
    heads = (Column("case"), *(Column(audit.policy) for _source, audit in audits))
    return Table("Cases that differ under any of them, by policy", heads, tuple(rows), note)


def _cell(case: AuditCase | None) -> Cell:
    if case is None:
        return Cell("not run")
    if not case.exercised:
        return Cell("not exercised")
    if case.killed is not None:
        return Cell(f"killed {shorten(rule_of(case), 40)}", "bad")
    return Cell("same", "good") if case.same else Cell("different", "warn")
