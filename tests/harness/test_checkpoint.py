"""A child that is to be frozen stands ready only when its parent is in its wait, whoever of the two runs first."""

from thinbox.guest.agent_channel import Syscall
from thinbox.harness.checkpoint import ParentWait


def test_a_child_gives_way_until_its_parent_waits():
    parent = ParentWait()
    child = parent.come_to()
    assert next(child).name == "nanosleep"
    assert child.send(0).name == "nanosleep", "the parent is not there yet"
    waiting = parent.wait(7, 0, 0, 0)
    assert next(waiting) == Syscall("wait4", (7, 0, 0, 0))
    assert list(child) == []


def test_a_child_whose_parent_waits_already_makes_no_call():
    """So on a kernel that runs the parent first the frozen guest is what it always was."""
    parent = ParentWait()
    next(parent.wait(7, 0, 0, 0))
    assert list(parent.come_to()) == []
