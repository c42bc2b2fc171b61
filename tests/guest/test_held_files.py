"""Who has a file mapped: the running task, and where it is dead whatever address spaces are named."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
from thinbox.guest.held_files import HeldFiles
from thinbox.kernel.open_files import FileShape

TASK, MAPPING, NODE, LEFT, RIGHT = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
OWN, SIBLING, STRANGER = 0xA000, 0xB000, 0xC000
SHAPE = FileShape(**{field.name: 8 * (number + 1) for number, field in enumerate(fields(FileShape))})


def held(mm):
    """The file is mapped by OWN and SIBLING; the running task has the address space `mm`, and no open files."""
    words = {
        TASK + SHAPE.task_mm_at: mm, MAPPING + SHAPE.mapping_tree_at: NODE,
        NODE + SHAPE.left_at: LEFT, NODE + SHAPE.right_at: RIGHT,
        NODE + SHAPE.vma_mm_at: OWN, LEFT + SHAPE.vma_mm_at: SIBLING, RIGHT + SHAPE.vma_mm_at: 0,
    }  # fmt: skip
    made = object.__new__(HeldFiles)
    made._kernel, made._shape = SimpleNamespace(current=TASK), SHAPE
    made._read = lambda vaddr, _root: words.get(vaddr, 0)
    return made


@pytest.mark.parametrize(
    ("mm", "spaces", "holds"),
    [
        (OWN, (), True),
        (STRANGER, (), False),
        (STRANGER, (SIBLING,), True),
        (STRANGER, (STRANGER,), False),
        # A dead task has no address space: a mapping of nobody's is not its.
        (0, (), False),
        (0, (0,), False),
        (0, (SIBLING,), True),
        (0, (STRANGER,), False),
    ],
)
def test_a_mapped_file_is_held_by_the_task_or_by_the_spaces_named(mm, spaces, holds):
    assert held(mm).holds(MAPPING, 0, frozenset(spaces)) is holds
    assert not held(mm).holds(MAPPING + 0x100, 0, frozenset(spaces))
