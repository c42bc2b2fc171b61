"""Rule V7: a call that writes its tenant's own page tables makes nothing its memory that the view hides."""

import struct

import pytest

from thinbox import paging
from thinbox.address import U64, to_signed
from thinbox.audit.case import Case
from thinbox.audit.expect import Expect
from thinbox.audit.case_runner import CaseRunner, make_checkpoint
from thinbox.audit.neighbour import NEIGHBOUR, SECRETS
from thinbox.isolation.policies.live import Live
from thinbox.isolation.verdict import Verdict
from thinbox.machine import cpu as registers
from thinbox.machine import slots

ANYTHING = Expect(lambda _result: True, "anything")
USER_PAGE = paging.PRESENT | paging.WRITABLE | paging.USER | paging.ACCESSED | paging.DIRTY
PAGE = 4096


class Writing:
    """A lab whose isolated getpid can be made to write a word anywhere, as a corrupted kernel would."""

    def __init__(self, guest, template, on_violation="undo", view="permissive", policy=None):
        self.runner = CaseRunner(guest, template, policy or Live(), on_violation, view=view)
        self.memory, self.kernel = self.runner.machine.memory, self.runner.view
        self.wanted = None
        self.runner.machine.cpu.add_code_hook(self.kernel.symbols.address_of("__x64_sys_getpid"), self._hijack)

    def _hijack(self):
        if self.wanted is None or not self.runner.machine.slot[slots.ACTIVE]:
            return
        (index, value), self.wanted = self.wanted, None
        cpu, root = self.runner.machine.cpu, self.runner.enforcer.kernel_root
        source = cpu.regs[registers.RSP] - 2048
        self.memory.write_virtual(root, to_signed(source), struct.pack("<Q", value & U64))
        base = self.kernel.read_u64(self.kernel.symbols.address_of("page_offset_base"), root)
        cpu.regs[registers.RDI], cpu.regs[registers.RSI], cpu.regs[registers.RDX] = (base + 8 * index) & U64, source, 8
        cpu.jump(self.kernel.symbols.address_of("memcpy"))

    def _hijack_exit(self):
        """The first instruction of `exit` is run again after the write."""
        if self.runner.machine.slot[slots.ACTIVE] and self.exiting is not None:
            self.wanted, self.exiting = self.exiting, None
            cpu = self.runner.machine.cpu
            cpu.regs[registers.RSP] -= 8
            back = struct.pack("<Q", self.kernel.symbols.address_of("__x64_sys_exit"))
            self.memory.write_virtual(self.runner.enforcer.kernel_root, to_signed(cpu.regs[registers.RSP]), back)
            self.kept = cpu.regs[registers.RDI]
            self._hijack()

    def run(self, choose):
        """Run a process that has a page at `place`; `choose(self, place)` returns the index of a word, and its value."""

        def body(process):
            place = yield from process.must("mmap", 0, 2 * PAGE, 3, 0x8022, -1, 0)
            self.wanted = written[:] = choose(self, place)
            yield from process.measure(expect=ANYTHING)

        written = []

        outcome = self.runner.run(Case("getpid", "test", True, body), isolated=True)
        assert self.wanted is None, "the call was never taken over"
        kills = self.runner.tenant.record.kills
        index, value = written
        if not kills:
            assert (self.memory.words[index] ^ value) & ~(paging.ACCESSED | paging.DIRTY) == 0, "nothing was written"
        return outcome, kills[0] if kills else None

    # -- where things are -----------------------------------------------------------------------------
    def entry(self, vaddr):
        """Index of the last-level entry of a user address."""
        return paging.entry_index(self.memory.words, self.memory.total_bytes, self.kernel.kernel_root, vaddr)

    def upper_entry(self, vaddr, level, user_pgd=False):
        """Index of the entry at a level (4: the PGD)."""
        table = self.kernel.kernel_root + (PAGE if user_pgd else 0)
        for at in range(4, level, -1):
            table = self.memory.words[(table >> 3) + (vaddr >> 12 + 9 * (at - 1) & 511)] & paging.FRAME_MASK
        return (table >> 3) + (vaddr >> 12 + 9 * (level - 1) & 511)

    def frame(self, vaddr):
        root = self.kernel.kernel_root
        return paging.translate(self.memory.words, self.memory.total_bytes, root, to_signed(vaddr)) & ~0xFFF

    def secret(self, name):
        return self.memory.map.find(SECRETS[name], 0, self.memory.guest_bytes) & ~0xFFF


