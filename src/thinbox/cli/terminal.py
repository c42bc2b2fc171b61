"""The user's terminal while a tenant uses it: raw, and given back whatever happens.

Why it exists: every key is for the tenant's own terminal, Ctrl-C and Ctrl-Z among them; so echo, lines and signals
of the user's terminal are switched off for the run, and a way out of a tenant that does not answer is needed.

Rules of this file:
- Between changing the settings and restoring them nothing of ours can be interrupted by an exception: the caller
  has signal handlers that raise nothing.
- Only a `kill -9` of thinbox itself leaves the terminal raw (then: `stty sane`).
"""

import os
import signal
import termios
import tty
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

_ESCAPE = ord("~")
_LEAVE, _SUSPEND = ord("."), 0x1A
_LINE_ENDS = frozenset(b"\r\n")


class UserTerminal:
    """The terminal behind descriptor `handle`, raw inside the context."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._kept: list[Any] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns; (24, 80) if the terminal does not say."""
        try:
            columns, rows = os.get_terminal_size(self._handle)
        except OSError:
            return (24, 80)
        return (rows, columns) if rows and columns else (24, 80)

    def __enter__(self) -> Self:
        self._kept = termios.tcgetattr(self._handle)
        # Not TCSAFLUSH: what was typed during the start is for the tenant.
        tty.setraw(self._handle, termios.TCSADRAIN)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the settings back; quietly, if the terminal is gone."""
        if self._kept is not None:
            with suppress(termios.error):
                termios.tcsetattr(self._handle, termios.TCSADRAIN, self._kept)
            self._kept = None

    def suspend(self) -> None:
        """Stop this process, as Ctrl-Z stops others, with the terminal given back meanwhile."""
        self.restore()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self.__enter__()


class EscapeKeys:
    """At the start of a line, `~.` leaves, `~^Z` suspends thinbox, `~~` is a tilde; as in ssh.

    Called with the bytes typed; returns those that are for the tenant. Anything else behind a tilde goes to the
    tenant with it.
    """

    def __init__(self, leave: Callable[[], None], suspend: Callable[[], None]) -> None:
        self._leave, self._suspend = leave, suspend
        self._line_starts, self._escaped = True, False

    def __call__(self, data: bytes) -> bytes:
        out = bytearray()
        for key in data:
            if self._escaped:
                self._escaped = False
                if key == _LEAVE:
                    self._leave()
                    continue
                if key == _SUSPEND:
                    self._suspend()
                    self._line_starts = True
                    continue
                out.append(_ESCAPE)
                if key == _ESCAPE:
                    self._line_starts = False
                    continue
            elif self._line_starts and key == _ESCAPE:
                self._escaped = True
                continue
            out.append(key)
            self._line_starts = key in _LINE_ENDS
        return bytes(out)


__all__ = ["EscapeKeys", "UserTerminal"]
