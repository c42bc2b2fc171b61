"""An operation of a ring names its task, or what its task has of rings."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.io_uring import OperationShape, find_operation


def test_6_13_an_operation_names_its_tasks_part_of_rings():
    facts = fake_facts(members={"io_kiocb.opcode": 8, "io_kiocb.tctx": 96})
    assert find_operation(facts) == OperationShape(opcode_at=8, task_at=None)


def test_5_10_an_operation_names_its_task():
    facts = fake_facts(members={"io_kiocb.opcode": 8, "io_kiocb.task": 96})
    assert find_operation(facts) == OperationShape(opcode_at=8, task_at=96)


def test_a_kernel_without_rings_lacks_nothing_and_one_with_others_is_refused():
    assert find_operation(fake_facts()) is None
    with pytest.raises(MissingFactError, match="io_kiocb.tctx or io_kiocb.task"):
        find_operation(fake_facts(members={"io_kiocb.opcode": 8}))


def test_on_real_kernels(real_facts):
    assert find_operation(real_facts).opcode_at == real_facts.types.offset_of("io_kiocb", "opcode")
