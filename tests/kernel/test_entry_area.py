"""The task state segment lies in its CPU's entry area."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.entry_area import EntryArea, find_entry_area


def test_the_segment_lies_in_a_member_of_the_area():
    members = {"cpu_entry_area.tss": 8192, "tss_struct.x86_tss": 64}
    facts = fake_facts(members=members, sizes={"cpu_entry_area": 241664})
    assert find_entry_area(facts) == EntryArea(area_bytes=241664, task_state_at=8256)


def test_another_shape_is_refused():
    with pytest.raises(MissingFactError, match="struct cpu_entry_area, no cpu_entry_area.tss"):
        find_entry_area(fake_facts(members={"tss_struct.x86_tss": 64}))


def test_on_real_kernels(real_facts):
    found = find_entry_area(real_facts)
    assert found.area_bytes % 4096 == 0 and 0 < found.task_state_at < found.area_bytes
