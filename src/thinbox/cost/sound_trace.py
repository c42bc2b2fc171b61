"""Whether a trace read from a file can be replayed: every number in it leads to where the replay has something.

Why it exists: the replay is compiled code without bounds checks. A trace is a file that travels with a record; one
that a stranger wrote would have it read and write memory of this process.
"""

from pathlib import Path

import numpy as np

from thinbox.cost import replay
from thinbox.errors import InputError
from thinbox.host.files import show
from thinbox.records.events import PageTrace

_SHIFTS = (0, 12, 21, 30)
"""Of marks, and of pages of 4 KiB, 2 MiB and 1 GiB."""
_KIND, _MARK_KIND, _PAYLOAD = 3, 15, 4


def require_sound(trace: PageTrace, calls: int, path: Path) -> None:
    """Raise InputError unless `replay` stays within its arrays for `trace` and a run of `calls` calls."""
    wanted = (("stream", 1, np.int32), ("words", 1, np.int64), ("shifts", 1, np.int8), ("users", 1, np.int8))
    for name, dimensions, kind in (*wanted, ("grants", 2, np.int64)):
        array = getattr(trace, name)
        if array.ndim != dimensions or array.dtype != kind:
            raise _damaged(path)
    if not (_words_are_sound(trace, calls) and _grants_are_sound(trace, calls)):
        raise _damaged(path)


def _words_are_sound(trace: PageTrace, calls: int) -> bool:
    words, stream = trace.words, trace.stream
    if not len(words) == len(trace.shifts) == len(trace.users):
        return False
    if len(stream) and not 0 <= int(stream.min()) <= int(stream.max()) < len(words):
        return False
    kinds, payloads = words & _KIND, words >> _PAYLOAD
    opens = words & _MARK_KIND == replay.OPEN << 2 | replay.MARK
    pages = kinds != replay.MARK
    return bool(
        (kinds <= replay.MARK).all()
        and ((payloads[opens] >= 0) & (payloads[opens] < calls)).all()
        and np.isin(trace.shifts, _SHIFTS).all()
        and (trace.shifts[pages] != 0).all()
    )


def _grants_are_sound(trace: PageTrace, calls: int) -> bool:
    grants = trace.grants
    marks = trace.words & _MARK_KIND == replay.GRANT << 2 | replay.MARK
    # One more than rows: the trace may have lost what followed the last grant.
    if grants.shape[1] != 3 or int(np.count_nonzero(marks[trace.stream])) > len(grants) + 1:
        return False
    return bool(((grants[:, 0] >= -1) & (grants[:, 0] < calls) & np.isin(grants[:, 2], (0, 1))).all())


def _damaged(path: Path) -> InputError:
    return InputError(f"the trace {show(path)} is damaged, or belongs to another run: record both again")
