"""A task's state has another name before 5.14."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.task_struct import find_task_struct

OTHERS = {"task_struct.pid": 1256, "task_struct.tgid": 1260, "task_struct.stack": 32, "task_struct.comm": 1760}
OTHERS["task_struct.ptrace"] = 48


def test_5_14_the_state_is_a_word_of_32_bits():
    found = find_task_struct(fake_facts(members=OTHERS | {"task_struct.__state": 24, "task_struct.state": 16}))
    assert (found.pid_at, found.tgid_at, found.stack_at, found.name_at, found.state_at) == (1256, 1260, 32, 1760, 24)


def test_5_10_the_state_is_a_word_of_64_bits():
    assert find_task_struct(fake_facts(members=OTHERS | {"task_struct.state": 16})).state_at == 16


def test_another_shape_is_refused():
    with pytest.raises(MissingFactError, match="task_struct.__state or task_struct.state"):
        find_task_struct(fake_facts(members=OTHERS))


def test_on_real_kernels(real_facts):
    found = find_task_struct(real_facts)
    assert found.tgid_at == found.pid_at + 4
