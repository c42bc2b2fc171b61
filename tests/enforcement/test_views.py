"""Views: another tenant's data is not mappable for an isolated call, by any address, and one's own is."""

import struct

import pytest

from thinbox import paging
from thinbox.address import U64, to_signed
from thinbox.audit.case import Case, all_cases
from thinbox.audit.expect import Expect
from thinbox.audit.case_runner import CaseRunner, make_checkpoint
from thinbox.audit.neighbour import NEIGHBOUR, NEIGHBOUR_FILE, SECRET_OFFSET, SECRETS, TENANT
from thinbox.audit.pool import audit_case
from thinbox.isolation import fault, view_rules
from thinbox.isolation.page_ownership import PageKind
from thinbox.isolation.policies.live import Live
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.isolation.view_rules import view_rule

PAGE = 4096
RULES = {"memory": "V1", "file": "V3", "pipe": "V1", "unix": "V2", "tcp": "V1", "udp": "V2"}
ANYTHING = Expect(lambda _result: True, "anything")
EVERYDAY = {
    "getpid: plain",
    "read: regular, a page",
    "openat: new, O_CREAT and O_EXCL",
    "pipe: plain",
    "mmap: anonymous, private, at once",
    "clone: a process",
    "execve: a static program",
    "socket: unix stream",
    "wait4: for a child that ends later",
    "nanosleep: 5 ms",
}


@pytest.fixture(scope="module")
def template(guest):
    return make_checkpoint(guest, tenants=True)


@pytest.fixture(scope="module")
def labs(guest, template):
    made = {}

    def runner(name, on_violation="oops"):
        key = (name, on_violation)
        if key not in made:
            made[key] = Reading(guest, template, name, on_violation)
        return made[key]

    return runner


class Reading:
    """A lab whose isolated getpid can be made to read 32 bytes anywhere, as a corrupted kernel would."""

    def __init__(self, guest, template, name, on_violation):
        self.runner = CaseRunner(guest, template, Live(), on_violation, view=name)
        self.symbols = self.runner.view.symbols
        self.target = None
        self.runner.machine.cpu.add_code_hook(self.symbols.address_of("__x64_sys_getpid"), self._hijack)

    def _hijack(self):
        enforcer, regs = self.runner.enforcer, self.runner.machine.cpu.regs
        if self.target is None or not self.runner.machine.slot[slots.ACTIVE]:
            return
        # memcpy(far below on its own stack, target, 32), which returns to getpid's caller.
        self.to = regs[registers.RSP] - 2048
        regs[registers.RDI], regs[registers.RSI], regs[registers.RDX] = self.to, self.target & U64, 32
        self.target = None
        self.runner.machine.cpu.jump(self.symbols.address_of("memcpy"))
        assert enforcer.running

    def direct_map(self, paddr):
        return (
            self.runner.view.read_u64(self.symbols.address_of("page_offset_base"), self.runner.view.kernel_root) + paddr
        )

    def place_of(self, secret):
        """The direct map's address of the one page that holds a secret."""
        memory = self.runner.machine.memory
        paddr = memory.map.find(secret, 0, memory.guest_bytes)
        assert paddr > 0 and memory.map.find(secret, paddr + 1, memory.guest_bytes) < 0
        return self.direct_map(paddr)

    def facts(self, paddr):
        root, cgroups = self.runner.view.kernel_root, self.runner.enforcer.views.cgroups
        return cgroups.pages.facts(paddr, root, lambda memcg: cgroups.owner_of(memcg, root))

    def run(self, body, call="getpid"):
        self.read = None

        def whole(process):
            yield from body(process)
            if self.to:
                self.read = self.runner.machine.memory.read_virtual(
                    self.runner.view.kernel_root, to_signed(self.to), 32
                )

        self.to = 0
        try:
            return self.runner.run(Case(call, "test", True, whole if call == "getpid" else body), isolated=True)
        finally:
            self.target = None


def steal(reading, what):
    def body(process):
        reading.target = reading.place_of(SECRETS[what])
        yield from process.measure(expect=ANYTHING)

    return reading.run(body)


@pytest.mark.parametrize("what", list(SECRETS))
def test_without_a_view_every_secret_can_be_read(labs, what):
    outcome = steal(labs("none"), what)
    assert outcome.killed is None
    assert labs("none").read == SECRETS[what]


@pytest.mark.parametrize("name", ["permissive", "strict"])
@pytest.mark.parametrize(("what", "rule"), list(RULES.items()))
def test_the_neighbours_secrets_are_refused_with_its_name(labs, name, what, rule):
    outcome = steal(labs(name), what)
    killed = labs(name).runner.tenant.record.kills[0]
    assert (killed.rule, killed.view, killed.owner, killed.tenant) == (rule, name, NEIGHBOUR, TENANT)
    assert killed.vaddr // PAGE == labs(name).place_of(SECRETS[what]) // PAGE
    assert f"refused by rule {rule} of view {name}: it belongs to tenant {NEIGHBOUR}" in outcome.killed


