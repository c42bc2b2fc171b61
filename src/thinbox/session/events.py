"""What happened to page tables and translations in a run: counts for every call, and the trace of pages.

Why it exists: `thinbox cost` turns events into cycles. The events are the run's own, counted where they
happen; which CR3 writes another mode of isolation would add follows from them (`thinbox.cost`).

Rules of this file:
- Counts are exact and always taken. The trace of pages is taken on request, for it doubles the time of a run.
- Data is traced by guest-physical frame, code by virtual page (see `machine.tracing_hooks`).
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thinbox import paging
from thinbox.address import to_signed
from thinbox.errors import InputError
from thinbox.host.files import open_file
from thinbox.isolation import fault
from thinbox.machine import slots
from thinbox.machine import tracing_slots as tracing
from thinbox.machine.native import hook_address

if TYPE_CHECKING:
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.machine import Machine
    from thinbox.session.sites import Sites
    from thinbox.session.tasks import OpenCall, TaskState

COUNTERS = ("interrupts", "exceptions", "sleeps", "cr3_writes", "invlpg", "flushes_all", "flushes_local")
"""Columns of a call's row, after its number: while the call was on the CPU, except `sleeps`. `exceptions` are the
guest's own faults and traps, `cr3_writes` the kernel's own outside its entry code (another mm, a flush)."""
_SLEEPS = COUNTERS.index("sleeps")
TRACE_SCHEMA = "thinbox.trace/1"
_LARGEST_TRACE_BYTES = 2 << 30
_NO_ARCHIVE = (ValueError, KeyError, TypeError, EOFError, SyntaxError, RecursionError)
"""What NumPy raises for a member that is no array (its header is a literal of Python's)."""
TRACE_ROOM = 1 << 26
"""Words of trace kept: 512 MiB of address space, of which only what is written is used."""
_DIRECT_MAP_BYTES = 64 << 40


@dataclass(slots=True)
class PageTrace:
    """What was touched, in order. `stream` indexes `words` (see `machine.tracing_slots`); `shifts` has log2 of the
    page size of each word under the kernel's own table (0 for marks); `users` is 1 for a frame that user code
    touched. `grants` has a row (call, page, is code) for each GRANT mark, in the same order. `lost` counts words
    that found no room."""

    stream: np.ndarray
    words: np.ndarray
    shifts: np.ndarray
    users: np.ndarray
    grants: np.ndarray
    code_refs: int = 0
    data_refs: int = 0
    lost: int = 0

    def save(self, path: Path) -> None:
        """Write one zstd-compressed NumPy archive; `InputError` when the file cannot be written."""
        import zstandard

        plain = io.BytesIO()
        scalars = np.array([self.code_refs, self.data_refs, self.lost], dtype=np.int64)
        np.savez(
            plain,
            schema=np.array(TRACE_SCHEMA),
            stream=self.stream,
            words=self.words,
            shifts=self.shifts,
            users=self.users,
            grants=self.grants,
            scalars=scalars,
        )
        try:
            path.write_bytes(zstandard.ZstdCompressor(level=3, threads=2).compress(plain.getbuffer()))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> "PageTrace":
        """Read what `save` wrote; `InputError` for anything else."""
        import zipfile

        import zstandard

        try:
            # Not `decompress`: it takes a frame's own word for how much memory to ask for.
            plain = bytearray()
            with open_file(path) as packed, zstandard.ZstdDecompressor().stream_reader(packed) as stream:
                while (piece := stream.read(1 << 20)) and len(plain) <= _LARGEST_TRACE_BYTES:
                    plain += piece
            if len(plain) > _LARGEST_TRACE_BYTES:
                raise InputError(f"{path} unpacks to more than {_LARGEST_TRACE_BYTES >> 20} MiB: record a shorter run")
            with zipfile.ZipFile(io.BytesIO(plain)) as members:
                if any(each.compress_type != zipfile.ZIP_STORED for each in members.infolist()):
                    raise ValueError("packed twice")
            with np.load(io.BytesIO(plain), allow_pickle=False) as data:
                if str(data["schema"]) != TRACE_SCHEMA:
                    raise InputError(f"{path} has schema {data['schema']}, wanted {TRACE_SCHEMA}: record it again")
                arrays = [data[name] for name in ("stream", "words", "shifts", "users", "grants")]
                code, data_refs, lost = data["scalars"].tolist()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (zstandard.ZstdError, MemoryError, NotImplementedError, *_NO_ARCHIVE, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is not a trace of thinbox, or is damaged: record it again") from error
        stream, words, shifts, users, grants = arrays
        return cls(stream, words, shifts, users, grants, code, data_refs, lost)


@dataclass(slots=True)
class Events:
    """The `events` object of a run record: totals of the whole run, and one row for each call."""

    rows: list[list[int]] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    trace: PageTrace | None = None
    trace_file: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; calls without any event have no row."""
        rows = [[seq, *row] for seq, row in enumerate(self.rows) if any(row)]
        out: dict[str, Any] = {"totals": self.totals, "columns": ["seq", *COUNTERS], "calls": rows, "references": None}
        if self.trace is not None:
            out["references"] = {
                "file": self.trace_file,
                "code_blocks": self.trace.code_refs,
                "data_accesses": self.trace.data_refs,
                "noted": len(self.trace.stream),
                "lost": self.trace.lost,
            }
        return out


class EventRecorder:
    """Counts on one machine; told by the enforcer when calls begin, sleep, go on and end."""

    def __init__(self, machine: "Machine", view: "KernelView", sites: "Sites", *, trace: bool) -> None:
        self.events = Events()
        self._machine, self._view, self._slot = machine, view, machine.slot
        self._t = np.zeros(tracing.TRACE_WORDS, dtype=np.int64)
        self._word = self._t.data
        self._mark: list[int] = []
        self._began: list[int] = []
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
    def begin(self) -> None:
        """The tenant starts now."""
        self._began = self._read()
        self._word[tracing.TRACE_GRANTS] = self._slot[slots.COUNT_GRANTS]
        self._word[tracing.TRACE_ON] = int(self._buffer is not None)

    def opened(self, _state: "TaskState", call: "OpenCall") -> None:
        """The call entered the kernel."""
        rows = self.events.rows
        rows.extend([0] * len(COUNTERS) for _ in range(len(rows), call.record.seq + 1))
        self._begin_stretch(call.record.seq)

    def paused(self, _state: "TaskState", call: "OpenCall") -> None:
        """The call sleeps."""
        self.events.rows[call.record.seq][_SLEEPS] += 1
        self._end_stretch(call.record.seq)

    def resumed(self, _state: "TaskState", call: "OpenCall") -> None:
        """The call runs again after a sleep."""
        self._begin_stretch(call.record.seq)

    def closed(self, _state: "TaskState", call: "OpenCall") -> None:
        """The call returned or was killed; one that was killed before it opened counts nothing."""
        if call.record.seq < len(self.events.rows):
            self._end_stretch(call.record.seq)

    def granted(self, _state: "TaskState", call: "OpenCall", rows: np.ndarray) -> None:
        """Keep the grants of the call (rows of the fault log, their entries still in the table)."""
        if self._buffer is None:
            return
        kept = np.empty((len(rows), 3), dtype=np.int64)
        kept[:, 0] = call.record.seq
        kept[:, 1] = rows[:, fault.LOG_VADDR] >> 12
        kept[:, 2] = (rows[:, fault.LOG_ERROR] & paging.FAULT_FETCH) != 0
        self._grants.append(kept)
        self._frames.append((self._machine.memory.words[rows[:, fault.LOG_INDEX]] & paging.FRAME_MASK) >> 12)

    def finish(self, root: int) -> Events:
        """Sum up; `root` is a table of the kernel's own, for the sizes of its pages."""
        self._word[tracing.TRACE_ON] = 0
        now = self._read()
        began = self._began or now
        self.events.totals = {name: now[i] - began[i] for i, name in enumerate(COUNTERS)}
        self.events.totals["sleeps"] = sum(row[_SLEEPS] for row in self.events.rows)
        if self._buffer is not None:
            self.events.trace = self._collect(self._buffer[: self._word[tracing.TRACE_COUNT]], root)
        return self.events

    # -- within ---------------------------------------------------------------------------------------
    def _begin_stretch(self, seq: int) -> None:
        self._mark = self._read()
        self._put(tracing.OPEN, seq)

    def _end_stretch(self, seq: int) -> None:
        row = self.events.rows[seq]
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
            outside = ((vaddrs < first) | (vaddrs >= first + _DIRECT_MAP_BYTES)) & (vaddrs < text)
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
        words, end = self._machine.memory.quads, self._machine.memory.total_bytes
        table, shift = root & paging.FRAME_MASK, 39
        while table + 4096 <= end:
            entry = words[(table >> 3) + ((vaddr >> shift) & 511)]
            if not entry & paging.PRESENT or shift == 12 or (entry & paging.LARGE and shift < 39):
                return shift if entry & paging.PRESENT else 12
            table, shift = entry & paging.FRAME_MASK, shift - 9
        return 12


__all__ = ["COUNTERS", "EventRecorder", "Events", "PageTrace"]
