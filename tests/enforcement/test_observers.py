"""Every watch is told everything, in the order they were added."""

import pytest
from tests.support.fake_target import Watch

from thinbox.enforcement.observers import Watches


@pytest.mark.parametrize(
    ("name", "what"),
    [("opened", (1, 2)), ("paused", (1, 2)), ("resumed", (1, 2)), ("granted", (1, 2, 3)), ("closed", (1, 2))],
)
def test_each_is_told_in_order(name, what):
    watches, told = Watches(), []
    getattr(watches, name)(*what)
    for number in range(2):
        watch = Watch()
        watch.told = told
        watches.add(watch)
    getattr(watches, name)(*what)
    assert told == [(name, *what)] * 2