@pytest.mark.parametrize("name", ["permissive", "strict"])
def test_the_neighbours_stack_and_page_tables_are_refused(labs, name):
    reading = labs(name)
    kernel, root = reading.runner.view, None
    for find in ("stack", "table"):

        def body(process, find=find):
            nonlocal root
            root = kernel.kernel_root
            task = reading.runner.neighbour
            if find == "stack":
                # By its own address, which is not the direct map's.
                reading.target = kernel.stack_of(task, root) + 3 * PAGE
            else:
                offsets = kernel.facts.types.offset_of
                mm = kernel.read_u64(task + offsets("task_struct", "mm"), root)
                # The second page, the user's table under PTI.
                reading.target = kernel.read_u64(mm + offsets("mm_struct", "pgd"), root) + PAGE
            yield from process.measure()

        assert reading.run(body).killed
        assert reading.runner.tenant.record.kills[0].owner == NEIGHBOUR


@pytest.mark.parametrize("name", ["permissive", "strict"])
def test_ones_own_page_is_granted_through_the_direct_map(labs, name):
    reading = labs(name)

    def body(process):
        place = yield from process.must("mmap", 0, PAGE, 3, 0x8022, -1, 0)
        process.write(place, b"my own bytes, 32 of them, really")
        memory = reading.runner.machine.memory
        paddr = paging.translate(memory.words, memory.total_bytes, reading.runner.view.kernel_root, place)
        reading.target = reading.direct_map(paddr)
        yield from process.measure(expect=ANYTHING)

    assert reading.run(body).killed is None
    assert reading.read == b"my own bytes, 32 of them, really"


def test_everyday_calls_are_not_killed_and_do_the_same(labs):
    runner = labs("permissive").runner
    cases = [case for case in all_cases() if case.title in EVERYDAY]
    assert len(cases) >= 8
    for case in cases:
        entry = audit_case(runner, case)
        assert entry.same, (entry.title, entry.reason, entry.killed)


def test_under_strict_no_page_of_several_tenants_stays_mapped(labs):
    """Whatever a call still has mapped when it ends is its tenant's alone, or no tenant's."""
    runner = labs("strict").runner
    checked = 0

    class Look:
        def closed(self, state, call):
            nonlocal checked
            root = runner.enforcer.kernel_root
            for rows in call.rows:
                for vaddr, _rip, error, index, _before in rows.tolist():
                    entry = runner.machine.memory.words[index]
                    if error & paging.FAULT_FETCH or not entry & paging.PRESENT:
                        continue
                    cgroups = runner.enforcer.views.cgroups
                    facts = cgroups.pages.facts(
                        entry & paging.FRAME_MASK | vaddr & 0xFFF, root, lambda memcg: cgroups.owner_of(memcg, root)
                    )
                    assert facts.owners <= {TENANT, None}, facts
                    checked += 1

        def opened(self, *_):
            pass

        paused = resumed = granted = opened

    watches = runner.enforcer.watch._watches
    before = watches[:]
    watches[:] = [Look()]
    try:
        for case in all_cases():
            if case.title in EVERYDAY:
                assert runner.run(case, isolated=True).killed is None
    finally:
        watches[:] = before
    assert checked > 100


def test_a_page_freed_and_used_again_changes_its_owner(labs):
    reading = labs("permissive")
    memory, seen = reading.runner.machine.memory, []

    def body(process):
        paddr = memory.map.find(SECRETS["memory"], 0, memory.guest_bytes) & ~0xFFF
        seen.append(reading.facts(paddr).owners)
        pid = reading.runner.view.pid_of(reading.runner.neighbour, reading.runner.view.kernel_root)
        yield from process.must("kill", pid, 9)
        yield from process.must("nanosleep", struct.pack("<qq", 0, 5_000_000), 0)
        # The CPU may still hold it in a batch on its way to the LRU lists (mm/swap.c): this drains them.
        handle = yield from process.must("open", "/proc/sys/vm/drop_caches", 1, 0)
        yield from process.must("write", handle, b"1", 1)
        seen.append(reading.facts(paddr).owners)
        # Enough to take what was freed last.
        yield from process.must("mmap", 0, 256 * PAGE, 3, 0x8022, -1, 0)
        seen.append(reading.facts(paddr).owners)
        yield from process.measure()

    assert reading.run(body).killed is None
    assert seen == [{NEIGHBOUR}, {None}, {TENANT}]


