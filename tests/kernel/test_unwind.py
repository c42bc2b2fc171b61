"""ORC tables are taken in the two layouts that are known."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.unwind import find_unwind


def table(size=6, end=0x1000 + 600, members=()):
    names = ("__start_orc_unwind", "__stop_orc_unwind", "__start_orc_unwind_ip", "__stop_orc_unwind_ip")
    facts = fake_facts(*names, members=dict.fromkeys(members, 0), sizes={"orc_entry": size})
    places = facts.symbols.places
    places["__stop_orc_unwind"], places["__stop_orc_unwind_ip"] = end, places["__start_orc_unwind_ip"] + 400
    return facts


def test_both_layouts():
    assert find_unwind(table(members=["orc_entry.end"])).has_end
    assert not find_unwind(table()).has_end


@pytest.mark.parametrize("other", [{"size": 8}, {"end": 0x1000 + 606}])
def test_another_layout_is_refused(other):
    with pytest.raises(MissingFactError, match="layout that is known"):
        find_unwind(table(**other))


def test_a_kernel_with_frame_pointers_is_refused_by_name():
    with pytest.raises(MissingFactError, match="__start_orc_unwind_ip.*judge the stack"):
        find_unwind(fake_facts(sizes={"orc_entry": 6}))


def test_on_real_kernels(real_facts):
    found = find_unwind(real_facts)
    assert found.ips[1] > found.ips[0]
