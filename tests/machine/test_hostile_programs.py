"""No program crashes the host or makes the machine raise: hostile code, tables and roots, in a process of their own.

`THINBOX_FUZZ_PROGRAMS` says how many programs of each kind run (200 without it), `THINBOX_FUZZ_FIRST` from which seed
on. A failure names its seed: `python -m tests.support.machine_fuzz KIND SEED 1` runs it alone.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.hostile_code import LONGEST, forged_table, random_program

TESTS = Path(__file__).resolve().parents[1]
PROGRAMS = int(os.environ.get("THINBOX_FUZZ_PROGRAMS", "200"))
FIRST = int(os.environ.get("THINBOX_FUZZ_FIRST", "0"))
BATCH = 500
"""Programs of one process."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["user", "tables", "kernel", "isolated"])
def test_hostile_programs_end_as_programs_do(kind: str) -> None:
    """Ring 3 code; over forged tables; ring 0 code with any CR3; ring 0 code on an SCI table."""
    # Not the folder of the tests itself: `coverage` in it would be taken for the package, which Numba imports.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS.parent)])}
    for first in range(FIRST, FIRST + PROGRAMS, BATCH):
        count = min(BATCH, FIRST + PROGRAMS - first)
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.machine_fuzz", kind, str(first), str(count)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=3600,
            check=False,
        )
        assert done.returncode == 0, (done.returncode, done.stdout[-400:], done.stderr[-2000:])


def test_a_seed_is_one_program() -> None:
    programs = [random_program(seed, (0x1000,)) for seed in range(300)]
    assert programs == [random_program(seed, (0x1000,)) for seed in range(300)]
    assert len(set(programs)) == 300
    assert all(0 < len(program) <= LONGEST for program in programs)
    tables = [forged_table(seed, 96 << 20, (0x5000,)) for seed in range(50)]
    assert tables == [forged_table(seed, 96 << 20, (0x5000,)) for seed in range(50)]
    assert all(0 <= word < 1 << 64 and index < 512 for table in tables for index, word in table.items())
