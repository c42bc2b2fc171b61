"""What a dying task's end looks at may be forged: it is judged as a call, and undone is not said of what then ran."""

import struct

import pytest
from thinbox.attacks.attacker import Attacker
from thinbox.attacks.bug import wrong_registers
from thinbox.attacks.exploit import Exploit
from thinbox.attacks.exploit_runner import ExploitRunner
from thinbox.attacks.hijack import TARGET_FUNCTION, TARGET_OFFSET
from thinbox.attacks.scenario import make_scenario
from thinbox.isolation.policies import load_policy

TARGET = "__x64_sys_sethostname"
"""A whole function that no end of a task reaches; called with a file's address, it does no harm."""


@pytest.fixture(scope="module")
def scenario(guest):
    return make_scenario(guest)


def forge_and_stray(attacker: Attacker):
    """A file gets operations whose `flush`, called when the file is closed, is TARGET; then a violation on purpose."""
    handle = yield from attacker.own_file()
    leak, text = attacker.leak, attacker.text
    file = leak.file(attacker.task, handle)
    operations = bytearray(leak.bytes_at(leak.member(file, "file", "f_op"), leak.size("file_operations")))
    struct.pack_into("<Q", operations, leak.offset("file_operations", "flush"), text.function(TARGET))
    ends = yield from attacker.filled_pipe(bytes(operations))
    forged = leak.in_direct_map(leak.pipe_page(attacker.task, ends[0]))
    yield from attacker.write_kernel(file + leak.offset("file", "f_op"), struct.pack("<Q", forged))
    place, register = text.indirect_call("ksys_lseek")
    astray = {register: text.function(TARGET_FUNCTION) + TARGET_OFFSET}
    yield from attacker.attack("lseek", handle, 0, 0, bug=wrong_registers(place, astray))
    return False


def end_of_the_attacker(guest, scenario, policy, on_violation):
    runner = ExploitRunner(guest, scenario, load_policy(policy), on_violation)
    ran = []
    runner.machine.cpu.add_code_hook(scenario.text.function(TARGET), lambda: ran.append(runner.view.current))
    tried = runner.run(Exploit("test", "a file's operations", "none", "kernel", True, forge_and_stray), isolated=True)
    assert tried.violation is not None and tried.violation.call == "lseek", tried
    assert tried.violation.undone == (on_violation == "undo")
    gone = scenario.attacker_task
    runner.machine.run(lambda: gone not in runner.enforcer.tasks)
    return [task for task in ran if task == gone], runner.tenant.record


@pytest.mark.parametrize("on_violation", ["undo", "oops"])
def test_a_forged_flush_is_refused_in_the_end_of_a_killed_task(guest, scenario, on_violation):
    """`callgraph` knows that no end of a task reaches it."""
    ran, record = end_of_the_attacker(guest, scenario, "live+callgraph", on_violation)
    assert ran == []
    assert [(kill.call, kill.symbol) for kill in record.kills[1:]] == [("exit_group", TARGET)]
    assert not record.kills[1].undone


def test_the_same_file_runs_it_where_the_policy_allows_any_function(guest, scenario):
    """`live` allows a function's start in any call, and so in an end: the forgery works, and stands in the record."""
    ran, record = end_of_the_attacker(guest, scenario, "live", "undo")
    assert len(ran) == 1 and len(record.kills) == 1
    assert record.outside["exits, judged"] == 1
