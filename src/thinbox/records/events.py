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
from typing import Any

import numpy as np

from thinbox.errors import InputError
from thinbox.host.files import open_file
from thinbox.records.event_rows import EventRows
from thinbox.records.json_rows import JsonRows

COUNTERS = ("interrupts", "exceptions", "sleeps", "cr3_writes", "invlpg", "flushes_all", "flushes_local")
"""Columns of a call's row, after its number: while the call was on the CPU, except `sleeps`. `exceptions` are the
guest's own faults and traps, `cr3_writes` the kernel's own outside its entry code (another mm, a flush)."""
SLEEPS = COUNTERS.index("sleeps")
TRACE_SCHEMA = "thinbox.trace/1"
_LARGEST_TRACE_BYTES = 2 << 30
_NO_ARCHIVE = (ValueError, KeyError, TypeError, EOFError, SyntaxError, RecursionError)
"""What NumPy raises for a member that is no array (its header is a literal of Python's)."""
TRACE_ROOM = 1 << 26
"""Words of trace kept: 512 MiB of address space, of which only what is written is used."""
DIRECT_MAP_BYTES = 64 << 40


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

    rows: EventRows = field(default_factory=lambda: EventRows(len(COUNTERS)))
    totals: dict[str, int] = field(default_factory=dict)
    trace: PageTrace | None = None
    trace_file: str | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # A plain list of rows becomes one that is bounded.
        if name == "rows" and isinstance(value, list):
            value = EventRows(len(COUNTERS), value)
        object.__setattr__(self, name, value)

    @property
    def left_out(self) -> int:
        """Rows that found no room."""
        return self.rows.left_out

    def json_object(self) -> dict[str, Any]:
        """Return plain values, the rows as `JsonRows`; calls without any event have no row."""
        rows, columns = JsonRows(self.rows.numbered), ["seq", *COUNTERS]
        out: dict[str, Any] = {"totals": self.totals, "columns": columns, "calls": rows, "references": None}
        if self.trace is not None:
            out["references"] = {
                "file": self.trace_file,
                "code_blocks": self.trace.code_refs,
                "data_accesses": self.trace.data_refs,
                "noted": len(self.trace.stream),
                "lost": self.trace.lost,
            }
        return out

    def to_json(self) -> dict[str, Any]:
        """Return plain values; calls without any event have no row."""
        out = self.json_object()
        out["calls"] = list(out["calls"])
        return out
