"""`make programs`, or `python -m benchmarks.programs`: real programs un-isolated, under `live`, and at their strictest.

The corpus is benchmarks/programs.toml: what is fetched, and the script that is run. Every cell is a `thinbox run` that
was run, all of a program's in one sitting. What is known is kept in benchmarks/programs.json by program, and not run
again unless its entry changed or `--redo NAME` says so: a run that was broken off goes on where it was. The table of
docs/programs.md is written of what is known.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.program_page import write_page
from benchmarks.program_root import Program, build_root, load_corpus, versions
from tests.support.package_pool import PackagePool
from thinbox.errors import SourceError
from thinbox.image.cache import lock

HERE = Path(__file__).parent
STATE = HERE / "programs.json"
CELLS: dict[str, tuple[str, ...]] = {
    "start": ("--isolate", "none"),
    "none": ("--isolate", "none"),
    "live": ("--policy", "live"),
    "best": ("--policy", "live+guard", "--view", "strict"),
}
"""What isolates, by cell. `start` runs `true` in the program's root: thinbox's start, and the copying of the root."""
PER_COMMAND_S = 1800
"""A program that has not ended by then is taken for one that hangs."""
_SHOWN = 160


@dataclass(frozen=True, slots=True)
class Ran:
    """One `thinbox run`: what the program said, what its record says, and what it took this machine.

    `cpu_s` is the CPU time of the process and its children, `wall_s` what passed; `failure` is why there is no record.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    cpu_s: float
    wall_s: float
    totals: dict[str, Any]
    kills: tuple[str, ...]
    kernel: str
    failure: str = ""

    def kept(self) -> dict[str, Any]:
        """What the state has of it."""
        counted = {name: self.totals.get(name, 0) for name in ("calls", "isolated", "killed")}
        said = {"stdout_bytes": len(self.stdout), "stdout_sha256": hashlib.sha256(self.stdout).hexdigest()}
        times = {"cpu_s": round(self.cpu_s, 2), "wall_s": round(self.wall_s, 2)}
        return {"exit_code": self.exit_code, **said, **times, **counted, "kills": self.kills, "failure": self.failure}


def run_cell(
    program: Program, root: Path, cell: str, command: tuple[str, ...] = (), limit_s: int = PER_COMMAND_S
) -> Ran:
    """Run a program in its root as the cell says; `command` in its place, for `limit_s` at most."""
    command = command or (("true",) if cell == "start" else ("sh", "-c", program.script))
    with tempfile.TemporaryDirectory(prefix="thinbox-programs-") as folder:
        record = Path(folder) / "run.json"
        options = ("-q", *CELLS[cell], "--rootfs", str(root), "--json", str(record), *program.words)
        environment = {**os.environ, "PYTHONPATH": f"{HERE.parent / 'src'}{os.pathsep}{HERE.parent}"}
        began_s, began_cpu_s = time.perf_counter(), _children_cpu_s()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "thinbox", "run", *options, "--", *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=limit_s,
                env=environment,
            )
        except subprocess.TimeoutExpired as late:
            took = (_children_cpu_s() - began_cpu_s, time.perf_counter() - began_s)
            failure = f"does not end in {limit_s // 60} minutes"
            return Ran(-1, late.stdout or b"", late.stderr or b"", *took, {}, (), "", failure)
        took = (_children_cpu_s() - began_cpu_s, time.perf_counter() - began_s)
        if not record.exists():
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
            return Ran(done.returncode, done.stdout, done.stderr, *took, {}, (), "", lines[-1])
        found = json.loads(record.read_bytes())
    kills = tuple(f"{k['call']}: {k['kind']} of {k['symbol']} ({k['rule']})" for k in found["kills"])
    failure = "the guest was given up: a task waits for ever" if found["stuck"] else ""
    release = found["kernel"]["release"]
    return Ran(done.returncode, done.stdout, done.stderr, *took, found["totals"], kills, release, failure)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def difference(plain: Ran, other: Ran) -> str:
    """Return in one line what `other` said otherwise than the un-isolated run; empty if nothing."""
    if other.failure:
        return other.failure
    if other.kills:
        return f"{len(other.kills)} killed: {other.kills[0]}"
    if other.exit_code != plain.exit_code:
        return f"exit status {other.exit_code}, not {plain.exit_code}"
    if other.stdout == plain.stdout:
        return ""
    lines, meant = other.stdout.splitlines(keepends=True), plain.stdout.splitlines(keepends=True)
    at = next(n for n, pair in enumerate(zip_longest(lines, meant)) if pair[0] != pair[1])
    shown = repr(lines[at].decode(errors="replace")[:_SHOWN]) if at < len(lines) else "missing"
    return f"line {at + 1} is {shown}"


