"""Which part of a long trace is replayed: windows of calls, each after a few calls that warm the TLB.

Why it exists: a script of 300 lines touches pages 25 million times; replaying all of it for every mode on every
CPU takes a minute. CR3 writes and faults are counted over all of it anyhow; only misses are sampled.

Rules of this file:
- Windows lie evenly over the run and are the same for every mode and CPU, so differences are not noise of the choice.
- A trace of at most `WHOLE` words is replayed whole.
"""

from dataclasses import dataclass

import numpy as np

from thinbox.cost import replay

WHOLE = 3_000_000
WINDOW_CALLS = 32
WARM_CALLS = 16
TAKEN = 8
"""One window of so many is replayed."""
TLB_COLUMNS = [replay.L2_HITS, replay.WALKS, replay.WALK_LOADS]
_OPEN_WORD = replay.OPEN << 2 | replay.MARK
_GRANT_WORD = replay.GRANT << 2 | replay.MARK
_STATE_WORD = replay.STATE << 2 | replay.MARK


@dataclass(frozen=True, slots=True)
class Piece:
    """Words `start` to `end` of a stream, behind `grants` GRANT marks."""

    start: int
    end: int
    grants: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The pieces to replay, and for each call whether its misses count."""

    pieces: tuple[Piece, ...]
    counted: np.ndarray


def marks_only(stream: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the marks of a stream, each change of state with the word behind it (the entry code it began with)."""
    low = words[stream] & 15
    keep = low & 3 == replay.MARK
    keep[1:] |= low[:-1] == _STATE_WORD
    return np.asarray(stream[keep])


def choose(stream: np.ndarray, words: np.ndarray, calls: int, *, exact: bool) -> Sample:
    """Return what to replay of `stream`; all of it if that is short, or `exact`."""
    if exact or len(stream) <= WHOLE:
        return Sample((Piece(0, len(stream), 0),), np.ones(calls, dtype=bool))
    low = words[stream] & 15
    opens = np.flatnonzero(low == _OPEN_WORD)
    granted = np.cumsum(low == _GRANT_WORD)
    counted = np.zeros(calls, dtype=bool)
    pieces = []
    for first in range(0, len(opens), WINDOW_CALLS * TAKEN):
        last = min(first + WINDOW_CALLS, len(opens) - 1)
        warm = max(0, first - WARM_CALLS)
        start = int(opens[warm]) if warm else 0
        pieces.append(Piece(start, int(opens[last]), int(granted[start - 1]) if start else 0))
        counted[words[stream[opens[first:last]]] >> 4] = True
    return Sample(tuple(pieces), counted)


def fill(out: np.ndarray, counted: np.ndarray, names: list[str]) -> None:
    """Give calls that were not replayed the mean misses of replayed calls of their name, or of all.

    `out` has a row before the first call; changed in place.
    """
    if counted.all():
        return
    _names, name = np.unique(np.array(names), return_inverse=True)
    rows = out[1:]
    for column in TLB_COLUMNS:
        values = rows[:, column].astype(float)
        sums = np.bincount(name[counted], weights=values[counted], minlength=len(_names))
        times = np.bincount(name[counted], minlength=len(_names))
        mean = np.where(times > 0, sums / np.maximum(times, 1), values[counted].mean() if counted.any() else 0.0)
        rows[~counted, column] = np.rint(mean[name[~counted]])