@pytest.fixture(scope="module")
def template(guest):
    return make_checkpoint(guest, tenants=True)


@pytest.fixture(scope="module")
def writing(guest, template):
    return Writing(guest, template)


def own_entry(to):
    """A last-level entry of its own is made to map `to(writing, place)`."""
    return lambda writing, place: (writing.entry(place), to(writing, place) | USER_PAGE)


FORBIDDEN = {
    "the neighbour's memory": own_entry(lambda w, _p: w.secret("memory")),
    "the neighbour's file": own_entry(lambda w, _p: w.secret("file")),
    "the neighbour's pipe": own_entry(lambda w, _p: w.secret("pipe")),
    "the neighbour's packet": own_entry(lambda w, _p: w.secret("tcp")),
    "the kernel's text": own_entry(lambda w, _p: w.frame(w.kernel.symbols.address_of("commit_creds"))),
    "the kernel's data": own_entry(lambda w, _p: w.frame(w.kernel.symbols.address_of("modprobe_path"))),
    "a slab": own_entry(lambda w, _p: w.frame(w.kernel.current)),
    "its own page table": own_entry(lambda w, p: 8 * w.entry(p) & ~0xFFF),
    "without the user bit": lambda w, p: (w.entry(p), w.secret("memory") | USER_PAGE & ~paging.USER),
    "two MiB": lambda w, p: (w.upper_entry(p, 2), w.secret("memory") & ~0x1FFFFF | USER_PAGE | paging.LARGE),
    "a forged table of pages": lambda w, p: (w.upper_entry(p, 2), w.frame(p) | USER_PAGE),
    "a forged table of tables": lambda w, p: (w.upper_entry(p, 3), w.frame(p) | USER_PAGE),
    "a forged table at the top": lambda w, p: (w.upper_entry(1 << 40, 4), w.frame(p) | USER_PAGE),
    "the user's own top table": lambda w, p: (w.upper_entry(1 << 40, 4, user_pgd=True), w.frame(p) | USER_PAGE),
}


@pytest.mark.parametrize("name", list(FORBIDDEN))
def test_what_is_not_the_tenants_to_map_is_refused_and_undone(writing, name):
    if name.startswith("the user's own top") and not writing.kernel.uses_pti:
        pytest.skip("this kernel runs without page-table isolation")
    outcome, kill = writing.run(FORBIDDEN[name])
    assert kill is not None, outcome.problem
    assert (kill.rule, kill.view, kill.kind, kill.undone) == ("V7", "permissive", "write", True)
    if "neighbour" in name:
        assert kill.owner == NEIGHBOUR and f"tenant {NEIGHBOUR}" in outcome.killed


def test_it_is_a_violation_without_undo_too(guest, template):
    _outcome, kill = Writing(guest, template, "oops", "strict").run(FORBIDDEN["the neighbour's memory"])
    assert (kill.rule, kill.view, kill.undone) == ("V7", "strict", False)


def test_without_a_view_no_table_is_looked_at(guest, template):
    outcome, kill = Writing(guest, template, view="none").run(FORBIDDEN["the neighbour's memory"])
    assert kill is None and outcome.killed is None


def test_another_page_of_its_own_is_the_tenants_to_map(writing):
    outcome, kill = writing.run(own_entry(lambda w, p: w.frame(p + PAGE)))
    assert kill is None, outcome.killed


def test_a_siblings_page_table_is_looked_at_too(writing):
    """The parent's call writes the table of its child, which sleeps."""

    def body(process):
        place = yield from process.must("mmap", 0, PAGE, 3, 0x8022, -1, 0)
        yield from process.fork(lambda child: child.call("pause"))
        yield from process.must("nanosleep", struct.pack("<qq", 0, 1_000_000), 0)
        kernel, root = writing.kernel, writing.kernel.kernel_root
        offset = kernel.facts.types.offset_of
        (task,) = (task for task in writing.runner.enforcer.tasks if task != kernel.current)
        mm = kernel.read_u64(task + offset("task_struct", "mm"), root)
        pgd = writing.frame(kernel.read_u64(mm + offset("mm_struct", "pgd"), root))
        index = paging.entry_index(writing.memory.words, writing.memory.total_bytes, pgd, place)
        assert index != writing.entry(place)
        writing.wanted = (index, writing.secret("memory") | USER_PAGE)
        yield from process.measure(expect=ANYTHING)

    writing.runner.run(Case("getpid", "test", True, body), isolated=True)
    (kill,) = writing.runner.tenant.record.kills
    assert (kill.rule, kill.owner) == ("V7", NEIGHBOUR)


