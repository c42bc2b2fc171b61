"""The tables of docs/suites.md, of what benchmarks/suites.json knows.

Rules of this file: a part that is gone from suites.toml, or changed since, does not stand in the table as if it had
been run; a test that differs is listed by its name, with the reason that its entry gives or with none.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.suite_root import FAILED, PASSED, SKIPPED, Suite

PAGE = Path(__file__).parents[1] / "docs" / "suites.md"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
UNKNOWN = "not known"
SHOWN = 12
"""How many of a part's failures are named."""
NAMED = {"none": "Un-isolated", "live": "Under `live`"}


def known_parts(suites: Mapping[str, Suite], state: Mapping[str, Any]) -> list[tuple[Suite, str, Any]]:
    """Return what was run of the suites as they are now: suite, part, and what came of it."""
    named = [(suite, part, f"{suite.name}/{part}") for suite in suites.values() for part in suite.parts]
    return [(s, part, state[name]) for s, part, name in named if state.get(name, {}).get("key") == s.key(part)]


def render(suites: Mapping[str, Suite], state: Mapping[str, Any]) -> str:
    """Return the summary, a row for each part, and the tests that differ."""
    known = known_parts(suites, state)
    lines = [*_summary(suites, known), "", "| suite and part | calls | un-isolated | `live` | differ | killed |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    last = ""
    for suite, part, found in known:
        if suite.name != last:
            last = suite.name
            lines.append(f"| **{suite.of}**, {', '.join(found['versions'])} | | | | | |")
        plain, live = found["cells"]["none"], found["cells"]["live"]
        figures = (f"{plain['calls']:,}", _counts(plain), _counts(live), len(found["different"]), len(live["kills"]))
        lines.append(f"| {part} | " + " | ".join(str(figure) for figure in figures) + " |")
    return "\n".join([*lines, "", *_differences(known), *_failures(known)])


def _counts(cell: Mapping[str, Any]) -> str:
    told = f"{cell[PASSED]:,} of {cell[PASSED] + cell[FAILED]:,}"
    return f"{told}; {cell['failure']}" if cell["failure"] else told


def _summary(suites: Mapping[str, Suite], known: list[tuple[Suite, str, Any]]) -> list[str]:
    total: Counter[str] = Counter()
    for _suite, _part, found in known:
        for cell, one in found["cells"].items():
            total.update({f"{cell} {came}": one[came] for came in (PASSED, FAILED, SKIPPED)})
        total.update(isolated=found["cells"]["live"]["isolated"], killed=len(found["cells"]["live"]["kills"]))
        total.update(different=len(found["different"]))
    kernels = sorted({found["kernel"] for _suite, _part, found in known if found["kernel"]})
    parts = sum(len(suite.parts) for suite in suites.values())
    return [
        f"{len(known)} of {parts} parts of {len(suites)} suites were run, on {', '.join(kernels) or 'no kernel'}.",
        "",
        f"- {NAMED['none']} {_told(total, 'none')}.",
        f"- {NAMED['live']} {_told(total, 'live')}, in {total['isolated']:,} isolated calls.",
        f"- {total['different']:,} tests differ; {total['killed']:,} calls were killed.",
    ]


def _told(total: Mapping[str, int], cell: str) -> str:
    passed, failed, skipped = (total[f"{cell} {came}"] for came in (PASSED, FAILED, SKIPPED))
    return f"{passed:,} tests passed, {failed:,} failed, {skipped:,} were skipped"


def _differences(known: list[tuple[Suite, str, Any]]) -> list[str]:
    rows = []
    for suite, part, found in known:
        told = [(test, *pair) for test, pair in sorted(found["different"].items())]
        told += [(kill, "", "killed") for kill in found["cells"]["live"]["kills"]]
        for what, plain, live in told:
            cells = (
                f"{suite.name}/{part}",
                _cell_text(what),
                plain,
                live,
                _cell_text(suite.reasons.get(what, UNKNOWN)),
            )
            rows.append(f"| {' | '.join(cells)} |")
    head = ["## What differs", ""]
    if not rows:
        return [*head, "Nothing of what was run."]
    return [*head, "| suite and part | test or call | un-isolated | `live` | reason |", "|---|---|---|---|---|", *rows]


def _failures(known: list[tuple[Suite, str, Any]]) -> list[str]:
    """Return what fails without isolation, by part: what the guest lacks, or the engine does otherwise than a CPU."""
    rows = []
    for suite, part, found in known:
        names = found["cells"]["none"]["failures"]
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            rows.append(f"| {suite.name}/{part} | {_cell_text('; '.join(names[:SHOWN]))}{more} |")
    if not rows:
        return []
    return ["", "## What fails un-isolated", "", "| suite and part | tests |", "|---|---|", *rows]


def _cell_text(text: str) -> str:
    return text.replace("|", "\\|")


def write_page(suites: Mapping[str, Suite], state: Mapping[str, Any]) -> None:
    """Put summary and tables into docs/suites.md, between its two marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{render(suites, state)}\n\n{END}{after}", encoding="utf-8")
