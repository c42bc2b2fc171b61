"""What is saved of the CPU holds nothing of the process it was saved in."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PROGRAM = """
from tests.support.bare_machine import DATA, BareMachine, mov
from thinbox.machine import cpu as registers
import ctypes, hashlib
bare = BareMachine(mov(registers.RAX, DATA) + b"\\x48\\x8b\\x00")  # mov rax, [rax]
bare.run()
live = ctypes.c_uint64.from_address(bare.cpu._env + bare.cpu.layout.retaddr)
live.value = id(bare)  # Unicorn's own page walk would leave a host address there
saved = bare.cpu.save()
print(live.value, hashlib.sha256(saved).hexdigest())
bare.cpu.restore(saved)
assert bare.cpu.save() == saved
"""


def test_two_processes_save_the_same_bytes():
    # Not the folder of the tests itself: `coverage` in it would be taken for the package, which Numba imports.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS.parent / "src")])}
    seen = []
    for padding in ("", "x" * 70_000):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment | {"PADDING": padding},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout.split())
    (first_pointer, first), (_second_pointer, second) = seen
    assert first == second
    assert int(first_pointer), "the host pointer is there to be left out"
