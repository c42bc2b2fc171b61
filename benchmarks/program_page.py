"""The table of docs/programs.md, of what benchmarks/programs.json knows.

Rules of this file: a ratio is of the CPU time of the program alone, what its root takes to start subtracted from both;
a program that is gone from the corpus, or changed since, does not stand in the table as if it had been run.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.program_root import Program

PAGE = Path(__file__).parents[1] / "docs" / "programs.md"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
WANTED = {"live": 1.5, "best": 2.5}
"""The medians that are aimed at."""
NAMED = {"live": "`live`", "best": "the best combination"}


LEAST_S = 1.0
"""A program that takes less un-isolated is too short to be compared: a start varies by tenths of a second."""


def ratio(cells: Mapping[str, Any], cell: str) -> float | None:
    """Return how many times as long the program took as un-isolated, without the start of both; None if too short."""
    start_s = cells["start"]["cpu_s"]
    alone_s = cells["none"]["cpu_s"] - start_s
    return (cells[cell]["cpu_s"] - start_s) / alone_s if alone_s >= LEAST_S else None


def whole_ratio(cells: Mapping[str, Any], cell: str) -> float:
    """Return the same of the whole command."""
    return float(cells[cell]["cpu_s"] / cells["none"]["cpu_s"])


def result(found: Mapping[str, Any]) -> str:
    """Return what came of a program, in words."""
    if found["unisolated"]:
        return f"un-isolated: {found['unisolated']}"
    wrong = [f"{NAMED[cell]}: {text}" for cell, text in found["different"].items() if text]
    lacking = [f"{NAMED[cell]} not run" for cell in WANTED if cell not in found["different"]]
    return "; ".join([*wrong, *lacking]).replace("|", "\\|") or "equal"


def render(corpus: Mapping[str, Program], state: Mapping[str, Any]) -> str:
    """Return summary and table: a row for each program, in the corpus' order."""
    known = {name: state[name] for name in corpus if state.get(name, {}).get("key") == corpus[name].key}
    header = "| program | what it does | of | calls | un-isolated, s | `live` | best | result |"
    lines = [header, "|---|---|---|---:|---:|---:|---:|---|"]
    category = ""
    for name, found in known.items():
        program, cells = corpus[name], found["cells"]
        if program.category != category:
            category = program.category
            lines.append(f"| **{category}** | | | | | | | |")
        took = f"{cells['none']['cpu_s'] - cells['start']['cpu_s']:.1f}" if "start" in cells else ""
        known_ratios = [ratio(cells, cell) if found["different"].get(cell) == "" else None for cell in WANTED]
        ratios = ["" if one is None else f"{one:.2f}" for one in known_ratios]
        figures = (f"{cells['none']['calls']:,}", took, *ratios, result(found))
        lines.append(f"| {name} | {program.work} | {', '.join(found['versions'])} | " + " | ".join(figures) + " |")
    return "\n".join([*_summary(corpus, known), "", *lines])


def _summary(corpus: Mapping[str, Program], known: Mapping[str, Any]) -> list[str]:
    kernels = sorted({found["kernel"] for found in known.values()})
    lines = [f"{len(known)} of {len(corpus)} programs were run, on {', '.join(kernels)}.", ""]
    for cell, most in WANTED.items():
        ran = [one for one in known.values() if cell in one["cells"]]
        equal = [one for one in ran if not one["different"][cell]]
        kills = sum(one["cells"][cell]["killed"] for one in ran)
        calls = sum(one["cells"][cell]["isolated"] for one in ran)
        compared = [one for one in (ratio(one["cells"], cell) for one in equal) if one is not None]
        alone = statistics.median(compared or [0])
        whole = statistics.median([whole_ratio(one["cells"], cell) for one in equal] or [0])
        lines.append(
            f"- Under {NAMED[cell]}: {len(equal)} of {len(ran)} equal; {kills} kills in {calls:,} isolated calls; "
            f"median ratio {alone:.2f} (wanted: at most {most}), of the whole command {whole:.2f}."
        )
    return lines


def write_page(corpus: Mapping[str, Program], state: Mapping[str, Any]) -> None:
    """Put summary and table into docs/programs.md, between its two marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{render(corpus, state)}\n\n{END}{after}", encoding="utf-8")
