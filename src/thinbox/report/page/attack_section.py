"""A matrix of attacks as a section of the page: first what gets through, then where the others die.

Rules of this file: what gets through is written out, never an empty cell; a policy that was not tried is `not tried`.
"""

from thinbox.report.page.attack_file import UNISOLATED, AttackFile, AttackTry
from thinbox.report.page.blocks import Block, Cell, Headline, Notes, Part, Section, Table, Tone, cells, columns, count
from thinbox.report.page.remedy import plain_rule
from thinbox.report.page.visible import shorten

_SHOWN = 600
_LONGEST = 300
_OUTCOMES: dict[str, Tone] = {"succeeded": "bad", "contained": "plain", "detected": "good"}
Pair = tuple[str, str]


def attack_section(found: AttackFile, source: str) -> Section:
    """Return the section of a matrix."""
    names = list(dict.fromkeys(row.attack for row in found.rows))
    pairs = list(dict.fromkeys((row.policy, row.view) for row in found.rows))
    through = {
        pair: [row.attack for row in found.rows if (row.policy, row.view) == pair and row.gets_through]
        for pair in pairs
    }
    views = list(dict.fromkeys(row.view for row in found.rows))
    parts = [
        Part("What gets through", (_through(through, len(names)), *_broken(found))),
        Part("Attack by policy", tuple(_matrix(found, view) for view in views)),
        Part("Where they die", (_deaths(found),)),
    ]
    what = f"{count(len(names), 'attack')} on Linux {shorten(found.kernel.release, _LONGEST)}"
    return Section("Attacks", source, what, _headline(through, len(names)), (), tuple(parts))


def pair_title(pair: Pair) -> str:
    """Return a policy and view as words."""
    policy, view = (shorten(word, _LONGEST) for word in pair)
    if policy == UNISOLATED:
        return "the unisolated kernel" if view == "none" else f"the unisolated kernel, view {view}"
    return policy if view == "none" else f"{policy}, view {view}"


def _headline(through: dict[Pair, list[str]], attacks: int) -> Headline:
    judged = {pair: names for pair, names in through.items() if pair[0] != UNISOLATED}
    if not judged:
        return Headline("plain", "Tried on the unisolated kernel only; no policy was judged.")
    best = min(judged, key=lambda pair: len(judged[pair]))
    names = judged[best]
    which = f": {shorten(', '.join(names), _LONGEST)}" if names else ""
    of = f"the best of {len(judged):,} combinations, {pair_title(best)}" if len(judged) > 1 else pair_title(best)
    text = f"Under {of}, {len(names):,} of {attacks:,} attacks succeed{which}."
    return Headline("bad" if names else "good", text)


def _through(through: dict[Pair, list[str]], attacks: int) -> Table:
    alike: dict[tuple[str, ...], list[Pair]] = {}
    for pair, names in through.items():
        alike.setdefault(tuple(names), []).append(pair)
    rows = [
        cells(
            "; ".join(pair_title(pair) for pair in pairs),
            Cell(f"{len(names):,} of {attacks:,}", "bad" if names else "good"),
            Cell(", ".join(names) or "none", code=bool(names)),
        )
        for names, pairs in sorted(alike.items(), key=lambda item: len(item[0]))[:_SHOWN]
    ]
    return Table("Attacks that succeed, fewest first", columns("under", "#succeed", "which"), tuple(rows))


def _broken(found: AttackFile) -> tuple[Block, ...]:
    broken = [row for row in found.rows if row.policy == UNISOLATED and not row.gets_through]
    if not broken:
        return ()
    said = (f"{row.attack} does not succeed even unisolated, so it proves nothing here: {row.reason}" for row in broken)
    return (Notes(tuple(shorten(text, _LONGEST) for text in said)),)


def _matrix(found: AttackFile, view: str) -> Table:
    """One view; the unisolated kernel stands in each."""
    rows = [row for row in found.rows if row.view == view or row.policy == UNISOLATED]
    policies = list(dict.fromkeys(row.policy for row in rows))
    tried = {(row.attack, row.policy): row for row in rows}
    names = list(dict.fromkeys(row.attack for row in rows))
    body = [
        cells(Cell(name, code=True), *(_outcome(tried.get((name, policy))) for policy in policies))
        for name in names[:_SHOWN]
    ]
    sums = [sum((name, policy) in tried and tried[name, policy].gets_through for name in names) for policy in policies]
    body.append(cells("succeed", *sums))
    return Table(
        f"View {shorten(view, _LONGEST)}: outcome, with the rule that refused",
        columns(
            "attack", *("unisolated" if policy == UNISOLATED else policy.replace("+", " + ") for policy in policies)
        ),
        tuple(body),
    )


def _outcome(row: AttackTry | None) -> Cell:
    if row is None:
        return Cell("not tried")
    if row.gets_through:
        return Cell("succeeds", "bad")
    rule = (row.rule or "").partition(" ")[0]
    return Cell(f"{row.outcome} {shorten(rule, _LONGEST)}".strip(), _OUTCOMES[row.outcome])


def _deaths(found: AttackFile) -> Table:
    groups: dict[tuple[str, ...], list[AttackTry]] = {}
    for row in found.rows:
        if not row.gets_through:
            groups.setdefault((row.attack, row.step, plain_rule(row.rule or ""), row.place, row.reason), []).append(row)
    rows = []
    for (attack, step, rule, place, reason), tries in list(groups.items())[:_SHOWN]:
        undone = sum(row.undone for row in tries)
        rows.append(
            cells(
                Cell(attack, code=True),
                Cell(shorten(step, _LONGEST), code=True),
                Cell(rule or tries[0].outcome, _OUTCOMES[tries[0].outcome]),
                Cell(shorten(place, _LONGEST), code=True),
                shorten(reason, _LONGEST),
                shorten("; ".join(_under(tries)), _LONGEST),
                "all" if undone == len(tries) else f"{undone:,} of {len(tries):,}",
            )
        )
    note = f"{len(groups) - _SHOWN:,} more are in the file." if len(groups) > _SHOWN else ""
    return Table(
        "The step at which each attack was stopped, by what, and under which policies",
        columns("attack", "step", "rule", "place", "reason", "under", "undone"),
        tuple(rows),
        note,
    )


def _under(tries: list[AttackTry]) -> list[str]:
    by_policy: dict[str, list[str]] = {}
    for row in tries:
        by_policy.setdefault(row.policy, []).append(row.view)
    return [f"{policy} ({', '.join(views)})" for policy, views in by_policy.items()]
