"""The list of tasks: which calls are isolated, and what a reset forgets."""

from tests.support.fake_target import FakeGuest


def test_isolated_calls_are_those_in_progress_of_running_and_sleeping_tasks():
    guest = FakeGuest()
    tenant = guest.tenant()
    running, sleeping = (guest.task(tenant, number, isolated=True) for number in (1, 2))
    guest.task(tenant, 3, isolated=False)
    guest.task(tenant, 4)
    guest.tasks.running = running
    assert guest.tasks.isolated() == [(running, running.call), (sleeping, sleeping.call)]


def test_a_reset_forgets_the_tasks_and_keeps_the_tenants():
    guest = FakeGuest()
    tenant = guest.tenant()
    guest.tasks.running = guest.task(tenant, 1)
    guest.tasks.clear()
    assert (guest.tasks.tasks, guest.tasks.running, guest.tasks.tenants) == ({}, None, {"a": tenant})


def test_a_new_task_has_no_table_no_call_and_no_past():
    state = FakeGuest().task(None)
    assert (state.root, state.stack, state.pages_made, state.call) == (0, 0, 0, None)
    assert (state.killed, state.killed_ns, state.bytes_mark, state.identity, state.planned) == (False, 0, 0, None, None)
