"""What a test suite of others needs: its entry in suites.toml, its root file system, and how its lines are read.

Why it exists: a suite is a program of the corpus (`benchmarks.program_root`) with more than one part and with its
authors' source beside its packages, and says of each test what came of it.

Rules of this file: the suites' own lines are read where they have a common form; where not, the script of the entry
turns them into `PASS: name`, and says so.
"""

import hashlib
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.program_root import Program, build_root
from tests.support.package_pool import PackagePool
from tests.support.source_pool import SourcePool, unpack

SUITES = Path(__file__).parent / "suites.toml"
PLACE = "suite"
"""Where the root has the source."""
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
_WORDS = {"PASS": PASSED, "XFAIL": PASSED, "FAIL": FAILED, "ERROR": FAILED, "SKIP": SKIPPED} | {
    "SKIPPED": SKIPPED,
    "UNTESTED": SKIPPED,
}
_WORD_LINE = re.compile(rf"^({'|'.join(_WORDS)}): (.+?)\s*$")
_EXIT_LINE = re.compile(r"^EXIT (-?\d+): (.+?)\s*$")
_TAP_LINE = re.compile(r"^(not )?ok\b\s*(\d+)?(?:[^#]*)(?:#\s*(\w+))?")
_FILE_LINE = re.compile(r"^== (.+?)\s*$")
NOT_THERE = frozenset({3, 4})
"""stress-ng's exit statuses for what the machine does not have."""


@dataclass(frozen=True, slots=True)
class Suite:
    """One entry: whose tests they are (`of`), the script that runs a part of them ($PART), and the parts by name.

    `source` is a Debian source package, of which the root has `takes` in /suite. `reasons` says why a test differs.
    """

    name: str
    of: str
    script: str
    parts: Mapping[str, str]
    packages: tuple[str, ...] = ()
    source: str = ""
    takes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    user: str = "root"
    memory_mib: int = 512
    reasons: Mapping[str, str] = field(default_factory=dict)

    def program(self, part: str) -> Program:
        """Return a part as a program of the corpus."""
        script = f"PART={shlex.quote(self.parts[part])}\n{self.script}"
        asked = (self.packages, (), self.without, self.user, self.memory_mib)
        return Program(f"suite-{self.name}", "", self.of, script, *asked)

    def key(self, part: str) -> str:
        """Changes with what is run."""
        said = (self.program(part).key, self.source, self.takes)
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def load_suites(path: Path = SUITES) -> dict[str, Suite]:
    """Return the suites by name, in the file's order; raises TypeError for a field there is not."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    suites = {
        name: Suite(name, **{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()})
        for name, fields in entries.items()
    }
    return {
        name: replace(suite, parts={one: one for one in suite.parts}) if isinstance(suite.parts, tuple) else suite
        for name, suite in suites.items()
    }


def build_suite_root(suite: Suite, pool: PackagePool) -> Path:
    """Return the suite's root, made if it is not there; raises SourceError if something of it cannot be had."""
    root = build_root(suite.program(next(iter(suite.parts))), pool)
    if suite.source:
        stamp, said = root / "var/lib/thinbox-source", json.dumps([suite.source, suite.takes])
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != said:
            shutil.rmtree(root / PLACE, ignore_errors=True)
            unpack(SourcePool(pool).fetch(suite.source), suite.takes, root / PLACE)
            stamp.write_text(said, encoding="utf-8")
    return root


def parse_results(text: str) -> dict[str, str]:
    """Return what came of each test a suite names, by name; a name said again gets a number.

    Read are `PASS: name` and its like (Busybox, GNU), TAP (`ok 1 - name`, below a line `== file`), and `EXIT 0: name`.
    Whatever else a line says is no result.
    """
    found: dict[str, str] = {}
    file, said = "", 0
    for line in text.splitlines():
        if match := _FILE_LINE.match(line):
            file, said = match[1], 0
            continue
        if match := _WORD_LINE.match(line):
            name, came = match[2], _WORDS[match[1]]
        elif match := _EXIT_LINE.match(line):
            name, status = match[2], int(match[1])
            came = PASSED if status == 0 else SKIPPED if status in NOT_THERE else f"{FAILED} with {status}"
        elif match := _TAP_LINE.match(line):
            said += 1
            name = f"{file} {match[2] or said}".strip()
            came = _tap_outcome(failed=bool(match[1]), directive=(match[3] or "").upper())
        else:
            continue
        number, unique = 2, name
        while unique in found:
            unique, number = f"{name} ({number})", number + 1
        found[unique] = came
    return found


def _tap_outcome(*, failed: bool, directive: str) -> str:
    """Return the outcome of a line of TAP; what is still to be done may fail."""
    if directive.startswith("SKIP"):
        return SKIPPED
    return FAILED if failed and directive != "TODO" else PASSED
