"""Blocks to functions and pages, on made-up text. (A folder `coverage` here would hide the package of that name.)"""

import numpy as np
import pytest
from thinbox.coverage.attribution import BlockMap, TextMap, is_traceable

START = 0xFFFFFFFF81000000
# 0: first, 16: second, 40: second.cold, 64: third; the text is not page-aligned in the last test.
OFFSETS, NAMES = (0, 16, 40, 64), ("first", "second", "second.cold", "third")


def executed(*blocks, start=START, offsets=OFFSETS, names=NAMES):
    text_map = TextMap(start, [start + offset for offset in offsets], names)
    found = BlockMap(text_map, np.array(blocks, dtype=np.int64).reshape(-1, 2)).executed(np.arange(len(blocks)))
    name = lambda indexes: [names[i] for i in indexes]  # noqa: E731
    return name(found.entered), name(found.touched), [int(page) for page in found.pages]


def test_a_function_is_entered_only_where_a_block_runs_over_its_first_instruction():
    assert executed((16, 20))[:2] == (["second"], ["second"])
    assert executed((17, 20))[:2] == ([], ["second"])


def test_a_function_that_is_fallen_into_is_entered():
    assert executed((4, 17))[:2] == (["second"], ["first", "second"])
    assert executed((4, 16))[:2] == ([], ["first"])


def test_one_block_may_run_over_several_functions():
    assert executed((0, 65))[:2] == (["first", "second", "third"], ["first", "second", "second.cold", "third"])


def test_a_cold_part_is_executed_and_never_entered():
    assert executed((40, 48))[:2] == ([], ["second.cold"])


@pytest.mark.parametrize(
    ("block", "pages"),
    [((4090, 4096), [0]), ((4090, 4097), [0, 4096]), ((4096, 4100), [4096]), ((4095, 8193), [0, 4096, 8192])],
)
def test_a_block_counts_for_every_page_it_has_a_byte_in(block, pages):
    assert executed(block)[2] == [START + page for page in pages]


def test_pages_are_those_of_addresses_not_of_offsets():
    start = START + 0x800
    assert executed((0x7F0, 0x801), start=start)[2] == [START, START + 4096]


def test_a_set_of_blocks_is_the_union_and_no_block_is_nothing():
    text_map = TextMap(START, [START + offset for offset in OFFSETS], NAMES)
    blocks = BlockMap(text_map, np.array([(0, 4), (64, 70), (20, 24)], dtype=np.int64))
    assert blocks.executed(np.array([2, 0, 0])).entered.tolist() == [0]
    # What an earlier question marked is not part of a later answer.
    assert blocks.executed(np.array([1])).touched.tolist() == [3]
    assert not any(
        len(part) for part in (lambda e: (e.entered, e.touched, e.pages))(blocks.executed(np.array([], int)))
    )


def test_what_ftrace_sees_is_told_by_its_nop():
    assert is_traceable(bytes.fromhex("0f1f440000 55"))
    assert is_traceable(bytes.fromhex("f30f1efa 0f1f440000"))
    assert not is_traceable(bytes.fromhex("554889e5534889fb"))
    assert not is_traceable(bytes.fromhex("55 0f1f440000"))
