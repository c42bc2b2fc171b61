"""What tests of views share."""

import pytest
from thinbox.machine.sci_unit import SciUnit


@pytest.fixture
def steps_aside(monkeypatch):
    """Counts how often a call leaves its table for deferred work."""
    count = [0]
    leave_for_deferred_work = SciUnit.leave_for_deferred_work

    def counted(unit):
        count[0] += 1
        leave_for_deferred_work(unit)

    monkeypatch.setattr(SciUnit, "leave_for_deferred_work", counted)
    return count
