"""When a guest is given up, mostly without a guest: only for a wound, and only where nothing gives a sign of life."""

import pytest
from tests.support.fake_target import FakeGuest

from thinbox.enforcement.hang_detector import DEATH_LIMIT_NS, SPIN_LIMIT_NS, HangDetector, is_wound
from thinbox.isolation.verdict import PLANNED, Verdict, Violation
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants

INTERRUPTIBLE, UNINTERRUPTIBLE, TRACED, WAKEKILL = 1, 2, 8, 0x100
A_LONG_TIME = 100 * DEATH_LIMIT_NS


class Wounded(FakeGuest):
    """Two tenants: `hurt`, of which a task was killed, and `well`, with one task, 1."""

    def __init__(self, *, undone=False, kills=1):
        super().__init__()
        self.hurt, self.well = self.tenant("hurt"), self.tenant("well")
        for _ in range(kills):
            self.hurt.record.kills.append(Violation("getpid", "", "6b", 0, None, 0, "sci", "fetch", undone=undone))
        self.state = self.task(self.well)
        self.detector = HangDetector(self.target, self.tasks)
        # It begins to wait with the first sign of life.
        assert not self.is_hung_at(1)

    def is_hung_at(self, now_ns):
        self.machine.now_ns = now_ns
        return self.detector.is_hung()

    def sleep(self, how):
        self.states[self.state.task] = how


@pytest.fixture
def fake():
    return Wounded()


def test_who_spins_for_a_lock_of_the_dead_is_given_up_and_every_record_that_is_cut_off_says_so(fake):
    fake.tasks.running = fake.state
    assert not fake.is_hung_at(1 + SPIN_LIMIT_NS)
    assert not fake.hurt.record.stuck
    assert fake.is_hung_at(2 + SPIN_LIMIT_NS)
    assert (fake.hurt.record.stuck, fake.well.record.stuck) == (True, True)


def test_who_sleeps_for_ever_uninterruptibly_is_given_up(fake):
    fake.sleep(UNINTERRUPTIBLE)
    assert not fake.is_hung_at(1 + DEATH_LIMIT_NS)
    assert fake.is_hung_at(2 + DEATH_LIMIT_NS)


def test_who_waits_killably_waits_for_no_lock(fake):
    """`vfork` waits so for its child (TASK_KILLABLE)."""
    fake.sleep(UNINTERRUPTIBLE | WAKEKILL)
    assert not fake.is_hung_at(A_LONG_TIME)


def test_a_killed_task_that_a_tracer_holds_is_not_hung(fake):
    fake.state.killed, fake.state.killed_ns = True, 1
    fake.sleep(TRACED)
    assert not fake.is_hung_at(A_LONG_TIME)


def test_a_planned_kill_leaves_no_wound():
    plan = Violation("mkdir", "", "plan", 0, None, 0, "p", PLANNED)
    wound = Violation("getpid", "", "6b", 0, None, 0, "sci", "fetch")
    undone = Violation("getpid", "", "6b", 0, None, 0, "sci", "fetch", undone=True)
    assert [is_wound(kill) for kill in (plan, wound, undone)] == [False, True, False]


def test_who_sleeps_for_input_is_not(fake):
    fake.sleep(INTERRUPTIBLE)
    assert not fake.is_hung_at(A_LONG_TIME)


def test_who_waits_for_a_task_whose_end_was_refused_is_given_up(fake):
    fake.tasks.parked = {"well"}
    assert not fake.is_hung_at(1 + DEATH_LIMIT_NS)
    assert fake.is_hung_at(2 + DEATH_LIMIT_NS)


def test_who_sleeps_beside_a_tenant_with_such_a_task_is_not(fake):
    """Nobody but its own tenant waits for it; when the others have ended, that one is given up."""
    fake.tasks.parked = {"hurt"}
    assert not fake.is_hung_at(A_LONG_TIME)
    fake.tasks.tasks.clear()
    assert not fake.is_hung_at(A_LONG_TIME + 1)
    assert fake.is_hung_at(2 * A_LONG_TIME)


def test_a_cpu_that_runs_and_takes_no_interrupt_is_given_up(fake):
    """A worker of the kernel's spins for a lock that is taken with interrupts off."""
    fake.machine.busy_ns, fake.machine.interrupts = 2 * SPIN_LIMIT_NS, 1
    assert not fake.is_hung_at(10)
    fake.machine.busy_ns += SPIN_LIMIT_NS
    assert not fake.is_hung_at(20)
    fake.machine.busy_ns += 1
    assert fake.is_hung_at(30)


