"""What is put back, and what is not: an address whose page table was forged leads to anything."""

from types import SimpleNamespace

import pytest
from thinbox.address import to_signed
from thinbox.enforcement.integrity import Finding
from thinbox.enforcement.violation_action import ViolationAction
from thinbox.isolation.policies.guard import FORGED_MAP

PLACE, HOME = 0xFFFF_8880_0000_5000, 0x5000


@pytest.mark.parametrize(
    ("leads_to", "then", "home", "writes"),
    [
        (HOME, HOME + 3, HOME, 1),
        (0x9000, HOME + 3, HOME, 0),
        (HOME, 0x9000, HOME, 0),
        (HOME, HOME + 3, -1, 0),
        (-1, 2, -1, 0),
    ],
)
def test_nothing_is_put_back_where_a_forged_table_leads(leads_to, then, home, writes):
    written = []
    memory = SimpleNamespace(
        spans=lambda _root, _vaddr, _size: iter([(leads_to, 3), (then, 1)]),
        write_virtual=lambda _root, vaddr, content: written.append((vaddr, content)),
    )
    action = object.__new__(ViolationAction)
    action._undo = None
    action._target = SimpleNamespace(memory=memory, kernel_root=0, view=SimpleNamespace(home_of=lambda _vaddr: home))
    restored = []
    state = SimpleNamespace(call=None, tenant=SimpleNamespace(record=SimpleNamespace(restored=restored)))
    action.restore(state, Finding(FORGED_MAP, PLACE, is_writer=False, whose="a", repair=((PLACE, bytes(4)),)))
    assert written == [(to_signed(PLACE), bytes(4))] * writes
    assert [one.rule for one in restored] == ["G8" if writes else "G8, not put back"]
