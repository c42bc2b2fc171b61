"""The median of any number of values: exact while there are few, to 1 % then, the same every time."""

import random
import statistics

import pytest

from thinbox.records.median import EXACT, Median


@pytest.mark.parametrize("count", [1, 2, 3, 1000, EXACT])
def test_it_is_exact_up_to_its_limit(count: int) -> None:
    values = [random.Random(count).expovariate(0.1) for _ in range(count)]
    assert Median(values).value == statistics.median(values)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_past_it_it_is_right_to_one_percent_and_the_same_every_time(scale: float) -> None:
    draw = random.Random(4)
    values = [scale * draw.lognormvariate(0, 2) for _ in range(EXACT + 1000)]
    first = Median(values)
    assert first.value == pytest.approx(statistics.median(values), rel=0.01)
    assert Median(values).value == first.value and len(first) == EXACT + 1000
    assert len(first._bins) < 4000 and len(first._exact) == EXACT


def test_odd_values_do_no_harm() -> None:
    assert Median().value is None
    assert Median([0.0] * (EXACT + 5)).value < 1e-8
