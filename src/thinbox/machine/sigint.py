"""Ctrl-C while the CPU runs: noted when it comes, raised where it cannot be lost.

Why it exists: Python runs a signal's handler between any two of its instructions. While the engine runs, those
are instructions of callbacks, and what is raised there outside a `try` has no caller but C code: ctypes prints
"Exception ignored" and goes on, and Ctrl-C is lost.

Rules of this file:
- Only Python's own handler of SIGINT, in the main thread, is stood in for; a handler of the caller's stays.
- A noted Ctrl-C is raised exactly once: by `check`, or at the latest when the hold ends.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class SigintHold:
    """A context in which SIGINT raises nothing by itself; `check` raises `KeyboardInterrupt` if one has come."""

    def __init__(self) -> None:
        self._noted = self._holds = False

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._noted = True

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        self._holds = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._holds:
            signal.signal(signal.SIGINT, self._note)
        return self

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if SIGINT came since the last look; from Python code, never from a callback."""
        if self._noted:
            self._noted = False
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._holds:
            # signal.signal first runs the handlers of signals that have come: those are noted, not lost.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is not KeyboardInterrupt:
            self.check()
