"""Names and limits of a process are where the kernel's types say; counts it lacks are not told."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.process import find_process

MEMBERS = {
    "task_struct.personality": 4, "task_struct.nsproxy": 8, "nsproxy.uts_ns": 16, "uts_namespace.name": 24,
    "task_struct.signal": 32, "signal_struct.rlim": 40,
}  # fmt: skip


def test_counts_that_are_not_there_are_0():
    found = find_process(fake_facts("nr_threads", members=MEMBERS))
    assert (found.pages_at, found.free_pages_at, found.task_count_at, found.limits_at) == (0, 0, 0x1000, 40)


def test_anything_else_is_missed():
    with pytest.raises(MissingFactError, match="uts_namespace.name"):
        find_process(fake_facts(members={name: at for name, at in MEMBERS.items() if name != "uts_namespace.name"}))


def test_on_real_kernels(real_facts):
    found = find_process(real_facts)
    assert found.pages_at and found.free_pages_at and found.task_count_at
