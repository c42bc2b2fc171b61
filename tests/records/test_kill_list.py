"""Violations are all counted; the first are kept, and one that wounded the guest always."""

from tests.support.written_records import violation

from thinbox.records.kill_list import KillList


def test_all_are_counted_and_the_first_kept() -> None:
    kills = KillList([violation(vaddr=n, undone=True) for n in range(10)], most=4)
    assert len(kills) == 10 and kills.left_out == 6
    assert [kill.vaddr for kill in kills] == [0, 1, 2, 3] and kills[0].vaddr == 0


def test_the_first_that_was_not_undone_is_kept_whenever_it_comes() -> None:
    kills = KillList([violation(vaddr=n, undone=n != 8) for n in range(10)], most=4)
    assert [kill.vaddr for kill in kills] == [0, 1, 2, 3, 8]
    assert any(not kill.undone for kill in kills)


def test_it_compares_with_a_list() -> None:
    assert KillList() == [] and not KillList()
    assert KillList([violation()]) == [violation()] != KillList()
    assert KillList([violation()] * 3, most=1) != [violation()]
