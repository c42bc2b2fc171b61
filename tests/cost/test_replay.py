"""Replay of a trace: what each mode makes of the same pages; stripping and sampling stay close to the whole."""

import numpy as np
import pytest
from thinbox.cost import replay, sample
from thinbox.cost.model import Model
from thinbox.cost.modes import MODES, find_mode
from thinbox.cost.prepopulate import remaining_faults
from thinbox.cost.profiles import cpu_names, find_profile, new_state
from thinbox.machine.compiled import compiled

CPUS = [find_profile(name) for name in cpu_names()]


def totals(workload, cpu, mode):
    (cost,) = [c for c in Model(workload).costs([cpu], (mode,)) if c.mode is mode]
    return cost.counts[0].sum(axis=0)


def test_a_getppid_in_a_loop_costs_each_mode_its_cr3_writes(loop_workload):
    """Counted by hand: PTI two writes a call, SCI two more, and two for each of its faults."""
    steady = [i for i, name in enumerate(loop_workload.names) if name == "getppid"][50:190]
    faults = int(loop_workload.faults[steady[0]])
    skylake, zen2 = find_profile("skylake-server"), find_profile("zen-2")

    def writes(cpu, name):
        (cost,) = Model(loop_workload).costs([cpu], (find_mode(name),))
        middle = np.median(cost.counts[0][1:][steady], axis=0)
        return middle[replay.SWITCH_FLUSH], middle[replay.SWITCH_KEEP]

    assert writes(skylake, "pti") == (0, 2)
    assert writes(skylake, "sci-pcid") == (1, 3 + 2 * faults), "one flush: of its own tag, for grants were forgotten"
    assert writes(skylake, "sci-nopcid") == (4 + 2 * faults, 0)
    assert writes(zen2, "sci") == (2 + 2 * faults, 0)
    assert writes(zen2, "sci-prepopulated") == (2, 0)
    assert writes(zen2, "sci-keep") == (2, 0)


def test_the_replay_sees_every_grant_of_the_record(loop_result, loop_workload):
    granted = loop_result.record.totals["code_faults"] + loop_result.record.totals["data_faults"]
    assert len(loop_workload.trace.grants) == granted
    assert totals(loop_workload, CPUS[0], find_mode("sci"))[replay.FAULTS] == granted
    per_call = np.bincount(loop_workload.trace.grants[:, 0], minlength=len(loop_workload.names))
    assert per_call.tolist() == loop_workload.faults.tolist()


def replayed(stream, workload, cpu, words, grants=None):
    trace = workload.trace
    out = np.zeros((1 + len(workload.names), replay.COLUMNS), dtype=np.int64)
    roots = np.full(replay.ASID_SLOTS, -1, dtype=np.int64)
    faults = np.append(remaining_faults(trace.grants, workload.names, workload.pids, ""), np.int8(0))
    state = new_state(cpu.geometry())
    tables = (trace.words, trace.shifts, trace.users, faults)
    compiled(replay.replay, cached=True)(stream, len(stream), *tables, np.array(words), state, roots, out.reshape(-1))
    return out.sum(axis=0)


MODE_WORDS = {"none": (1, 1, 0, 0, 0, 0, 0), "pti": (0, 0, 1, 0, 0, 0, 0), "sci-pcid": (1, 0, 0, 1, 0, 0, 0)}


@pytest.mark.parametrize("name", MODE_WORDS)
@pytest.mark.parametrize("cpu", [CPUS[0], CPUS[-1]], ids=lambda cpu: cpu.name)
def test_stripping_keeps_switches_exactly_and_walks_within_two_hundredths(loop_workload, cpu, name):
    trace = loop_workload.trace
    kept = np.zeros(len(trace.stream) + 2 * replay.STRIP_SLOTS, dtype=np.int32)
    size = compiled(replay.strip, cached=True)(trace.stream, len(trace.stream), trace.words, 0, kept)
    assert size < len(trace.stream)
    whole = replayed(trace.stream, loop_workload, cpu, MODE_WORDS[name])
    stripped = replayed(kept[:size], loop_workload, cpu, MODE_WORDS[name])
    exact = [replay.SWITCH_FLUSH, replay.SWITCH_KEEP, replay.FAULTS, replay.ENTRIES_COUNT, replay.INNER]
    assert stripped[exact].tolist() == whole[exact].tolist()
    assert stripped[replay.WALKS] == pytest.approx(whole[replay.WALKS], rel=0.02)


def test_where_every_fault_flushes_the_size_of_the_tlb_does_not_matter(loop_workload):
    """That is why such a mode is replayed on one CPU only."""
    words = (0, 0, 0, 1, 0, 0, 0)
    walks = {replayed(loop_workload.trace.stream, loop_workload, cpu, words)[replay.WALKS] for cpu in CPUS}
    assert max(walks) <= 1.01 * min(walks)


def test_marks_alone_give_the_same_switches(loop_workload):
    trace = loop_workload.trace
    exact = [replay.SWITCH_FLUSH, replay.SWITCH_KEEP, replay.FAULTS, replay.ENTRIES_COUNT, replay.INNER]
    for words in MODE_WORDS.values():
        whole = replayed(trace.stream, loop_workload, CPUS[0], words)
        marks = replayed(sample.marks_only(trace.stream, trace.words), loop_workload, CPUS[0], words)
        assert marks[exact].tolist() == whole[exact].tolist()


def test_windows_say_about_what_the_whole_says(loop_workload, monkeypatch):
    cpu, mode = CPUS[0], find_mode("sci-pcid")
    (whole,) = Model(loop_workload, exact=True).costs([cpu], (mode,))
    monkeypatch.setattr(sample, "WHOLE", 1000)
    monkeypatch.setattr(sample, "WINDOW_CALLS", 16)
    monkeypatch.setattr(sample, "WARM_CALLS", 8)
    monkeypatch.setattr(sample, "TAKEN", 3)
    (part,) = Model(loop_workload).costs([cpu], (mode,))
    assert 0 < part.counted.sum() < len(part.counted) / 2
    assert part.causes["cr3 writes"] == whole.causes["cr3 writes"]
    assert part.causes["faults"] == whole.causes["faults"]
    assert part.causes["tlb misses"].high == pytest.approx(whole.causes["tlb misses"].high, rel=0.3)


def test_prepopulation_never_spares_a_page_that_no_other_call_showed():
    text, data = -0x7F000, -(1 << 35)
    grants = np.array([(0, text, 1), (0, data, 0), (1, text, 1), (1, data, 0), (2, text, 1), (2, data, 0)])
    names, pids = ["a", "a", "b"], [1, 2, 1]
    assert remaining_faults(grants, names, pids, "").tolist() == [1, 1, 1, 1, 1, 1]
    # Text: known where another call of the name shows it. Data: known to the task that had it before.
    assert remaining_faults(grants, names, pids, "profile").tolist() == [0, 1, 0, 1, 1, 0]
    assert remaining_faults(grants, names, pids, "task").tolist() == [1, 1, 1, 1, 0, 0]


def test_every_mode_says_what_it_gives_away():
    assert len({mode.name for mode in MODES}) == len(MODES) == 8
    assert all(mode.gives_away for mode in MODES)
