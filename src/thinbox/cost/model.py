"""Cycles, with intervals: the events of a mode, replayed or bounded, times the figures of a CPU.

Why it exists: the one place where counts become cycles. What a mode adds is its events less those of no
isolation on the same CPU, so that what both do costs nothing.

Rules of this file:
- Every result is an interval (low, high); sums add lows and highs, so they are wider than they need be.
- Nothing here is measured: the figures' sources say what is.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinbox.cost import bounds, replay, sample
from thinbox.cost.modes import MODES, Mode
from thinbox.cost.prepopulate import remaining_faults
from thinbox.cost.profiles import CpuProfile, Figure, load_software, new_state
from thinbox.cost.workload import Workload
from thinbox.machine.compiled import compiled
from thinbox.records.events import PageTrace

CAUSES = ("cr3 writes", "tlb misses", "faults", "entry code", "tables")


@dataclass(frozen=True, slots=True)
class Interval:
    """Cycles, from `low` to `high`."""

    low: float
    high: float

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(self.low + other.low, self.high + other.high)

    def scaled(self, factor: float) -> "Interval":
        """Return the interval times a non-negative number."""
        return Interval(self.low * factor, self.high * factor)


ZERO = Interval(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ModeCost:
    """What one mode adds to no isolation on one CPU. `per_call` has (low, high) cycles for each call, `causes` the
    workload's cycles by cause, `counts` the events added (`replay.COLUMNS`, low and high); `counted` says for which
    calls misses were replayed or bounded themselves, not filled in from their like."""

    cpu: CpuProfile
    mode: Mode
    per_call: np.ndarray
    causes: dict[str, Interval]
    counts: np.ndarray
    counted: np.ndarray
    replayed: bool

    @property
    def total(self) -> Interval:
        """Cycles added to the whole workload."""
        return sum(self.causes.values(), ZERO)

    @property
    def median(self) -> Interval:
        """Cycles added to the median call, of those replayed themselves."""
        rows = self.per_call[self.counted]
        if not len(rows):
            return ZERO
        return Interval(*np.median(rows, axis=0).tolist())


def uses_pti(cpu: CpuProfile, mode: Mode) -> bool:
    """Whether page-table isolation runs under the mode: asked for, or needed on this CPU by whatever isolates calls."""
    return mode.pti or (cpu.meltdown and mode.name != "none")


def uses_pcid(cpu: CpuProfile, mode: Mode) -> bool:
    """Whether the mode uses PCIDs on this CPU."""
    return cpu.pcid and mode.wants_pcid is not False


def applies(cpu: CpuProfile, mode: Mode) -> bool:
    """Whether the mode says something of its own on this CPU: tags need PCIDs."""
    return cpu.pcid or mode.wants_pcid is None


def flags(cpu: CpuProfile, mode: Mode) -> tuple[int, ...]:
    """Return the mode words of `replay`."""
    pti = uses_pti(cpu, mode)
    return (
        int(uses_pcid(cpu, mode)),
        int(mode.name == "none"),
        int(pti),
        int(mode.sci),
        int(mode.keeps),
        int(mode.asi),
        int(mode.flush_own),
    )


class Model:
    """The events of one workload in every mode on every CPU asked for; replays each different case once."""

    def __init__(self, workload: Workload, *, exact: bool = False) -> None:
        self.workload, self._exact = workload, exact
        self.software = load_software()
        self._done: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
        self._faults: dict[str, np.ndarray] = {}
        self._streams: dict[int, tuple[np.ndarray, sample.Sample]] = {}
        self._marks = np.zeros(0, dtype=np.int32)

    def costs(self, cpus: list[CpuProfile], modes: tuple[Mode, ...] = MODES) -> list[ModeCost]:
        """Return the cost of each mode that applies, CPU by CPU; the traces are replayed by two threads."""
        wanted = [(cpu, mode) for cpu in cpus for mode in modes if applies(cpu, mode)]
        base = [(cpu, MODES[0]) for cpu in cpus]
        if self.workload.trace is not None:
            self._prepare(self.workload.trace)
            jobs = {self._case(cpu, mode): (cpu, mode) for cpu, mode in reversed([*base, *wanted])}
            with ThreadPoolExecutor(2) as pool:
                for case, counts in zip(jobs, pool.map(lambda job: self._replay(*job), jobs.values()), strict=True):
                    self._done[case] = (counts, counts)
        return [self._cost(cpu, mode) for cpu, mode in wanted]

    # -- events -----------------------------------------------------------------------------------------
    def _prepare(self, trace: PageTrace) -> None:
        names, pids = self.workload.names, self.workload.pids
        for prefault in ("", "task", "profile"):
            left = remaining_faults(trace.grants, names, pids, prefault)
            # One word more: the trace may have lost what followed the last grant.
            self._faults[prefault] = np.append(left, np.int8(0))
        strip = compiled(replay.strip, cached=True)
        for grants_flush in (0, 1):
            kept = np.zeros(len(trace.stream) + 2 * replay.STRIP_SLOTS, dtype=np.int32)
            size = strip(trace.stream, len(trace.stream), trace.words, grants_flush, kept)
            stream = kept[:size]
            chosen = sample.choose(stream, trace.words, len(names), exact=self._exact)
            self._streams[grants_flush] = (stream, chosen)
        self._marks = sample.marks_only(trace.stream, trace.words)

    @staticmethod
    def _always_cold(cpu: CpuProfile, mode: Mode) -> bool:
        """Whether translations never live long enough for the size of a TLB to matter: every fault flushes."""
        return mode.sci and not mode.prefault and (mode.flush_own or not uses_pcid(cpu, mode))

    def _case(self, cpu: CpuProfile, mode: Mode) -> tuple[Any, ...]:
        geometry = () if self._always_cold(cpu, mode) else tuple(map(tuple, cpu.geometry().tolist()))
        return (*self._flags(cpu, mode), mode.prefault, geometry)

    @staticmethod
    def _flags(cpu: CpuProfile, mode: Mode) -> tuple[int, ...]:
        words = flags(cpu, mode)
        # Without PCIDs every write flushes anyhow.
        return words if words[0] else (*words[:-1], 0)

    def _replay(self, cpu: CpuProfile, mode: Mode) -> np.ndarray:
        trace = self.workload.trace
        if trace is None:
            raise ValueError("there is no trace to replay")
        run = compiled(replay.replay, cached=True)
        stream, chosen = self._streams[int(self._always_cold(cpu, mode))]
        words, faults = np.array(self._flags(cpu, mode), dtype=np.int64), self._faults[mode.prefault]
        geometry = cpu.geometry()

        def through(part: np.ndarray, grants: int, state: np.ndarray, out: np.ndarray) -> None:
            roots = np.full(replay.ASID_SLOTS, -1, dtype=np.int64)
            tables = (trace.words, trace.shifts, trace.users, faults[grants:])
            run(part, len(part), *tables, words, state, roots, out.reshape(-1))

        shape = (1 + len(self.workload.names), replay.COLUMNS)
        missed, out = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        state = new_state(geometry)
        for piece in chosen.pieces:
            through(stream[piece.start : piece.end], piece.grants, state, missed)
        through(self._marks, 0, new_state(geometry), out)
        out[:, sample.TLB_COLUMNS] = missed[:, sample.TLB_COLUMNS]
        sample.fill(out, chosen.counted, self.workload.names)
        return out

    def _counts(self, cpu: CpuProfile, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
        if self.workload.trace is not None:
            return self._done[self._case(cpu, mode)]
        return bounds.counts(self.workload, flags(cpu, mode), mode)

    # -- cycles -----------------------------------------------------------------------------------------
    def _cost(self, cpu: CpuProfile, mode: Mode) -> ModeCost:
        mine, base = self._counts(cpu, mode), self._counts(cpu, MODES[0])
        added = np.stack([mine[0] - base[0], mine[1] - base[1]])
        rows = {cause: self._cycles(cpu, mode, cause, added, mine) for cause in CAUSES}
        per_call = sum(rows.values())
        causes = {cause: Interval(*cycles.sum(axis=0).tolist()) for cause, cycles in rows.items()}
        if mode.sci:
            pages = float(self.workload.table_pages)
            causes["tables"] = causes["tables"] + _times(pages, pages, self.software["table_page"])
        traced = self.workload.trace is not None
        counted = np.ones(len(self.workload.names), dtype=bool)
        if traced:
            counted = self._streams[int(self._always_cold(cpu, mode))][1].counted
        return ModeCost(cpu, mode, np.asarray(per_call)[1:], causes, added, counted, traced)

    def _cycles(
        self, cpu: CpuProfile, mode: Mode, cause: str, added: np.ndarray, mine: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray:
        """Return (low, high) cycles of one cause for each call, the row before the first call included."""
        figures, software = cpu.figures, self.software
        if cause == "cr3 writes":
            terms = [(replay.SWITCH_FLUSH, figures["cr3_flush"]), (replay.SWITCH_KEEP, figures["cr3_keep"])]
        elif cause == "tlb misses":
            terms = [(replay.L2_HITS, figures["l2_hit"]), (replay.WALK_LOADS, figures["walk_load"])]
        elif cause == "faults":
            terms = [(replay.FAULTS, f) for f in (figures["fault_round_trip"], software["grant"], software["forget"])]
            if mode.keeps:
                terms.pop()
        elif cause == "entry code":
            terms = [(replay.INNER, software["enter_leave"])] if mode.sci else []
            if uses_pti(cpu, mode):
                terms.append((replay.ENTRIES_COUNT, software["pti_trampoline"]))
        else:
            terms = []
        out = np.zeros((len(added[0]), 2))
        for column, figure in terms:
            counts = mine if column == replay.ENTRIES_COUNT else added
            low, high = counts[0][:, column], counts[1][:, column]
            out[:, 0] += np.minimum(low * figure.low, low * figure.high)
            out[:, 1] += np.maximum(high * figure.low, high * figure.high)
        if cause == "faults" and mode.asi:
            out[1:, 1] += software["asi_exit"].high
        return out


def _times(low: float, high: float, figure: Figure) -> Interval:
    return Interval(low * figure.low, high * figure.high)
