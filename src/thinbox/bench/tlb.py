"""The TLB model's own speed: references a second on a trace as a kernel makes them."""

import time
from collections.abc import Callable

import numpy as np

from thinbox.bench.figure import Figure
from thinbox.cost import tlb
from thinbox.cost.profiles import find_profile, new_state
from thinbox.machine.compiled import compiled

REFERENCES = 5_000_000


def bench_trace(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an empty TLB of the Skylake profile, `count` references, and room for their results.

    Pages are drawn from 4,000 by Zipf's law, a flush of the tag after every 400: about what calls show.
    """
    random = np.random.default_rng(1)
    ops = np.zeros((count, 6), dtype=np.int64)
    ops[:, 1] = np.minimum(random.zipf(1.4, count), 4000)
    ops[:, 2] = 12
    ops[:, 5] = random.integers(0, 2, count)
    ops[::400, 0] = 1
    return new_state(find_profile("skylake-server").geometry()), ops.reshape(-1), np.zeros(count, dtype=np.int64)


def tlb_figure(runs: int, say: Callable[[str], None]) -> Figure:
    """Measure; process time, for other processes' share says nothing of the model."""
    say("references of the TLB model")
    run = compiled(tlb.run_trace, cached=True)
    state, ops, out = bench_trace(REFERENCES)
    run(state, ops, 1000, out)
    best = 0.0
    for _ in range(runs):
        started = time.process_time()
        run(state, ops, REFERENCES, out)
        best = max(best, REFERENCES / (time.process_time() - started) / 1e6)
    return Figure(
        "TLB model", best, "M/s", "20 million references/s", "one thread, Skylake geometry, a flush every 400"
    )
