"""What tests of views share."""

import pytest
from thinbox.machine.cpu import Cpu


@pytest.fixture
def steps_aside(monkeypatch):
    """Counts how often a call leaves its table for an errand."""
    count = [0]
    step_aside = Cpu.step_aside

    def counted(cpu):
        count[0] += 1
        step_aside(cpu)

    monkeypatch.setattr(Cpu, "step_aside", counted)
    return count
