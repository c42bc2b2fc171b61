"""`make kernels`, or `python -m benchmarks.kernels [KERNEL…]`: what works on which kernel, as docs/kernels.md has it.

Every cell is a `thinbox` command that was run. What is known is kept in benchmarks/kernels.json, by kernel and cell,
and not run again (`--redo CELL` does): a run that was broken off goes on where it was. Without KERNEL the table is
written of what is known. KERNEL is a file or a release; Debian's mirrors have packages for all of the table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STATE, PAGE = HERE / "kernels.json", HERE.parent / "docs" / "kernels.md"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
BEST = ("--policy", "live+guard", "--view", "strict")
SCRIPT = (
    "n=0; while [ $n -lt 100 ]; do echo $n > /tmp/f; read x < /tmp/f; n=$((n+1)); done; "
    "ls / | wc -l; (sleep 0.01) & wait; uname -r"
)
SHELL = ("sh", "-c", SCRIPT)
LONG = HERE.parent / "src" / "thinbox" / "data" / "script.sh"
LONG_SHELL = ("sh", "-c", "{long}")
PER_COMMAND_S = 600
"""A guest that does not end is taken for one that hangs."""
Cell = tuple[tuple[str, ...], Callable[[dict[str, Any], int], str]]


def _uses(found: dict[str, Any], _status: int) -> str:
    lacking = [use for use, fine in found["uses"].items() if not fine]
    return "no " + ", no ".join(lacking) if lacking else "all"


def _boot(_found: dict[str, Any], status: int) -> str:
    return "yes" if status == 0 else "no"


def _run(found: dict[str, Any], status: int) -> str:
    totals = found["totals"]
    calls = f"{totals['isolated']:,} of {totals['calls']:,} calls"
    if totals["killed"]:
        return f"{totals['killed']} killed"
    return calls if status == 0 else f"exit status {status}"


def _tenants(found: dict[str, Any], status: int) -> str:
    killed = sum(tenant["totals"]["killed"] for tenant in found["tenants"].values())
    return f"{killed} killed" if killed else ("yes" if status == 0 else f"exit status {status}")


def _audit(found: dict[str, Any], _status: int) -> str:
    totals = found["totals"]
    wrong = f"{totals['different']} different, {totals['killed']} killed"
    share = 100 * totals["exercised"] / totals["implemented"]
    return f"{wrong}; {totals['exercised']} of {totals['implemented']} calls ({share:.1f} %)"


def _attacks(found: dict[str, Any], _status: int) -> str:
    outcomes = [row["outcome"] for row in found["rows"]]
    return f"{outcomes.count('succeeded')} of {len(outcomes)} succeed"


CELLS: dict[str, Cell] = {
    "doctor": (("kernel", "doctor", "{kernel}"), _uses),
    "boot": (("boot", "--kernel", "{kernel}", "-q"), _boot),
    "un-isolated": (("run", "--kernel", "{kernel}", "-q", "--isolate", "none", "--", *SHELL), _run),
    "sci": (("run", "--kernel", "{kernel}", "-q", "--policy", "sci", "--", *SHELL), _run),
    "live": (("run", "--kernel", "{kernel}", "-q", "--policy", "live", "--", *SHELL), _run),
    "best": (("run", "--kernel", "{kernel}", "-q", *BEST, "--", *SHELL), _run),
    "300 lines, live": (("run", "--kernel", "{kernel}", "-q", "--policy", "live", "--", *LONG_SHELL), _run),
    "300 lines, best": (("run", "--kernel", "{kernel}", "-q", *BEST, "--", *LONG_SHELL), _run),
    "kaslr": (("run", "--kernel", "{kernel}", "-q", "--kaslr", "--", *SHELL), _run),
    "pti=off": (("run", "--kernel", "{kernel}", "-q", "--append", "pti=off", "--", *SHELL), _run),
    "two tenants": (
        ("run", "--kernel", "{kernel}", "-q", *BEST, "--tenant", f"a=sh -c '{SCRIPT}'", "--tenant", "b=id"),
        _tenants,
    ),
    "audit, live": (("audit", "--all", "--kernel", "{kernel}", "-q", "--policy", "live"), _audit),
    "attacks, un-isolated": (("attack", "--all", "--kernel", "{kernel}", "-q", "--policy", "none"), _attacks),
    "attacks, best": (("attack", "--all", "--kernel", "{kernel}", "-q", *BEST), _attacks),
}


def run_cell(name: str, kernel: str) -> str:
    """Run a cell's command on a kernel; return what it says, or in one line why it says nothing."""
    words, read = CELLS[name]
    known = {"{kernel}": kernel, "{long}": LONG.read_text(encoding="utf-8")}
    command = [known.get(word, word) for word in words]
    with tempfile.TemporaryDirectory(prefix="thinbox-kernels-") as folder:
        file = Path(folder) / "out.json"
        at = command.index("--") if "--" in command else len(command)
        command[at:at] = ["--json", str(file)]
        environment = {**os.environ, "PYTHONPATH": f"{HERE.parent / 'src'}{os.pathsep}{HERE.parent}"}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "thinbox", *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=PER_COMMAND_S,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return f"does not end in {PER_COMMAND_S // 60} minutes"
        if not file.exists():
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return "refused: " + lines[-1].removeprefix("thinbox: ")
        return read(json.loads(file.read_text(encoding="utf-8")), done.returncode)