def test_a_page_that_changes_hands_while_the_call_sleeps_is_taken_back(labs):
    """The page's charge is moved as the kernel moves it; the call that held the page faults on it when it runs on."""
    reading = labs("permissive")
    runner, memory = reading.runner, reading.runner.machine.memory
    found = {}

    class Look:
        def opened(self, *_):
            pass

        granted = opened

        def paused(self, state, call):
            if not call.isolated or found:
                return
            root = runner.enforcer.view.kernel_root
            pages = runner.enforcer.views.cgroups.pages
            for vaddr, _rip, error, index, _before in [row for rows in call.rows for row in rows.tolist()]:
                entry = memory.words[index]
                facts = reading.facts(entry & paging.FRAME_MASK)
                if error & paging.FAULT_FETCH or facts.kind is not PageKind.SLAB or TENANT not in facts.owners:
                    continue
                page = pages._find(entry & paging.FRAME_MASK, root)
                vector = pages._word(page.head + pages.words[view_rules.MEMCG_AT]) & ~3
                mine = next(w for w in (pages._pointer(vector + 8 * i) for i in range(64)) if w)
                found["index"], found["vaddr"] = index, vaddr
                memcg = next(m for m, name in runner.enforcer.views.cgroups.owners.items() if name == NEIGHBOUR)
                theirs = kernel_objcg(runner, memcg)
                paddr = paging.translate(memory.words, memory.total_bytes, root, to_signed(vector))
                for at in range(paddr >> 3, (paddr >> 3) + 32):
                    if memory.words[at] & U64 == mine:
                        memory.words[at] = to_signed(theirs)
                return

        def resumed(self, state, call):
            if found and "after" not in found:
                found["after"] = memory.words[found["index"]]

        def closed(self, state, call):
            pass

    watches = runner.enforcer.watch._watches
    before = watches[:]
    watches[:] = [Look()]

    def body(process):
        yield from process.measure(struct.pack("<qq", 0, 3_000_000), 0)

    try:
        reading.run(body, call="nanosleep")
    finally:
        watches[:] = before
    assert found["after"] == 0


def kernel_objcg(runner, memcg):
    """The object owner of a memory cgroup: of its node 0 (7.1), or of all of it."""
    types, view = runner.view.facts.types, runner.view
    if types.has_member("mem_cgroup", "objcg"):
        return view.read_u64(memcg + types.offset_of("mem_cgroup", "objcg"), view.kernel_root)
    node = view.read_u64(memcg + types.offset_of("mem_cgroup", "nodeinfo"), view.kernel_root)
    return view.read_u64(node + types.offset_of("mem_cgroup_per_node", "objcg"), view.kernel_root)


def test_with_undo_a_refused_call_is_rolled_back(labs):
    reading = labs("permissive", "undo")
    outcome = steal(reading, "memory")
    assert f"tenant {NEIGHBOUR}" in outcome.killed
    assert reading.runner.tenant.record.kills[0].undone


def test_the_names_of_views():
    assert [view_rule(name) for name in ("none", "permissive", "strict")] == [0, 1, 2]
    assert fault.LOG_COLUMNS == 5 and SECRET_OFFSET + 32 <= PAGE


def test_who_may_write_whatever_the_mode_says_is_not_killed_for_it(labs):
    """Root shortens a file that it has not open, and whose mode lets nobody write (fs/namei.c, generic_permission)."""

    def body(process):
        yield from process.must("chmod", NEIGHBOUR_FILE, 0o444)
        yield from process.measure(NEIGHBOUR_FILE, 100, expect=Expect(lambda result: result == 0, "0"))

    outcome = labs("permissive").run(body, "truncate")
    assert outcome.killed is None and outcome.problem is None and outcome.ret == 0


def test_of_the_capabilities_the_one_that_lets_write_is_asked(labs):
    """capset takes CAP_DAC_OVERRIDE away from the effective set, and leaves it in the permitted one."""
    reading, seen = labs("permissive"), []
    header, every, all_but_it = struct.pack("<Ii", 0x20080522, 0), 0xFFFFFFFF, 0xFFFFFFFF & ~(1 << 1)

    def look():
        kernel = reading.runner.view
        held, root = reading.runner.enforcer.views.cgroups.pages._held, kernel.kernel_root
        # Of mode 0, so that nothing but the capability lets.
        seen.append(held.may_write(0, kernel.current, 0, root))

    def body(process):
        look()
        data = struct.pack("<6I", all_but_it, every, 0, 0x1FF, 0x1FF, 0)
        yield from process.must("capset", process.buffer(header), process.buffer(data))
        look()
        yield from process.measure()

    assert reading.run(body).killed is None
    assert seen == [True, False]
