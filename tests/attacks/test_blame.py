"""Who wrote is to blame: under `guard` whoever writes what is protected dies for it, and what was written is put back.

What one task writes of another's is in tests/enforcement/test_integrity.py.
"""

import pytest
from thinbox.address import to_signed
from thinbox.attacks.attacker import Attacker
from thinbox.attacks.exploit import Exploit, choose_exploits
from thinbox.attacks.exploit_runner import ExploitRunner
from thinbox.attacks.scenario import make_scenario
from thinbox.isolation.policies import load_policy

HELPER = b"/tmp/evil\0"


@pytest.fixture(scope="module")
def scenario(guest):
    return make_scenario(guest)


@pytest.mark.parametrize("on_violation", ["oops", "undo"])
def test_whoever_writes_a_helpers_path_dies_at_the_end_of_that_call(guest, scenario, on_violation):
    runner = ExploitRunner(guest, scenario, load_policy("live+guard"), on_violation)
    seen = {}

    def body(attacker: Attacker):
        seen["at"] = attacker.text.data("modprobe_path")
        seen["before"] = attacker.leak.bytes_at(seen["at"], 32)
        yield from attacker.write_kernel(seen["at"], HELPER)
        return True

    tried = runner.run(Exploit("test", "an arbitrary write", "a path", "kernel", True, body), isolated=True)
    assert tried.violation is not None and tried.violation.rule.startswith("G2"), tried
    assert (tried.violation.call, tried.violation.tenant) == ("read", runner.tenant.name)
    runner.machine.run(lambda: True)  # between two runs of the CPU an undone call is rolled back
    now = runner.machine.memory.read_virtual(runner.enforcer.kernel_root, to_signed(seen["at"]), 32)
    assert now.partition(b"\0")[0] == seen["before"].partition(b"\0")[0]


def test_ids_changed_in_an_interrupt_are_put_back_and_nobody_dies_for_it(guest, scenario):
    """`timer-function`: the attacker's own ids, written where no call runs. The writer is not known: nobody is killed,
    and the ids are what they were before a call uses them."""
    runner = ExploitRunner(guest, scenario, load_policy("live+guard"), "oops")
    (exploit,) = choose_exploits(("timer-function",))
    tried = runner.run(exploit, isolated=True)
    assert not tried.reached
    assert tried.violation is None, tried.violation
    first = runner.tenant.record.restored[0]
    assert first.rule.startswith(("G3", "G1")) and not first.by_the_call