def measure(kernels: list[str], redo: set[str], state: dict[str, dict[str, str]]) -> None:
    """Run what is not known of these kernels, and keep each cell as soon as it is known."""
    from thinbox.image.facts import load_facts
    from thinbox.image.source import resolve_kernel

    for spec in kernels:
        found = resolve_kernel(spec)
        try:
            release = load_facts(found)[1].release
        except Exception as error:
            release = f"{found.label} ({type(error).__name__})"
        cells = state.setdefault(release, {"sha256": found.data_sha256})
        if cells["sha256"] != found.data_sha256:
            cells = state[release] = {"sha256": found.data_sha256}
        for name in CELLS:
            if name not in cells or name in redo:
                print(f"{release}: {name}", file=sys.stderr, flush=True)
                cells[name] = run_cell(name, spec)
                STATE.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def render(state: dict[str, dict[str, str]]) -> str:
    """Return the table, a row for each kernel, oldest first."""
    lines = ["| | " + " | ".join(CELLS) + " |", "|---|" + "---|" * len(CELLS)]
    lines += [
        f"| {release} | " + " | ".join(state[release].get(name, "not run") for name in CELLS) + " |"
        for release in sorted(state, key=_version)
    ]
    return "\n".join(lines)


def render_commands() -> str:
    """Return the command of each cell."""
    quoted = {name: " ".join(w if " " not in w else f"'{w}'" for w in words) for name, (words, _read) in CELLS.items()}
    short = {
        name: text.replace(SCRIPT, "SCRIPT").replace("{long}", '"$(cat src/thinbox/data/script.sh)"')
        for name, text in quoted.items()
    }
    return "\n".join(f"- {name}: `thinbox {text}`" for name, text in short.items())


def _version(release: str) -> tuple[list[int], str]:
    head = release.split("-", maxsplit=1)[0].split("+", maxsplit=1)[0]
    return [int(part) for part in head.split(".") if part.isdigit()], release


def write_page(state: dict[str, dict[str, str]]) -> None:
    """Put the table and the commands into docs/kernels.md, between its two marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{render(state)}\n\n{render_commands()}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure the kernels named, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL")
    parser.add_argument("--redo", action="append", default=[], metavar="CELL", help="run this cell again; repeatable")
    options = parser.parse_args()
    state = json.loads(STATE.read_text(encoding="utf-8")) if STATE.exists() else {}
    measure(options.kernels, set(options.redo), state)
    write_page(state)


if __name__ == "__main__":
    main()
