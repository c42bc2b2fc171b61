"""The user's side of a tenant's stdin: a file, a pipe, or keys that are typed.

Why it exists: a file is read as fast as the tenant reads it, and no host time enters the run; a pipe is waited for
while the guest sleeps; keys must reach the tenant also while it computes, for Ctrl-C is one of them.

Rules of this file:
- Nothing is waited for longer than `LOOK_S` at a time: a signal's handler that raises nothing does not end a select
  (PEP 475).
- Bytes are read only if someone wants them, but keys at once: what leaves a hung tenant is among them.
"""

import os
import select
import stat
import time
from collections.abc import Callable
from typing import BinaryIO

_INPUT_BYTES = 64 << 10
LOOK_S = 0.02


class Input:
    """`stream` (None: no input at all) as the tenant's stdin; `keys`, if given, sees and may change what is typed."""

    def __init__(self, stream: BinaryIO | None, *, typed: bool, keys: Callable[[bytes], bytes] | None = None) -> None:
        self._stream = stream
        self._keys = keys
        self._regular = stream is not None and _is_regular(stream)
        self._typed = typed and stream is not None and not self._regular
        self._pressed = b""
        self._ended = stream is None

    @property
    def may_come(self) -> bool:
        """Whether waiting for it is of any use: not for files, nor behind the end."""
        return self._stream is not None and not self._regular and not (self._ended and not self._pressed)

    def take(self) -> bytes | None:
        """Return bytes, b"" for none yet, None for the end."""
        if self._typed:
            self._read_keys()
            pressed, self._pressed = self._pressed, b""
            return pressed or (None if self._ended else b"")
        if self._stream is None or self._ended:
            return None
        if not self._regular and not self._is_ready(0):
            return b""
        return self._read() or None

    def look(self) -> bool:
        """Read what has been typed; return whether the tenant should be told. False for files and pipes."""
        if not self._typed or self._ended:
            return False
        before = len(self._pressed)
        self._read_keys()
        return len(self._pressed) > before or self._ended

    def wait(self, limit_s: float, look_at_signals: Callable[[], bool]) -> bool:
        """Wait until there is something to take, or `look_at_signals` says True: True; False after `limit_s`."""
        if not self.may_come:
            return False
        until_s = time.monotonic() + limit_s
        while not self._pressed and not self._is_ready(min(limit_s, LOOK_S)):
            if look_at_signals():
                return True
            limit_s = until_s - time.monotonic()
            if limit_s <= 0:
                return False
        return True

    def _is_ready(self, limit_s: float) -> bool:
        watched = [] if self._stream is None else [self._stream]
        return bool(select.select(watched, [], [], max(0.0, limit_s))[0])

    def _read_keys(self) -> None:
        while not self._ended and len(self._pressed) < _INPUT_BYTES and self._is_ready(0):
            data = self._read()
            if not data:
                self._ended = True
                return
            self._pressed += self._keys(data) if self._keys else data

    def _read(self) -> bytes:
        stream = self._stream
        if stream is None:
            return b""
        try:
            return stream.raw.read(_INPUT_BYTES) if hasattr(stream, "raw") else stream.read(_INPUT_BYTES)
        except OSError:
            # A terminal whose other end is gone.
            return b""


class GivenInput:
    """Bytes that were given beforehand, as the tenant's stdin."""

    may_come = False

    def __init__(self, data: bytes) -> None:
        self._left = data

    def take(self) -> bytes | None:
        """Return all bytes, then None for the end."""
        data, self._left = self._left, b""
        return data or None

    def look(self) -> bool:
        """Nothing is ever typed: False."""
        return False

    def wait(self, _limit_s: float, _look_at_signals: Callable[[], bool]) -> bool:
        """Nothing ever comes: False."""
        return False


def _is_regular(stream: BinaryIO) -> bool:
    """Whether reading never waits for anyone: files, and devices that are no terminals."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return True
    return stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not stream.isatty())


__all__ = ["LOOK_S", "GivenInput", "Input"]
