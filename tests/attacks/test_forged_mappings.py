"""What a forged page table leads to where nobody is in a call that could be killed for it."""

from thinbox.attacks.exploit import choose_exploits
from thinbox.attacks.exploit_runner import ExploitRunner
from thinbox.attacks.scenario import make_scenario
from thinbox.isolation.policies import load_policy


def test_text_that_leads_elsewhere_is_not_run_and_the_record_says_so(guest):
    """The attacker opens a file in a call that is not isolated: the kernel's own fault, which ends it by an oops."""
    (exploit,) = choose_exploits(("remapped-text",))
    runner = ExploitRunner(guest, make_scenario(guest), load_policy("live+guard"), view="permissive")
    found = runner.run(exploit, isolated=True)
    assert not found.reached
    assert runner.tenant.record.outside["refused by the wall (W2)"] >= 1
