"""The runner under audits and attacks: every trial begins alike, ends, and leaves nothing."""

import pytest
from thinbox.audit import abi
from thinbox.audit.case_runner import make_checkpoint
from thinbox.errors import MachineError
from thinbox.guest.agent_channel import Park
from thinbox.harness import checkpoint
from thinbox.harness.process import GuestProcess, StepFailedError
from thinbox.harness.limits import Limits
from thinbox.harness.runner import Ending, Runner, RunnerOptions, await_end
from thinbox.isolation.policies import load_policy
from thinbox.machine import slots
from thinbox.session.opened import restore_guest

RWX, PRIVATE_ANON_POPULATE, USR1, ILL = 7, 0x8022, 10, 4
LOOP = b"\xeb\xfe"  # jmp to itself
UD2 = b"\x0f\x0b"
RETURN_FROM_SIGNAL = b"\x48\x83\xc4\x08\xb8\x0f\x00\x00\x00\x0f\x05"  # add rsp, 8; mov eax, 15; syscall
SECONDS = 1_000_000_000
FAR = Limits(60 * SECONDS, 10**12, 10**9, 10**9)


class Nothing:
    """A trial of which no call is isolated."""

    def isolates(self, _nr):
        return False


@pytest.fixture(scope="module")
def runner(guest):
    options = RunnerOptions("test", "tenant")
    return Runner(guest, make_checkpoint(guest).machine, load_policy("sci"), options)


def drive(runner, body, limits):
    """Run one process that does `body`, to its end."""

    def steps():
        yield from body(GuestProcess(runner.opened))
        yield Park()

    runner.begin()
    return runner.drive(Nothing(), {0: steps(), runner.checkpoint.agent_task: await_end()}, limits)


def code(process, content):
    """Map a page of code; its value is the address."""
    place = yield from process.must("mmap", 0, 4096, RWX, PRIVATE_ANON_POPULATE, -1, 0)
    process.write(place, content)
    return place


def calls_for_ever(process):
    while True:
        yield from process.call("getuid")


def computes_for_ever(process):
    place = yield from code(process, LOOP)
    yield from process.must("rt_sigaction", USR1, abi.sigaction(place), 0, 8)
    pid = yield from process.must("getpid")
    yield from process.must("kill", pid, USR1)


def faults_for_ever(process):
    """An instruction that no CPU has, whose handler does nothing about it."""
    handler = yield from code(process, RETURN_FROM_SIGNAL)
    place = yield from code(process, UD2)
    yield from process.must("rt_sigaction", ILL, abi.sigaction(handler), 0, 8)
    yield from process.must("rt_sigaction", USR1, abi.sigaction(place), 0, 8)
    pid = yield from process.must("getpid")
    yield from process.must("kill", pid, USR1)


def sleeps_for_ever(process):
    yield from process.call("pause")


@pytest.mark.parametrize(
    ("body", "limits", "exceeded"),
    [
        (calls_for_ever, Limits(60 * SECONDS, syscalls=3_000), "3000 system calls"),
        (computes_for_ever, Limits(60 * SECONDS, executed_bytes=50_000_000), "50000000 bytes of executed code"),
        (faults_for_ever, Limits(60 * SECONDS, syscalls=10**9, exceptions=3_000), "3000 exceptions"),
        (sleeps_for_ever, Limits(3 * SECONDS), "3 s of virtual time"),
    ],
)
def test_a_trial_without_end_ends_at_the_same_place(runner, body, limits, exceeded):
    """And what it used up does not depend on the host: two runs are equal to the nanosecond."""
    ends = []
    for _ in range(2):
        began = runner.machine.slot[slots.COUNT_SYSCALLS]
        assert drive(runner, body, limits) is Ending.LIMIT
        assert runner.exceeded == exceeded
        ends.append((runner.machine.now_ns, runner.machine.slot[slots.COUNT_SYSCALLS] - began))
    assert ends[0] == ends[1]


def test_preparing_a_guest_ends_too(guest, monkeypatch):
    monkeypatch.setattr(checkpoint, "_PREPARING", Limits(60 * SECONDS, syscalls=3_000))
    opened = restore_guest(guest)
    with pytest.raises(MachineError, match="preparing the guest did not end within 3000 system calls"):
        checkpoint.run_to_park(opened, calls_for_ever(GuestProcess(opened)))


def test_sleep_is_no_executed_code(runner):
    """A minute asleep is far within a limit of code; only time ends it."""
    assert drive(runner, sleeps_for_ever, Limits(60 * SECONDS, executed_bytes=1_000_000_000)) is Ending.LIMIT
    assert runner.exceeded == "60 s of virtual time"


def test_a_trial_that_ends_uses_up_no_limit(runner):
    def body(process):
        yield from process.must("getpid")

    assert drive(runner, body, FAR) is Ending.PARKED
    assert runner.exceeded == ""


def test_every_trial_begins_with_the_same_machine(runner):
    def body(process):
        place = process.buffer(b"left behind")
        began.append((runner.machine.cpu.save(), process.read(place + 64, 11), place))
        process.write(place + 64, b"left behind")
        yield from process.must("mkdir", "left-behind", 0o700)

    began = []
    for _ in range(2):
        assert drive(runner, body, FAR) is Ending.PARKED
    assert began[0] == began[1] and began[0][1] == bytes(11)


def test_work_for_a_child_that_never_came_is_not_done_by_the_next_trials(runner):
    done = []

    def child(me):
        done.append("by a child of another trial")
        yield from me.call("exit_group", 0)

    def leaves_it(process):
        yield from process.prepare_child(child)
        yield from process.must("getpid")

    def forks(process):
        pid = yield from process.must("clone", 17, 0, 0, 0, 0)
        yield from process.must("nanosleep", abi.timespec(0, 20 * abi.MILLISECOND), 0)
        yield from process.must("kill", pid, 9)
        yield from process.wait(pid, 9)

    for body in (leaves_it, forks):
        assert drive(runner, body, FAR) is Ending.PARKED
    assert done == []


def test_a_record_is_the_trials_own(runner):
    records = [runner.begin() for _ in range(2)]
    assert records[0] is not records[1] and records[1].command == ("test",)
    assert runner.tenant.record is records[1] and len(runner.enforcer.tasks) == 1


def test_a_step_that_must_succeed_says_what_failed(runner):
    def body(process):
        yield from process.must("close", 99)

    with pytest.raises(StepFailedError, match="close failed with EBADF"):
        drive(runner, body, FAR)
    assert drive(runner, lambda process: process.call("getpid"), FAR) is Ending.PARKED


def test_a_child_has_buffers_of_its_own_and_is_waited_for(runner):
    places = []

    def child(me):
        places.append((type(me), me.number, me.buffer(8)))
        yield from me.call("exit_group", 3)

    def body(process):
        places.append((type(process), process.number, process.buffer(8)))
        pid = yield from process.fork(child, 2)
        yield from process.wait(pid, 3 << 8)

    assert drive(runner, body, FAR) is Ending.PARKED
    (parent, number, place), (kind, other, its) = places
    assert kind is parent is GuestProcess and (number, other) == (0, 2)
    assert its - place == 2 * (128 << 10)
