"""What tests of views share."""

import pytest
from thinbox.machine.cpu import Cpu


@pytest.fixture
def steps_aside(monkeypatch):
    """Counts how often a call leaves its table for deferred work."""
    count = [0]
    leave_for_deferred_work = Cpu.leave_for_deferred_work

    def counted(cpu):
        count[0] += 1
        leave_for_deferred_work(cpu)

    monkeypatch.setattr(Cpu, "leave_for_deferred_work", counted)
    return count