def word_at(writing, vaddr):
    """Index of the word at a kernel address."""
    return writing.frame(vaddr) + (vaddr & 0xFFF) >> 3


def test_a_forged_top_level_table_is_refused(writing):
    """mm->pgd is made to name a page of the tenant's own memory; the next switch to it would load that."""

    def choose(writing, place):
        kernel, root = writing.kernel, writing.kernel.kernel_root
        offset = kernel.facts.types.offset_of
        mm = kernel.read_u64(kernel.current + offset("task_struct", "mm"), root)
        base = kernel.read_u64(kernel.symbols.address_of("page_offset_base"), root)
        return word_at(writing, mm + offset("mm_struct", "pgd")), base + writing.frame(place)

    _outcome, kill = writing.run(choose)
    assert (kill.rule, kill.undone) == ("V7", True)


@pytest.mark.parametrize("forged", [0, 0x1234, 0xFFFF_8000_0000_0000])
def test_a_forged_address_space_is_no_error_of_the_machine(writing, forged):
    spaces = []

    def choose(writing, _place):
        spaces.append(writing.kernel.current + writing.kernel.facts.types.offset_of("task_struct", "mm"))
        return word_at(writing, spaces[0]), forged

    _outcome, kill = writing.run(choose)
    assert (kill.rule, kill.vaddr, kill.undone) == ("V7", spaces[0] & U64, True)


def test_a_table_whose_grant_was_taken_back_in_the_call_is_looked_at(writing):
    """As the kernel's flushes take them (`enforcement.shootdown`): what was written before stays written."""
    enforcer, memory, done = writing.runner.enforcer, writing.memory, []

    def take_back():
        state = enforcer.running
        if state is not None and state.call is not None and state.call.isolated and not done:
            enforcer.grants.drain(state, state.call)
            for rows in state.call.rows:
                data = rows[(rows[:, 0] < 0) & (rows[:, 2] & paging.FAULT_FETCH == 0)]
                memory.words[data[:, 3]] = 0
            writing.runner.machine.cpu.load_cr3(writing.runner.machine.cpu.cr3)
            done.append(True)

    cpu, removes = writing.runner.machine.cpu, []

    def watch_its_return():
        if writing.runner.machine.slot[slots.ACTIVE] and len(removes) == 1:
            back = writing.kernel.read_u64(cpu.regs[registers.RSP], writing.kernel.kernel_root)
            removes.append(cpu.add_code_hook(back, take_back))

    removes.append(cpu.add_code_hook(writing.kernel.symbols.address_of("__x64_sys_getpid"), watch_its_return))
    try:
        _outcome, kill = writing.run(FORBIDDEN["the neighbour's memory"])
    finally:
        for remove in removes:
            remove()
    assert done and (kill.rule, kill.owner) == ("V7", NEIGHBOUR)


def kernel_half(slot, user_pgd=False):
    """An entry of the kernel's half is made to name a true page table of its own: user memory at a kernel address."""

    def choose(writing, place):
        upper = writing.memory.words[writing.upper_entry(place, 4)]
        return writing.upper_entry(slot << 39, 4, user_pgd), upper | USER_PAGE

    return choose


def top(writing, _place):
    return 8 * writing.upper_entry(0, 4) & ~0xFFF


HIDDEN_TABLES = {
    "its own top table": own_entry(top),
    "its own top table of user space": own_entry(lambda w, p: top(w, p) + (PAGE if w.kernel.uses_pti else 0)),
    "its own second table": own_entry(lambda w, p: 8 * w.upper_entry(p, 3) & ~0xFFF),
    "a table of the kernel's": own_entry(lambda w, _p: kernel_table(w)),
    "the kernel's half": kernel_half(300),
    "the kernel's half, the user's table": kernel_half(300, user_pgd=True),
}


