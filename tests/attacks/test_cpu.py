"""What the CPU's own protection prevents: SMEP and SMAP, as the kernel of the default CPU uses them."""

import os

import pytest
from tests.conftest import OTHER_KERNEL
from thinbox.attacks.exploit import choose_exploits
from thinbox.attacks.exploit_runner import ExploitRunner
from thinbox.attacks.matrix import MatrixOptions, run_matrix
from thinbox.attacks.scenario import make_scenario
from thinbox.boot.params import BootParams
from thinbox.boot.ready import prepare
from thinbox.isolation.policies import load_policy
from thinbox.machine.cpu_model import DEFAULT_CPU
from thinbox.report.attack import render_attacks


@pytest.fixture(scope="module")
def protected():
    return prepare(os.environ.get(OTHER_KERNEL), BootParams(cpu=DEFAULT_CPU))


@pytest.mark.parametrize(
    "name",
    ["return-to-user", "stack-pivot"],
)
def test_the_kernel_can_have_no_stack_in_user_memory(protected, name):
    """The first `ret` faults, and so does the frame of that fault: a double fault at the `ret`, as on hardware."""
    runner = ExploitRunner(protected, make_scenario(protected), load_policy("sci"))
    (exploit,) = choose_exploits((name,))
    found = runner.run(exploit, isolated=False)
    said = bytes(runner.machine.console).decode()
    assert not found.reached and "PANIC: double fault" in said
    rip = next(line for line in said.splitlines() if "RIP: 0010:" in line)
    assert "exc_page_fault" not in rip


def test_what_the_cpu_prevents_is_said_and_is_no_fault_of_the_exploit(protected):
    record = run_matrix(protected, MatrixOptions(("return-to-user", "rop-commit-creds"), ("none",)))
    by_name = {row.attack: row for row in record.rows}
    assert by_name["return-to-user"].prevented_by == ("smep", "smap") and not record.broken
    assert by_name["rop-commit-creds"].outcome == "succeeded"
    assert "return-to-user does not succeed unisolated: this CPU has SMEP and SMAP" in render_attacks(record)
