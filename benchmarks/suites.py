"""`make suites`, or `python -m benchmarks.suites`: test suites that no one here wrote, un-isolated and under `live`.

The suites are benchmarks/suites.toml. A part of one is a `thinbox run`, un-isolated and then isolated, and what came of
each of its tests is compared. What is known is kept in benchmarks/suites.json by part, and not run again unless its
entry changed or `--redo SUITE/PART` says so. The table of docs/suites.md is written of what is known.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.programs import CELLS, Ran, run_cell
from benchmarks.suite_page import write_page
from benchmarks.suite_root import FAILED, PASSED, SKIPPED, Suite, build_suite_root, load_suites, parse_results
from tests.support.package_pool import PackagePool
from thinbox.errors import SourceError
from thinbox.image.cache import lock

STATE = Path(__file__).parent / "suites.json"
COMPARED = ("none", "live")
"""The cells of `benchmarks.programs` that are run."""
NOT_RUN = "not run"


def summary(ran: Ran, results: Mapping[str, str]) -> dict[str, Any]:
    """Return what the state has of one run: how many tests, which failed, and what it took."""
    counted = Counter(FAILED if came.startswith(FAILED) else came for came in results.values())
    failed = sorted(name for name, came in results.items() if came.startswith(FAILED))
    return {
        **{came: counted[came] for came in (PASSED, FAILED, SKIPPED)},
        "failures": failed,
        "exit_code": ran.exit_code,
        "calls": ran.totals.get("calls", 0),
        "isolated": ran.totals.get("isolated", 0),
        "kills": ran.kills,
        "failure": ran.failure,
        "cpu_s": round(ran.cpu_s, 2),
    }


def differing(
    plain: Mapping[str, str], isolated: Mapping[str, str], *, broken_off: bool = False
) -> dict[str, tuple[str, str]]:
    """Return by test what came of it un-isolated and isolated, where the two differ.

    What only one of two runs says is no difference if one was `broken_off`: the page says that of the run.
    """
    both = {name: (plain.get(name, NOT_RUN), isolated.get(name, NOT_RUN)) for name in (plain | isolated)}
    differ = {name: pair for name, pair in both.items() if pair[0] != pair[1]}
    return {name: pair for name, pair in differ.items() if not (broken_off and NOT_RUN in pair)}


def measure_part(suite: Suite, part: str, pool: PackagePool, limit_s: int) -> dict[str, Any]:
    """Run a part in both cells, and return what the state has of it; raises SourceError if it cannot be had."""
    root = build_suite_root(suite, pool)
    program = suite.program(part)
    ran = {cell: run_cell(program, root, cell, limit_s=limit_s) for cell in COMPARED}
    results = {cell: parse_results(one.stdout.decode(errors="replace")) for cell, one in ran.items()}
    broken_off = any(one.failure for one in ran.values())
    return {
        "key": suite.key(part),
        "kernel": ran["none"].kernel,
        "versions": [f"{name} {pool.index[name].version}" for name in suite.packages],
        "cells": {cell: summary(one, results[cell]) for cell, one in ran.items()},
        "different": differing(results["none"], results["live"], broken_off=broken_off),
    }


def load_state(path: Path = STATE) -> dict[str, Any]:
    """Return what is known, by suite and part."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(name: str, found: dict[str, Any]) -> None:
    """Add what was found of a part to the state, and to what another process has kept meanwhile."""
    with lock("suites"):
        state = load_state() | {name: found}
        STATE.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def measure(suites: Iterable[Suite], only: set[str], redo: set[str], limit_s: int) -> None:
    """Run the parts that are not known, and keep each as soon as it is known."""
    pool = PackagePool()
    for suite in suites:
        for part in suite.parts:
            name = f"{suite.name}/{part}"
            known = load_state().get(name, {}).get("key") == suite.key(part) and name not in redo
            if known or (only and name not in only | redo and suite.name not in only):
                continue
            print(f"{name}: {', '.join(COMPARED)}", file=sys.stderr, flush=True)
            try:
                found = measure_part(suite, part, pool, limit_s)
            except SourceError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
            keep(name, found)
            print(f"{name}: {_in_short(found)}", file=sys.stderr, flush=True)


def _in_short(found: Mapping[str, Any]) -> str:
    cells = found["cells"]
    told = [
        f"{cell} {one[PASSED]} passed, {one[FAILED]} failed, {one['cpu_s']:.0f} s {one['failure']}"
        for cell, one in cells.items()
    ]
    return "; ".join([*told, f"{len(cells['live']['kills'])} killed", f"{len(found['different'])} differ"])


def main() -> None:
    """Run the suites, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suites", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="SUITE[/PART]", help="these; repeatable")
    parser.add_argument("--redo", action="append", default=[], metavar="SUITE/PART", help="run this again; repeatable")
    parser.add_argument("--limit", type=int, default=1800, metavar="S", help="what ends a run that hangs, in seconds")
    parser.add_argument("--page", action="store_true", help="write the page of what is known, and run nothing")
    parser.add_argument("--show", metavar="SUITE/PART", help="run this part, say what it says, and keep nothing")
    parser.add_argument("--cell", choices=CELLS, default="none", help="what isolates, with --show")
    options = parser.parse_args()
    suites = load_suites()
    parts = {f"{suite.name}/{part}": (suite, part) for suite in suites.values() for part in suite.parts}
    for name in (*options.only, *options.redo, *filter(None, [options.show])):
        if name not in parts and (name not in suites or name in (*options.redo, options.show)):
            parser.error(f"there is no {name!r} in benchmarks/suites.toml")
    if options.show:
        suite, part = parts[options.show]
        root = build_suite_root(suite, PackagePool())
        ran = run_cell(suite.program(part), root, options.cell, limit_s=options.limit)
        sys.stdout.buffer.write(ran.stdout)
        sys.stderr.buffer.write(ran.stderr)
        told = {"exit_code": ran.exit_code, "failure": ran.failure, "kills": ran.kills, "cpu_s": round(ran.cpu_s, 1)}
        print(told, file=sys.stderr)
        return
    if not options.page:
        measure(suites.values(), {*options.only, *options.redo}, set(options.redo), options.limit)
    write_page(suites, load_state())


if __name__ == "__main__":
    main()