def kernel_table(writing):
    """A table of pages made after boot: what maps the running task's stack (vmalloc)."""
    stack = writing.kernel.stack_of(writing.kernel.current, writing.kernel.kernel_root)
    return 8 * writing.entry(to_signed(stack)) & ~0xFFF


@pytest.mark.parametrize("name", list(HIDDEN_TABLES))
def test_tables_the_kernel_does_not_mark_and_its_half_are_not_the_tenants_to_map(writing, name):
    if "user's table" in name and not writing.kernel.uses_pti:
        pytest.skip("this kernel runs without page-table isolation")
    outcome, kill = writing.run(HIDDEN_TABLES[name])
    assert kill is not None, outcome.problem
    assert (kill.rule, kill.undone) == ("V7", True)


def test_a_task_without_an_address_space_does_not_go_on(writing):
    """It would borrow the memory of whoever runs before it (kernel/sched/core.c, context_switch)."""

    def choose(writing, _place):
        at = writing.kernel.facts.types.offset_of("task_struct", "mm")
        return word_at(writing, writing.kernel.current + at), 0

    _outcome, kill = writing.run(choose)
    assert (kill.rule, kill.undone) == ("V7", True)


class AnyCode(Live):
    """Grants every page: what is looked at is not where the code lies."""

    def check_access(self, access, call):
        return Verdict(granted=True, rule="test", reason="any")


def test_another_top_level_table_in_the_cpu_is_refused(guest, template):
    """An instruction loads CR3 with a page of the tenant's own, which is a copy of its top-level table."""
    writing = Writing(guest, template, policy=AnyCode())
    cpu, done = writing.runner.machine.cpu, []
    root = writing.kernel.kernel_root
    code = {site: writing.memory.read_virtual(root, site, 4) for site in writing.runner.opened.sites.cr3_switches}
    # One that a `ret` follows, so that nothing else happens to the call.
    site = next(site for site, found in code.items() if found[:2] == b"\x0f\x22" and found[3] == 0xC3)

    def load(place):
        if not writing.runner.machine.slot[slots.ACTIVE] or done:
            return
        done.append(True)
        cpu.regs[code[site][2] & 7] = place
        cpu.jump(site)

    def body(process):
        place = yield from process.must("mmap", 0, PAGE, 3, 0x8022, -1, 0)
        frame, old = writing.frame(place), top(writing, place)
        writing.memory.write(frame, writing.memory.read(old, PAGE))
        writing.remove = cpu.add_code_hook(writing.kernel.symbols.address_of("__x64_sys_getpid"), lambda: load(frame))
        yield from process.measure(expect=ANYTHING)

    try:
        writing.runner.run(Case("getpid", "test", True, body), isolated=True)
    finally:
        writing.remove()
    (kill,) = writing.runner.tenant.record.kills
    assert done and kill.rule == "V7"


@pytest.mark.parametrize("on_violation", ["undo", "oops"])
def test_a_call_that_ends_with_its_task_is_looked_at_too(guest, template, on_violation):
    """A child writes the table of its parent in `exit`, which never returns."""
    writing = Writing(guest, template, on_violation)
    writing.runner.machine.cpu.add_code_hook(writing.kernel.symbols.address_of("__x64_sys_exit"), writing._hijack_exit)

    def body(process):
        place = yield from process.must("mmap", 0, PAGE, 3, 0x8022, -1, 0)
        writing.exiting = (writing.entry(place), writing.secret("memory") | USER_PAGE)
        process.measure_next()
        # With undo a thread: more of what a process's end does cannot be undone.
        flags = 0x10900 if on_violation == "undo" else 17
        yield from process.fork(lambda child: child.call("exit", 0), flags=flags)
        yield from process.must("nanosleep", struct.pack("<qq", 0, 5_000_000), 0)

    writing.runner.run(Case("exit", "test", True, body), isolated=True)
    (kill,) = writing.runner.tenant.record.kills
    assert (kill.rule, kill.owner, kill.call) == ("V7", NEIGHBOUR, "exit")
    assert kill.undone == (on_violation == "undo")
