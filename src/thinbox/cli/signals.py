"""Signals to thinbox while a tenant runs: for the tenant first, and a second Ctrl-C or SIGTERM for thinbox.

Why it exists: a handler runs anywhere, so it only notes; what it noted is done between two stretches of CPU.
"""

import signal
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from thinbox.cli.terminal import UserTerminal

if TYPE_CHECKING:
    from thinbox.session.options import RunResult
    from thinbox.session.session import Session

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_INSISTENT = (signal.SIGINT, signal.SIGTERM)
_TERMINALS = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)


class _Signals:
    """Notes signals, and does what they ask for when `check` is called."""

    def __init__(self, session: "Session", terminal: UserTerminal | None) -> None:
        self._session, self._terminal = session, terminal
        self._pending: list[int] = []
        self._seen: list[int] = []

    def note(self, number: int, _frame: Any) -> None:
        self._pending.append(number)

    def check(self) -> None:
        """Forward; `KeyboardInterrupt` for the second Ctrl-C, or the second SIGTERM."""
        while self._pending:
            number = self._pending.pop(0)
            if number in _TERMINALS and self._terminal is not None:
                self._serve(number, self._terminal)
                continue
            if number in _INSISTENT and number in self._seen:
                raise KeyboardInterrupt
            self._seen.append(number)
            self._session.signal(number)

    def _serve(self, number: int, terminal: UserTerminal) -> None:
        if number == signal.SIGTSTP:
            terminal.suspend()
        elif number == signal.SIGCONT:
            # Stopped by SIGSTOP: the shell has made the terminal its own since.
            terminal.restore()
            terminal.__enter__()
        self._session.resize(*terminal.size)


def run_with_signals(session: "Session", terminal: UserTerminal | None = None) -> "dict[str, RunResult]":
    """Run `session`, forwarding signals; `terminal`, if given, is raw meanwhile and its size follows the user's."""
    signals = _Signals(session, terminal)
    numbers = _FORWARDED + (_TERMINALS if terminal else ())
    kept = {number: signal.signal(number, signals.note) for number in numbers}
    session.machine.check_signals = signals.check
    try:
        with terminal or nullcontext():
            return session.run()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


__all__ = ["run_with_signals"]
