"""The TLB model against a reference written another way: eager removal, Python lists and dictionaries."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from thinbox.bench.tlb import bench_trace
from thinbox.cost import tlb
from thinbox.cost.profiles import cpu_names, find_profile, new_state
from thinbox.machine.compiled import compiled

RUN = compiled(tlb.run_trace, cached=True)
SMALL = np.array(
    # I4K, I2M, D4K, D2M, D1G, second I, second D, second 1G, PDE, PDPTE, PML4E; the second level is unified
    [
        (2, 2, 0),
        (1, 2, 1),
        (2, 2, 2),
        (2, 1, 3),
        (1, 2, 4),
        (4, 2, 6),
        (4, 2, 6),
        (1, 1, 7),
        (1, 3, 8),
        (1, 2, 9),
        (1, 1, 10),
    ]
)
SHARED = np.array(
    [
        (1, 4, 0),
        (1, 4, 0),
        (1, 3, 2),
        (1, 3, 2),
        (1, 3, 2),
        (2, 2, 5),
        (4, 2, 6),
        (1, 2, 7),
        (1, 2, 8),
        (1, 2, 9),
        (1, 2, 10),
    ]
)


class Reference:
    """Every structure is a dictionary of sets, every set a list of live (page, shift, tag), the latest first."""

    def __init__(self, geometry):
        self.rows = [tuple(row) for row in geometry.tolist()]
        self.sets = {}

    def _set(self, structure, index):
        shared = self.rows[structure][2]
        return self.sets.setdefault((shared, index % self.rows[shared][0]), []), self.rows[shared][1]

    def _has(self, structure, entry, index):
        held, _ways = self._set(structure, index)
        if entry not in held:
            return False
        held.remove(entry)
        held.insert(0, entry)
        return True

    def _put(self, structure, entry, index):
        held, ways = self._set(structure, index)
        held.insert(0, entry)
        del held[ways:]

    def access(self, page, shift, tag, context, code):
        number = page // (1 << (shift - 12))
        entry = (number, shift, tag)
        one = {12: 0, 21: 1}[shift] if code else {12: 2, 21: 3, 30: 4}[shift]
        two = 7 if shift == 30 else 5 if code else 6
        if self._has(one, entry, number):
            return 0
        if self._has(two, entry, number):
            self._put(one, entry, number)
            return 1
        loads = self._walk(page, shift, context)
        self._put(one, entry, number)
        self._put(two, entry, number)
        return loads * 4 + 2

    def _walk(self, page, shift, context):
        """From the deepest cached level down; levels above it are neither looked up nor refreshed."""
        levels = [(8, 21), (9, 30), (10, 39)][(shift - 12) // 9 :]
        missed = []
        loads = 1
        for structure, covers in levels:
            entry = (page >> (covers - 12), covers, context)
            if self._has(structure, entry, 0):
                break
            missed.append((structure, entry))
            loads += 1
        for structure, entry in missed:
            self._put(structure, entry, 0)
        return loads

    def flush(self, doomed):
        for key, held in self.sets.items():
            held[:] = [entry for entry in held if not doomed(key[0], entry)]

    def run(self, op, page, shift, tag, context, code):
        if op == 0:
            return self.access(page, shift, tag, context, bool(code))
        if op == 1:
            self.flush(lambda _s, entry: entry[2] == tag)
        elif op == 2:
            self.flush(lambda _s, _entry: True)
        else:
            self.flush(
                lambda s, entry: (
                    entry[2] == tag if s >= 8 else entry[2] in (tag, tlb.GLOBAL) and entry[0] == page >> (entry[1] - 12)
                )
            )
        return 0


def agree(geometry, rows):
    ops = np.array(rows, dtype=np.int64).reshape(-1, 6)
    out = np.zeros(len(ops), dtype=np.int64)
    RUN(new_state(geometry), ops.reshape(-1), len(ops), out)
    reference = Reference(geometry)
    assert out.tolist() == [reference.run(*row) for row in ops.tolist()]
    return out


tags = st.integers(0, 2)
pages = st.one_of(
    st.integers(0, 9),
    st.integers(0, 5).map(lambda n: n << 9),
    st.integers(0, 3).map(lambda n: n << 18),
    st.integers(0, 2).map(lambda n: n << 27),
)


@st.composite
def steps(draw):
    op = draw(st.sampled_from([0] * 8 + [1, 2, 3, 3]))
    code = draw(st.integers(0, 1))
    # A page has one size for good: real tables do not map one address twice.
    page = draw(pages)
    shift = 30 if page >= 1 << 27 and not code else 21 if page >= 1 << 18 else 12
    context = draw(tags)
    tag = tlb.GLOBAL if op == 0 and draw(st.integers(0, 3)) == 0 else context
    return (op, page, shift, tag, context, code)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(steps(), max_size=120), st.sampled_from([SMALL, SHARED]))
@example([(0, 1, 12, 0, 0, 0), (1, 0, 12, 0, 0, 0), (0, 1, 12, 0, 0, 0)], SMALL)
def test_the_model_agrees_with_the_reference_on_random_traces(rows, geometry):
    agree(geometry, rows)


def test_the_model_agrees_with_the_reference_on_every_cpus_geometry():
    random = np.random.default_rng(7)
    for name in cpu_names():
        count = 6000
        rows = np.zeros((count, 6), dtype=np.int64)
        rows[:, 0] = random.choice([0, 1, 2, 3], size=count, p=[0.985, 0.01, 0.001, 0.004])
        rows[:, 1] = np.minimum(random.zipf(1.2, count), 4000)
        rows[:, 2] = 12
        rows[:, 3] = rows[:, 4] = random.integers(0, 3, count)
        rows[:, 5] = random.integers(0, 2, count)
        out = agree(find_profile(name).geometry(), rows)
        kinds = np.bincount(out[rows[:, 0] == 0] & 3, minlength=3)
        assert (kinds > 40).all(), "the trace has hits in both levels, and walks"


def test_a_global_entry_survives_a_cr3_write_and_not_a_full_flush():
    walk, hit = 4 * 4 + 2, 0
    page = (0, 5, 12, tlb.GLOBAL, 0, 0)
    out = agree(SMALL, [page, page, (1, 0, 12, 0, 0, 0), page, (2, 0, 12, 0, 0, 0), page])
    assert out[[0, 1, 3, 5]].tolist() == [walk, hit, hit, walk]


def test_a_tag_keeps_its_entries_while_another_is_flushed():
    mine, other = (0, 5, 12, 1, 1, 0), (0, 5, 12, 2, 2, 0)
    out = agree(SMALL, [mine, other, (1, 0, 12, 2, 2, 0), mine, other])
    assert out[3] == 0
    assert out[4] & 3 == 2


def test_the_trace_of_the_benchmark_has_hits_in_both_levels_and_walks():
    """How many references a second the model handles, `thinbox bench` tells; here, that it is no easy trace."""
    state, ops, out = bench_trace(100_000)
    RUN(state, ops, len(out), out)
    kinds = np.bincount(out[ops.reshape(-1, 6)[:, 0] == 0] & 3, minlength=3)
    assert (kinds > 1000).all(), kinds