def test_one_of_many_that_sleeps_for_ever_is_enough(fake):
    for number in (2, 3):
        fake.task(fake.well, number)
    fake.states[3] = UNINTERRUPTIBLE
    assert not fake.is_hung_at(5)
    assert fake.is_hung_at(6 + DEATH_LIMIT_NS)


def test_a_killed_task_that_does_not_end_is_given_up_whatever_others_do(fake):
    fake.state.killed, fake.state.killed_ns = True, 1000
    assert not fake.is_hung_at(1000 + DEATH_LIMIT_NS)
    fake.task(fake.well, 2)
    assert fake.is_hung_at(1001 + DEATH_LIMIT_NS)


def test_a_task_that_was_never_killed_may_live_as_long_as_it_likes(fake):
    fake.state.killed_ns = -A_LONG_TIME
    assert not fake.is_hung_at(5)


@pytest.mark.parametrize("sign", ["a call", "a call of the other", "a task comes", "a task goes", "user code"])
def test_a_sign_of_life_begins_the_wait_anew(fake, sign):
    other = fake.task(fake.well, 2)
    fake.tasks.running = fake.state
    assert not fake.is_hung_at(10)
    late = 9 + SPIN_LIMIT_NS
    if sign == "a call":
        fake.well.record.calls.append(None)
    elif sign == "a call of the other":
        fake.hurt.record.calls.append(None)
    elif sign == "a task comes":
        fake.task(fake.well, 3)
    elif sign == "a task goes":
        del fake.tasks.tasks[other.task]
    else:
        fake.cpu.privilege = 3
    assert not fake.is_hung_at(late)
    fake.cpu.privilege = 0
    assert not fake.is_hung_at(late + SPIN_LIMIT_NS)
    assert fake.is_hung_at(late + SPIN_LIMIT_NS + 1)


def test_user_code_of_nobody_is_no_sign_of_life(fake):
    """The agent's: no task of a tenant runs."""
    fake.sleep(UNINTERRUPTIBLE)
    fake.cpu.privilege = 3
    assert fake.is_hung_at(2 + DEATH_LIMIT_NS)


def test_nobody_spins_while_nothing_of_a_tenant_runs(fake):
    assert not fake.is_hung_at(A_LONG_TIME)


@pytest.mark.parametrize("fake", [Wounded(undone=True)], ids=["undone"])
def test_what_was_undone_left_no_wound(fake):
    fake.tasks.running = fake.state
    fake.state.killed = True
    fake.sleep(UNINTERRUPTIBLE)
    assert not fake.is_hung_at(A_LONG_TIME)
    assert not fake.hurt.record.stuck


def test_without_a_kill_nothing_is_given_up():
    fake = Wounded(kills=0)
    fake.tasks.running = fake.state
    assert not fake.is_hung_at(A_LONG_TIME)


def refuses_ends(tenant):
    """Refuse what tasks of a tenant ("": any) do in the midst of `do_exit`."""

    def watch(machine, enforcer):
        def refuse():
            state = enforcer.running
            if state is None or state.call is None or state.killed or not state.is_exiting:
                return
            if not tenant or state.tenant.name == tenant:
                verdict = Verdict(granted=False, rule="test", reason="refused within its end")
                enforcer.violation_action.refuse_here(state, state.call, verdict, machine.cpu.rip)

        machine.cpu.add_code_hook(enforcer.view.symbols.address_of("exit_files"), refuse)

    return watch


@pytest.mark.guest
def test_a_guest_whose_task_was_refused_within_its_end_is_given_up(guest):
    """Behind `do_exit` of an exit_group that is isolated nobody is told of the task any more: its parent waits."""
    result = run(guest, ["true"], RunOptions(on_violation="oops", on_machine=refuses_ends("")))
    assert [kill.rule for kill in result.record.kills] == ["test"] and result.record.stuck


@pytest.mark.guest
def test_a_neighbour_that_sleeps_long_is_not_cut_off_by_it(guest):
    words = {"red": ("true",), "blue": ("sh", "-c", "for i in 1 2; do sleep 30; echo woke; done")}
    specs = [TenantSpec(name, command, on_violation="oops") for name, command in words.items()]
    results = run_tenants(guest, specs, on_machine=refuses_ends("red"))
    assert results["red"].record.stuck
    assert (results["blue"].exit_code, results["blue"].stdout) == (0, b"woke\nwoke\n")
    assert not results["blue"].record.stuck
