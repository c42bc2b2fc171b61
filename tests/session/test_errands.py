"""Errands: under a view, work for the whole kernel is not a call's own; and nothing else is let off by that."""

import struct

import pytest
from support.debian_rootfs import rootfs_folder
from support.call_program import DATA, Step, build_program
from thinbox.address import U64, to_signed
from thinbox.audit.case import Case, Expect, all_cases
from thinbox.audit.lab import Lab, make_template
from thinbox.audit.neighbour import NEIGHBOUR
from thinbox.audit.pool import audit_case
from thinbox.isolation.policies import load_policy
from thinbox.isolation.policies.sci import Sci
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.cpu import Cpu
from thinbox.session.several import TenantSpec, run_tenants

ANYTHING = Expect(lambda _result: True, "anything")
TALK = """
dd if=/dev/zero of=/tmp/big bs=4096 count=40 2>/dev/null
for port in 9001 9002; do (nc -l -p $port </tmp/big >/tmp/in$port) & done
sleep 0.1
for port in 9001 9002; do (cat /tmp/big; sleep 0.05) | nc 127.0.0.1 $port >/tmp/out$port & done
wait
cat /tmp/in* /tmp/out* | wc -c
"""


@pytest.fixture(scope="module")
def template(guest):
    return make_template(guest, tenants=True)


@pytest.mark.parametrize("on_violation", ["oops", "undo"])
def test_compaction_by_a_tenants_call_is_the_kernels_own_work(guest, template, on_violation):
    lab = Lab(guest, template, load_policy("live+guard"), on_violation, view="permissive")
    cases = [case for case in all_cases() if "compact_memory" in case.title or "drop_caches" in case.title]
    assert len(cases) == 2
    for case in cases:
        entry = audit_case(lab, case)
        assert entry.same and entry.killed is None, (entry.title, entry.killed, entry.reason)


class Hijack:
    """A lab whose isolated getpid goes to a kernel function instead, with the arguments a test gives."""

    def __init__(self, guest, template):
        self.lab = Lab(guest, template, Sci(), view="permissive")
        self.symbols = self.lab.view.symbols
        self.prepare = None
        self.lab.machine.cpu.add_code_hook(self.symbols.address_of("__x64_sys_getpid"), self._go)

    def word(self, vaddr):
        return self.lab.view.read_u64(vaddr, self.lab.enforcer.kernel_root)

    def push(self, *words):
        """Put words on the stack, the last of them on top."""
        regs, root = self.lab.machine.cpu.regs, self.lab.enforcer.kernel_root
        for word in words:
            regs[registers.RSP] -= 8
            self.lab.machine.memory.write_virtual(root, to_signed(regs[registers.RSP]), struct.pack("<Q", word & U64))

    def _go(self):
        if self.prepare is not None and self.lab.machine.slot[slots.ACTIVE]:
            prepare, self.prepare = self.prepare, None
            self.lab.machine.cpu.jump(prepare())

    def run(self, prepare):
        def body(process):
            self.prepare = prepare
            yield from process.measure(expect=ANYTHING)

        return self.lab.run(Case("getpid", "test", True, body), isolated=True)

    def call_in_text(self, name):
        """The address behind a direct call of function `name` in the kernel's text."""
        start, end = self.symbols.text_start, self.symbols.text_end
        code = self.lab.machine.memory.read_virtual(self.lab.enforcer.kernel_root, start, end - start)
        target, at = self.symbols.address_of(name) - start, code.find(b"\xe8")
        while at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True) != target:
            at = code.index(b"\xe8", at + 1)
        return start + at + 5


@pytest.fixture(scope="module")
def hijack(guest, template):
    return Hijack(guest, template)


@pytest.fixture
def steps_aside(monkeypatch):
    """Counts how often a call leaves its table for an errand."""
    count = [0]
    step_aside = Cpu.step_aside

    def counted(cpu):
        count[0] += 1
        step_aside(cpu)

    monkeypatch.setattr(Cpu, "step_aside", counted)
    return count


def test_a_jump_to_an_errand_is_none(hijack, steps_aside):
    """compact_node(0), but not from a call of it: it runs on the tenant's table, and is killed at others' pages."""

    def prepare():
        hijack.lab.machine.cpu.regs[registers.RDI] = 0
        return hijack.symbols.address_of("compact_node")

    outcome = hijack.run(prepare)
    assert outcome.killed and f"tenant {NEIGHBOUR}" in outcome.killed
    assert steps_aside == [0]


def test_an_errand_with_a_forged_argument_is_none(hijack, steps_aside):
    """A return address that is right does not help: `capture` would be written through, and is not on the stack."""
    seen = []

    def prepare():
        lab, node = hijack.lab, hijack.word(hijack.symbols.address_of("node_data"))
        regs, offsets = lab.machine.cpu.regs, lab.view.facts.types.offset_of
        zone = node + offsets("pglist_data", "node_zones")
        seen.append(zone)
        regs[registers.RDI], regs[registers.RSI], regs[registers.RDX] = zone, 3, 0xCC0
        regs[registers.RCX], regs[registers.R8], regs[registers.R9] = 1, 0, 0
        hijack.push(hijack.symbols.address_of("modprobe_path"), hijack.call_in_text("compact_zone_order"))
        return hijack.symbols.address_of("compact_zone_order")

    hijack.run(prepare)
    assert seen and steps_aside == [0]


def test_the_same_with_arguments_as_the_kernel_passes_them_is_one(hijack, steps_aside):
    """So the two tests above fail for the reason they name. What follows the errand is the hijacker's own."""

    def prepare():
        node = hijack.word(hijack.symbols.address_of("node_data"))
        regs, offsets = hijack.lab.machine.cpu.regs, hijack.lab.view.facts.types.offset_of
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
    waits = [Step("clock_gettime", (1, DATA + 64)), Step("futex", (DATA + 1024, 0x80, 0, DATA + 64, 0, 0))]
    wakes = [Step("futex", (DATA + 1024 + 4 * number, 0x81, 1, 0, 0, 0)) for number in range(240)]
    specs = []
    for number in range(6):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "program").write_bytes(build_program(*(wakes if number == 5 else waits)))
        (root / "program").chmod(0o755)
        specs.append(TenantSpec(f"t{number}", ("/program",), rootfs=root, on_violation="stop"))
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
    """They meet in timers too: the next one to end may lie on the stack of another tenant's thread."""
    root = rootfs_folder("python3")
    command = ("/usr/bin/python3", "-S", "-c", PYTHON)
    names = ("one", "two", "three")
    specs = [TenantSpec(name, command, "live+guard", rootfs=root, on_violation="stop") for name in names]
    found = run_tenants(guest, specs)
    assert [(r.exit_code, r.stdout, r.record.kills) for r in found.values()] == [(0, b"20000 3\n", [])] * 3
