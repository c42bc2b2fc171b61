"""Counts what happens to page tables and translations in a run, and notes the trace of pages if it is wanted.

Why it exists: events are counted where they happen; `records.events` is what is left of them.
"""

from typing import TYPE_CHECKING

import numpy as np

from thinbox import paging
from thinbox.address import to_signed
from thinbox.isolation import fault
from thinbox.machine import slots
from thinbox.machine import tracing_slots as tracing
from thinbox.machine.native import hook_address
from thinbox.records.events import COUNTERS, DIRECT_MAP_BYTES, SLEEPS, TRACE_ROOM, Events, PageTrace

if TYPE_CHECKING:
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.tasks import TaskState
    from thinbox.guest.kernel_view import KernelView
    from thinbox.guest.sites import Sites
    from thinbox.machine.machine import Machine


class EventRecorder:
    """Counts on one machine; told by the enforcer when calls begin, sleep, go on and end."""

    def __init__(self, machine: "Machine", view: "KernelView", sites: "Sites", *, trace: bool) -> None:
        self._events: dict[str, Events] = {}
        self._machine, self._view, self._slot = machine, view, machine.slot
        self._t = np.zeros(tracing.TRACE_WORDS, dtype=np.int64)
        self._word = self._t.data
        self._mark: list[int] = []
        self._began: dict[str, list[int]] = {}
        self._grants: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []
        self._buffer: np.ndarray | None = None
        address = machine.cpu.keep_array(self._t)
        for vaddrs, counter in (
            (sites.cr3_switches, tracing.TRACE_CR3),
            (sites.invlpg, tracing.TRACE_INVLPG),
            (sites.flush_all, tracing.TRACE_FLUSH_ALL),
            (sites.flush_local, tracing.TRACE_FLUSH_LOCAL),
        ):
            for vaddr in vaddrs:
                machine.cpu.add_native_hook(vaddr, hook_address("on_count"), address + 8 * counter)
        if trace:
            self._start_trace(address)

    def _start_trace(self, address: int) -> None:
        self._buffer = np.zeros(TRACE_ROOM, dtype=np.int64)
        word = self._word
        word[tracing.TRACE_CAPACITY] = TRACE_ROOM
        word[tracing.TRACE_BUFFER] = self._machine.cpu.keep_array(self._buffer)
        word[tracing.TRACE_CORE] = self._machine.cpu.core.ctypes.data
        word[tracing.TRACE_ROOT_MASK] = ~0x1000 if self._view.uses_pti else ~0
        word[tracing.TRACE_STATE] = -1
        self._machine.cpu.add_tracing_hooks(address)

    # -- told by the enforcer -------------------------------------------------------------------------
    def of(self, tenant: str) -> Events:
        """Return what was counted for a tenant: its calls' rows, and the machine's totals from its start to the end."""
        return self._events.setdefault(tenant, Events())

    def begin(self, tenant: str) -> None:
        """The tenant starts now."""
        self._began[tenant] = self._read()
        self._word[tracing.TRACE_GRANTS] = self._slot[slots.COUNT_GRANTS]
        self._word[tracing.TRACE_ON] = int(self._buffer is not None)

    def opened(self, state: "TaskState", call: "OpenCall") -> None:
        """The call entered the kernel."""
        rows = self.of(state.tenant.name).rows
        rows.extend([0] * len(COUNTERS) for _ in range(len(rows), call.record.seq + 1))
        self._begin_stretch(call.record.seq)

    def paused(self, state: "TaskState", call: "OpenCall") -> None:
        """The call sleeps."""
        self.of(state.tenant.name).rows[call.record.seq][SLEEPS] += 1
        self._end_stretch(state.tenant.name, call.record.seq)

    def resumed(self, _state: "TaskState", call: "OpenCall") -> None:
        """The call runs again after a sleep."""
        self._begin_stretch(call.record.seq)

    def closed(self, state: "TaskState", call: "OpenCall") -> None:
        """The call returned or was killed; one that was killed before it opened counts nothing."""
        if call.record.seq < len(self.of(state.tenant.name).rows):
            self._end_stretch(state.tenant.name, call.record.seq)

    def granted(self, _state: "TaskState", call: "OpenCall", rows: np.ndarray) -> None:
        """Keep the grants of the call (rows of the fault log, their entries still in the table); those of a task's end
        are of no call, -1."""
        if self._buffer is None:
            return
        kept = np.empty((len(rows), 3), dtype=np.int64)
        kept[:, 0] = call.record.seq
        kept[:, 1] = rows[:, fault.LOG_VADDR] >> 12
        kept[:, 2] = (rows[:, fault.LOG_ERROR] & paging.FAULT_FETCH) != 0
        self._grants.append(kept)
        self._frames.append((self._machine.memory.words[rows[:, fault.LOG_INDEX]] & paging.FRAME_MASK) >> 12)

    def finish(self, root: int) -> None:
        """Sum up, for `of`; `root` is a table of the kernel's own, for the sizes of its pages.

        The trace of pages is the machine's, so it is one tenant's only if there is no other.
        """
        self._word[tracing.TRACE_ON] = 0
        now = self._read()
        for tenant, began in self._began.items():
            events = self.of(tenant)
            events.totals = {name: now[i] - began[i] for i, name in enumerate(COUNTERS)}
            events.totals["sleeps"] = events.rows.total(SLEEPS)
            if self._buffer is not None:
                events.trace = self._collect(self._buffer[: self._word[tracing.TRACE_COUNT]], root)

    # -- within ---------------------------------------------------------------------------------------
    def _begin_stretch(self, seq: int) -> None:
        self._mark = self._read()
        self._put(tracing.OPEN, seq)

    def _end_stretch(self, tenant: str, seq: int) -> None:
        row = self.of(tenant).rows[seq]
        for i, (now, then) in enumerate(zip(self._read(), self._mark, strict=True)):
            row[i] += now - then
        self._put(tracing.CLOSE, seq)

    def _read(self) -> list[int]:
        slot, word = self._slot, self._word
        irqs = slot[slots.COUNT_IRQS]
        own = slot[slots.COUNT_DELIVERED] - irqs
        flushed = (word[tracing.TRACE_INVLPG], word[tracing.TRACE_FLUSH_ALL], word[tracing.TRACE_FLUSH_LOCAL])
        return [irqs, own, 0, word[tracing.TRACE_CR3], *flushed]

    def _put(self, kind: int, seq: int) -> None:
        if self._buffer is None or not self._word[tracing.TRACE_ON]:
            return
        count = self._word[tracing.TRACE_COUNT]
        if count >= TRACE_ROOM:
            self._word[tracing.TRACE_LOST] += 1
            return
        self._buffer[count] = seq << 4 | kind << 2 | tracing.MARK
        self._word[tracing.TRACE_COUNT] = count + 1

    def _collect(self, buffer: np.ndarray, root: int) -> PageTrace:
        words, stream = np.unique(buffer, return_inverse=True)
        grants = np.concatenate(self._grants) if self._grants else np.zeros((0, 3), dtype=np.int64)
        user = self._user_frames(buffer)
        direct_map = self._direct_map(root)
        small = user | self._outside_direct_map(grants, direct_map)
        shifts, users = np.zeros(len(words), dtype=np.int8), np.zeros(len(words), dtype=np.int8)
        for i, word in enumerate(words.tolist()):
            kind = word & 3
            if kind == tracing.CODE:
                shifts[i] = 12 if word >= 0 else self._leaf_shift(root, word >> 2 << 12)
            elif kind == tracing.DATA:
                frame = word >> 2
                users[i] = frame in user
                shifts[i] = 12 if frame in small else self._leaf_shift(root, direct_map + (frame << 12))
        word = self._word
        refs = (word[tracing.TRACE_CODE_REFS], word[tracing.TRACE_DATA_REFS], word[tracing.TRACE_LOST])
        return PageTrace(stream.astype(np.int32), words, shifts, users, grants.astype(np.int64), *refs)

    def _user_frames(self, buffer: np.ndarray) -> set[int]:
        """Frames that user code touched: mapped for users, in 4 KiB pages."""
        marks = np.flatnonzero(buffer & 15 == (tracing.STATE << 2 | tracing.MARK))
        user = np.zeros(len(buffer), dtype=bool)
        if len(marks):
            lengths = np.diff(np.append(marks, len(buffer)))
            user[marks[0] :] = np.repeat(((buffer[marks] >> 4) & 1).astype(bool), lengths)
        return set(np.unique(buffer[user & (buffer & 3 == tracing.DATA)] >> 2).tolist())

    def _outside_direct_map(self, grants: np.ndarray, first: int) -> set[int]:
        """Frames the kernel reached through vmalloc and its like, in 4 KiB pages; `first` begins the direct map."""
        frames: set[int] = set()
        if len(grants):
            vaddrs, all_frames = grants[:, 1] << 12, np.concatenate(self._frames)
            text = to_signed(self._view.symbols.text_start)
            outside = ((vaddrs < first) | (vaddrs >= first + DIRECT_MAP_BYTES)) & (vaddrs < text)
            frames |= set(np.unique(all_frames[outside]).tolist())
        return frames

    def _direct_map(self, root: int) -> int:
        """PAGE_OFFSET (Documentation/arch/x86/x86_64/mm.rst), which KASLR may move."""
        symbol = self._view.symbols.find("page_offset_base")
        if symbol is None:
            return to_signed(0xFFFF_8880_0000_0000)
        return to_signed(self._view.read_u64(symbol, root))

    def _leaf_shift(self, root: int, vaddr: int) -> int:
        """Return log2 of the size of the page that maps `vaddr`, 12 when nothing does any more."""
        words, end = self._machine.memory.words, self._machine.memory.guest_bytes
        table, shift = root & paging.FRAME_MASK, 39
        while table + 4096 <= end:
            entry = words[(table >> 3) + ((vaddr >> shift) & 511)]
            if not entry & paging.PRESENT or shift == 12 or (entry & paging.LARGE and shift < 39):
                return shift if entry & paging.PRESENT else 12
            table, shift = entry & paging.FRAME_MASK, shift - 9
        return 12
