"""Undo: after a kill in the middle of a call, guest memory is what it was at its entry, byte for byte."""

import random
import struct

import numpy as np
import pytest
from thinbox.audit.case import Case, all_cases
from thinbox.audit.case_runner import CaseRunner, make_checkpoint
from thinbox.isolation.policies.live import Live
from thinbox.isolation.policies.sci import MIDDLE, Sci
from thinbox.isolation.verdict import Verdict
from thinbox.machine import slots
from thinbox.session.session import RunOptions, run


class KillsAt(Sci):
    """Policy sci, but the access number `at` of a call is refused."""

    name = "kills-at"
    grants_all_data = False

    def __init__(self):
        self.at = 1 << 60
        self.asked = 0

    def check_access(self, access, call):
        self.asked += 1
        if self.asked == self.at:
            return MIDDLE
        verdict = super().check_access(access, call)
        return Verdict(verdict.granted, verdict.rule, verdict.reason)


@pytest.fixture(scope="module")
def template(guest):
    return make_checkpoint(guest)


class Watched:
    """A lab with undo that compares all guest RAM and the devices at every rollback."""

    def __init__(self, guest, template, view="none"):
        self.policy = KillsAt()
        self.runner = CaseRunner(guest, template, self.policy, on_violation="undo", view=view)
        self.undo = self.runner.enforcer.undo
        self.compared = 0
        self._begin, self._roll_back = self.undo.begin, self.undo.roll_back
        self.undo.begin, self.undo.roll_back = self.begin, self.roll_back

    def ram(self):
        memory = self.runner.machine.memory
        return memory.words[: memory.guest_bytes // 8]

    def begin(self):
        self.before = self.ram().copy()
        self.state = (self.runner.machine.cpu.save(), self.runner.machine.save_devices())
        self._begin()

    def roll_back(self):
        self._roll_back()
        different = np.flatnonzero(self.before != self.ram())
        assert not len(different), f"{len(different)} words differ, the first at {8 * int(different[0]):#x}"
        assert self.runner.machine.save_devices() == self.state[1]
        assert self.runner.machine.cpu.save() == self.state[0]
        self.compared += 1

    def run(self, case, at=1 << 60):
        self.policy.asked, self.policy.at = 0, at
        return self.runner.run(case, isolated=True)


@pytest.fixture(scope="module")
def watched(guest, template):
    return Watched(guest, template)


def test_random_accesses_of_random_calls_refused(watched):
    """The property: whatever call, whichever access, memory equals the entry state."""
    chance = random.Random(2026)
    cases = [case for case in all_cases() if case.success]
    done = 0
    for case in chance.sample(cases, min(40, len(cases))):
        whole = watched.run(case)
        count = watched.policy.asked
        if whole.problem or not count:
            continue
        before = watched.compared
        outcome = watched.run(case, at=chance.randrange(1, count + 1))
        assert outcome.killed
        undone = watched.runner.tenant.record.kills[0].undone
        assert watched.compared == before + undone
        done += undone
    assert done >= min(20, len(cases) // 2)


def test_under_a_view_what_errands_and_charges_wrote_is_undone_too(guest):
    """The same beside another tenant: compaction, soft interrupts, sockets charged to their makers."""
    watched = Watched(guest, make_checkpoint(guest, tenants=True), "permissive")
    chance = random.Random(2027)
    cases = [case for case in all_cases() if case.success]
    work = ("compact_memory, done at once", "socket: tcp", "socket: udp", "connect: tcp", "sendto: udp", "accept: tcp")
    chosen = [case for case in cases if any(word in case.title for word in work)]
    assert len(chosen) >= 5
    done = []
    for case in chosen + chance.sample(cases, 12):
        whole, count = watched.run(case), watched.policy.asked
        if whole.problem or not count:
            continue
        # The last accesses come behind the deferred work.
        for at in (count, chance.randrange(1, count + 1)):
            before = watched.compared
            assert watched.run(case, at=at).killed
            undone = watched.runner.tenant.record.kills[0].undone
            assert watched.compared == before + undone
            done += [case.title] * undone
    assert any("compact_memory" in title for title in done) and len(done) >= 20


def test_a_violation_at_a_random_instruction(watched):
    """The same, wherever a block begins: between two faults, with writes behind it."""
    chance = random.Random(7)

    def body(process):
        place = process.buffer(4096 * 3)
        handle = yield from process.must("open", "file", 0, 0)
        yield from process.measure(handle, place, 9000)

    case = Case("read", "random", True, body)
    runner = watched.runner
    watched.run(case)
    length = runner.tenant.record.calls[-1].virtual_ns
    compared = watched.compared
    for _ in range(20):
        after = chance.randrange(1, length)
        begin = watched.undo.begin

        def begin_and_stop(after=after, begin=begin):
            begin()
            limit = runner.machine.now_ns + after
            runner.machine.check_signals = lambda: violate(limit)
            runner.machine.slot[slots.DEADLINE] = runner.machine.slot[slots.ATTENTION] = limit

        def violate(limit):
            if runner.machine.now_ns >= limit and watched.undo.possible and runner.enforcer.running:
                runner.machine.check_signals = lambda: None
                runner.enforcer.violation_action.violate_here(Verdict(granted=False, rule="test", reason="injected"))

        watched.undo.begin = begin_and_stop
        try:
            watched.run(case)
        finally:
            watched.undo.begin = begin
            runner.machine.check_signals = lambda: None
    assert watched.compared >= compared + 15


def test_the_guest_lives_on_and_the_tenant_sees_sigkill(guest):
    class KillsMkdir(Live):
        name = "no-mkdir"

        def check_access(self, access, call):
            verdict = super().check_access(access, call)
            if access.symbol in ("shmem_mkdir", "shmem_mknod", "shmem_get_inode"):
                return MIDDLE
            return verdict

    script = "mkdir /tmp/a; echo $?; mkdir /tmp/b; echo $?; ls /tmp | wc -l; echo done"
    result = run(guest, ["sh", "-c", script], RunOptions(policy=KillsMkdir(), on_violation="undo"))
    # The second mkdir would wait for ever for the folder's lock, had the first been killed as by an oops.
    assert result.stdout == b"137\n137\n0\ndone\n"
    assert [kill.undone for kill in result.record.kills] == [True, True]
    assert result.exit_code == 137
    assert result.record.table_pages_made == result.record.table_pages_freed


def test_stop_ends_the_run_at_once(guest):
    class KillsOpen(Sci):
        name = "no-create"

        def check_access(self, access, call):
            return (
                MIDDLE
                if access.symbol in ("shmem_mkdir", "shmem_mknod", "shmem_get_inode")
                else super().check_access(access, call)
            )

    options = RunOptions(policy=KillsOpen(), on_violation="stop")
    result = run(guest, ["sh", "-c", "echo before; mkdir /tmp/x; echo after"], options)
    assert result.exit_code == 137 and b"after" not in result.stdout
    assert result.record.stopped and len(result.record.kills) == 1


def test_undo_changes_nothing_where_nothing_is_killed(guest):
    script = (
        "echo hello | wc -c; mkdir /tmp/x; ls -l / | head -3; (sleep 0.01; echo slept) | cat; cat /proc/self/limits"
    )
    plain = run(guest, ["sh", "-c", script], RunOptions(isolate="none"))
    undo = run(guest, ["sh", "-c", script], RunOptions(on_violation="undo"))
    oops = run(guest, ["sh", "-c", script])
    assert plain.stdout == undo.stdout
    assert undo.record.totals["killed"] == 0
    assert undo.record.table_pages_made == undo.record.table_pages_freed
    # Faults differ a little: an undoable call is not interrupted, and has nothing to wake up for.
    same = ("calls", "isolated")
    assert [undo.record.totals[key] for key in same] == [oops.record.totals[key] for key in same]


def test_a_call_that_slept_is_not_undone_but_killed_as_by_an_oops(watched):
    def body(process):
        yield from process.measure(struct.pack("<qq", 0, 1_000_000), 0)

    case = Case("nanosleep", "long", True, body)
    watched.run(case)
    count = watched.policy.asked
    outcome = watched.run(case, at=count)
    assert outcome.killed and watched.runner.tenant.record.kills[0].undone is False
