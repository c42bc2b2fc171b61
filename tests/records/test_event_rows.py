"""Counts of events by call: packed rows can be counted in again, totals are exact."""

import random

from thinbox.records.event_rows import EventRows
from thinbox.records.row_store import CHUNK_ROWS, Bounds

MANY = 5 * CHUNK_ROWS
WIDTH = 3


def counted(rows: EventRows, seed: int) -> list[list[int]]:
    """Extend and count as a recorder does, in old rows too; return what each row must be."""
    draw, wanted, old = random.Random(seed), [], []
    for number in range(MANY):
        rows.extend([[0] * WIDTH])
        wanted.append([0] * WIDTH)
        if draw.random() < 0.01:
            old.append(number)
        for which in (number, *([draw.choice(old)] * (number % 3 == 0) if old else ())):
            if draw.random() < 0.3:
                column, more = draw.randrange(WIDTH), draw.choice((1, 2, 1 << 40))
                rows[which][column] += more
                wanted[which][column] += more
    return wanted


def test_rows_are_as_they_were_counted_however_old() -> None:
    rows = EventRows(WIDTH)
    wanted = counted(rows, 1)
    assert len(rows._newest) + len(rows._touched) <= 3 * CHUNK_ROWS, "nothing was packed"
    assert len(rows) == MANY and list(rows) == wanted
    assert list(rows.numbered()) == [[n, *row] for n, row in enumerate(wanted) if any(row)]
    assert [rows.total(column) for column in range(WIDTH)] == [sum(column) for column in zip(*wanted, strict=True)]
    assert rows == wanted and rows != wanted[:-1]
    draw = random.Random(2)
    for number in draw.sample(range(MANY), 200):
        assert rows[number] == wanted[number]
    assert list(rows) == wanted and rows[-2:] == wanted[-2:]


def test_totals_are_exact_when_rows_are_left_out() -> None:
    rows = EventRows(WIDTH, bounds=Bounds(1000, 1 << 30))
    wanted = counted(rows, 3)
    assert rows.left_out > 0
    assert [rows.total(column) for column in range(WIDTH)] == [sum(column) for column in zip(*wanted, strict=True)]


def test_rows_of_zeros_take_no_room() -> None:
    rows = EventRows(WIDTH, ([0] * WIDTH for _ in range(MANY)))
    rows[5][1] += 1
    assert list(rows.numbered()) == [[5, 0, 1, 0]] and rows._store.chunks() == 0