def measure_program(program: Program, pool: PackagePool, names: Sequence[str] = tuple(CELLS)) -> dict[str, Any]:
    """Run cells of a program, `none` always; return what the state has of it."""
    root = build_root(program, pool)
    plain = run_cell(program, root, "none")
    wrong = plain.failure or (f"exit status {plain.exit_code}" if plain.exit_code else "")
    # What does not run un-isolated says nothing of isolation.
    ran = {"none": plain} | {cell: run_cell(program, root, cell) for cell in names if cell != "none" and not wrong}
    tail = plain.stderr.decode(errors="replace").strip().splitlines()
    return {
        "key": program.key,
        "kernel": plain.kernel,
        "versions": versions(program, pool),
        "cells": {cell: one.kept() for cell, one in ran.items()},
        "unisolated": f"{wrong}: {tail[-1][:_SHOWN]}" if wrong and tail else wrong,
        "different": {cell: difference(plain, ran[cell]) for cell in ("live", "best") if cell in ran},
    }


def load_state() -> dict[str, Any]:
    """Return what is known, by program."""
    return json.loads(STATE.read_text(encoding="utf-8")) if STATE.exists() else {}


def keep(name: str, found: dict[str, Any]) -> None:
    """Add what was found of a program to the state, and to what another process has kept meanwhile."""
    with lock("programs"):
        state = load_state() | {name: found}
        STATE.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def is_known(program: Program, found: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether these cells were run of the program as it is; what does not run un-isolated has no others."""
    return found.get("key") == program.key and (bool(found["unisolated"]) or set(names) <= set(found["cells"]))


def measure(programs: Iterable[Program], redo: set[str], names: Sequence[str]) -> None:
    """Run the programs of which a cell is not known, and keep each as soon as it is known."""
    pool = PackagePool()
    for program in programs:
        if is_known(program, load_state().get(program.name, {}), names) and program.name not in redo:
            continue
        print(f"{program.name}: {', '.join(names)}", file=sys.stderr, flush=True)
        try:
            found = measure_program(program, pool, names)
        except SourceError as error:
            print(f"{program.name}: {error}", file=sys.stderr, flush=True)
            continue
        keep(program.name, found)
        times = ", ".join(f"{cell} {one['cpu_s']:.1f} s" for cell, one in found["cells"].items())
        wrong = found["unisolated"] or "; ".join(filter(None, found["different"].values())) or "equal"
        print(f"{program.name}: {wrong}; {times}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure the programs, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.programs", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this program; repeatable")
    parser.add_argument("--redo", action="append", default=[], metavar="NAME", help="run this again; repeatable")
    parser.add_argument("--quick", action="store_true", help="leave out the best combination, for a later run")
    parser.add_argument("--page", action="store_true", help="write the page of what is known, and run nothing")
    parser.add_argument("--show", metavar="NAME", help="run this un-isolated, say what it says, and keep nothing")
    options = parser.parse_args()
    corpus = load_corpus()
    unknown = [name for name in (*options.only, *options.redo) if name not in corpus]
    if unknown:
        parser.error(f"there is no program {unknown[0]!r} in benchmarks/programs.toml")
    if options.show:
        program = corpus[options.show]
        ran = run_cell(program, build_root(program, PackagePool()), "none")
        sys.stdout.buffer.write(ran.stdout)
        sys.stderr.buffer.write(ran.stderr)
        shown = {name: value for name, value in asdict(ran).items() if name in {"cpu_s", "exit_code", "failure"}}
        print(f"{shown}, {ran.totals.get('calls')} calls", file=sys.stderr)
        return
    if not options.page:
        names = [*options.only, *options.redo] or list(corpus)
        cells = [cell for cell in CELLS if not options.quick or cell != "best"]
        measure([corpus[name] for name in names], set(options.redo), cells)
    write_page(corpus, load_state())


if __name__ == "__main__":
    main()
