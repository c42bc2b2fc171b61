"""Where all tasks are listed."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.task import find_task_shape


def test_what_is_missing_is_named():
    with pytest.raises(MissingFactError, match="init_task.*task_struct.thread_node"):
        find_task_shape(fake_facts())


def test_on_real_kernels(real_facts):
    assert find_task_shape(real_facts).first_at == real_facts.symbols.find("init_task")
