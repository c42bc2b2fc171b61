"""DeferredWork: under a view, work for the whole kernel is not a call's own; and nothing else is let off by that."""

import pytest
from tests.support.debian_rootfs import rootfs_folder
from tests.support.futex_tenants import futex_tenants
from tests.support.hijack import TALK, Hijack

from thinbox.audit.case import all_cases
from thinbox.audit.case_runner import CaseRunner, make_checkpoint
from thinbox.audit.neighbour import NEIGHBOUR
from thinbox.audit.pool import audit_case
from thinbox.isolation.policies import load_policy
from thinbox.kernel.reclaim import find_reclaim
from thinbox.machine import cpu as registers
from thinbox.session.session import TenantSpec, run_tenants


@pytest.fixture(scope="module")
def template(guest):
    return make_checkpoint(guest, tenants=True)


@pytest.mark.parametrize("on_violation", ["oops", "undo"])
def test_compaction_by_a_tenants_call_is_the_kernels_own_work(guest, template, on_violation):
    runner = CaseRunner(guest, template, load_policy("live+guard"), on_violation, view="permissive")
    cases = [case for case in all_cases() if "compact_memory" in case.title or "drop_caches" in case.title]
    assert len(cases) == 2
    for case in cases:
        entry = audit_case(runner, case)
        assert entry.same and entry.killed is None, (entry.title, entry.killed, entry.reason)


@pytest.fixture(scope="module")
def hijack(guest, template):
    return Hijack(guest, template)


def test_a_jump_to_an_errand_is_none(hijack, steps_aside):
    """compact_node of node 0, but not from a call of it: it runs on the tenant's table, and is killed at others' pages."""
    shape = find_reclaim(hijack.runner.view.facts)
    node = 0
    if not shape.compacts_by_number:
        node = hijack.word(shape.nodes_at) if shape.nodes_at else shape.only_node_at

    def prepare():
        hijack.runner.machine.cpu.regs[registers.RDI], hijack.runner.machine.cpu.regs[registers.RSI] = node, 0
        return hijack.symbols.address_of("compact_node")

    outcome = hijack.run(prepare)
    assert outcome.killed and f"tenant {NEIGHBOUR}" in outcome.killed
    assert steps_aside == [0]


def test_an_errand_with_a_forged_argument_is_none(hijack, steps_aside):
    """A return address that is right does not help: `capture` would be written through, and is not on the stack."""
    seen = []

    def prepare():
        runner, node = hijack.runner, hijack.word(hijack.symbols.address_of("node_data"))
        regs, offsets = runner.machine.cpu.regs, runner.view.facts.types.offset_of
        zone = node + offsets("pglist_data", "node_zones")
        seen.append(zone)
        regs[registers.RDI], regs[registers.RSI], regs[registers.RDX] = zone, 3, 0xCC0
        regs[registers.RCX], regs[registers.R8], regs[registers.R9] = 1, 0, 0
        hijack.push(hijack.symbols.address_of("modprobe_path"), hijack.call_in_text("compact_zone_order"))
        return hijack.symbols.address_of("compact_zone_order")

    hijack.run(prepare)
    assert seen and steps_aside == [0]


def test_the_same_with_arguments_as_the_kernel_passes_them_is_one(hijack, steps_aside):
    """So the two tests above fail for the reason they name. What follows the deferred work is the hijacker's own."""

    def prepare():
        node = hijack.word(hijack.symbols.address_of("node_data"))
        regs, offsets = hijack.runner.machine.cpu.regs, hijack.runner.view.facts.types.offset_of
        regs[registers.RDI], regs[registers.RSI], regs[registers.RDX] = (
            node + offsets("pglist_data", "node_zones"),
            3,
            0xCC0,
        )
        regs[registers.RCX], regs[registers.R8], regs[registers.R9] = 1, 0, 0
        hijack.push(regs[registers.RSP] - 64, hijack.call_in_text("compact_zone_order"))
        return hijack.symbols.address_of("compact_zone_order")

    hijack.run(prepare)
    assert steps_aside == [1]


def test_tenants_that_talk_on_loopback_at_once_are_not_killed(guest, steps_aside):
    """Packets of all wait in one queue, ports in one hash table: whoever's call lets soft interrupts run meets them."""

    def run_both(view):
        return run_tenants(
            guest, [TenantSpec(name, ("sh", "-c", TALK), view=view, on_violation="stop") for name in ("one", "two")]
        )

    plain, hidden = run_both("none"), run_both("permissive")
    assert steps_aside[0] > 20
    for name, result in hidden.items():
        assert not result.record.kills
        assert (result.exit_code, result.stdout) == (plain[name].exit_code, plain[name].stdout)
        assert int(result.stdout) > 2 * 40 * 4096


def test_tenants_that_meet_in_the_kernels_hash_of_futexes_are_not_killed(guest, tmp_path):
    """Five wait, the sixth wakes 240 addresses of its own: some of them hash to a chain that another waits in."""
    specs = futex_tenants(tmp_path, on_violation="stop")
    found = run_tenants(guest, specs)
    assert [(result.exit_code, result.record.kills) for result in found.values()] == [(0, [])] * 6


PYTHON = """
import mmap, os, socket, threading
def talk(number):
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    accepted.sendall(b"x" * 5000)
    place, got = mmap.mmap(-1, 1 << 16), 0
    while got < 5000: got += len(client.recv(4096))
    place[:5], heard[number] = b"hello", got
heard = {}
threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
child = os.fork()
if child == 0: os._exit(3)
print(sum(heard.values()), os.waitpid(child, 0)[1] >> 8)
"""


def test_pythons_with_threads_sockets_and_children_side_by_side_are_not_killed(guest):
    """Threads, memory, loopback and children of each, at the same time."""
    root = rootfs_folder("python3")
    command = ("/usr/bin/python3", "-S", "-c", PYTHON)
    names = ("one", "two", "three")
    specs = [TenantSpec(name, command, policy="live+guard", rootfs=root, on_violation="stop") for name in names]
    found = run_tenants(guest, specs)
    assert [(r.exit_code, r.stdout, r.record.kills) for r in found.values()] == [(0, b"20000 3\n", [])] * 3
