"""Which user page tables are among a set of frames: the walk against a plain one, on random tables."""

import random

import pytest
from thinbox.isolation.mappings import LAST, MIDDLE, TOP, TOP_OF_USER, UPPER, find_touched
from thinbox.paging import FRAME_MASK, KERNEL_HALF_FIRST, LARGE, PRESENT

END = 1 << 20


def make_tables(chance):
    """Random tables in 1 MiB of RAM: (words, roots, {frame: level})."""
    words, free = [0] * (END >> 3), list(range(0x2000, END, 0x2000))
    chance.shuffle(free)
    levels = {}

    def fill(level, limit=512):
        frame = free.pop()
        levels[frame] = level
        for slot in chance.sample(range(limit), 3):
            kind = chance.random()
            if kind < 0.2 or level == LAST or len(free) < 8:
                words[(frame >> 3) + slot] = chance.choice([0, END + 0x5000 | PRESENT, 0x9000 | 2])
            elif kind < 0.4 and level < TOP:
                words[(frame >> 3) + slot] = 0x4000 | PRESENT | LARGE
            else:
                words[(frame >> 3) + slot] = fill(level - 1) | PRESENT | 0x66
        return frame

    roots = [fill(TOP, KERNEL_HALF_FIRST) for _ in range(2)]
    for root in roots:
        words[(root >> 3) + 300] = 0x1000 | PRESENT
    return words, roots, levels


@pytest.mark.parametrize("seed", range(40))
def test_the_tables_found_are_those_that_are_there(seed):
    chance = random.Random(seed)
    words, roots, levels = make_tables(chance)
    # Nothing else is followed: where the last level's entries lead, and the kernel's half.
    reachable = {frame: level for frame, level in levels.items() if LAST <= level <= TOP}
    pti = chance.random() < 0.5
    if pti:
        reachable |= {root + 0x1000: TOP_OF_USER for root in roots}
    sought = sorted(chance.sample(sorted(reachable), len(reachable) // 2) + [0x1000, 0x3000 + (END << 1)])
    wanted = {(frame, reachable[frame]) for frame in sought if frame in reachable}
    out = [0] * 2 * (len(wanted) + 1)
    found = find_touched(words, END, sought, len(sought), roots, len(roots), int(pti), out, len(wanted) + 1)
    assert found == len(wanted)
    assert {(out[2 * n], out[2 * n + 1]) for n in range(found)} == wanted
    if wanted:
        assert find_touched(words, END, sought, len(sought), roots, 2, int(pti), out, len(wanted) - 1) == len(wanted)


def test_levels_have_the_order_of_a_walk():
    assert (LAST, MIDDLE, UPPER, TOP, TOP_OF_USER) == (1, 2, 3, 4, 5) and FRAME_MASK & PRESENT == 0
