"""Progress on stderr: a line that rewrites itself on a terminal, plain lines elsewhere."""

import os
import shutil
import sys
import time

_TERMINAL_STEP_S, _PLAIN_STEP_S = 0.1, 10.0


class ProgressLine:
    """`say(text)` shows what is going on; quiet commands get one that says nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._stepped = 0.0
        self._shown = False

    def say(self, text: str) -> None:
        """Show `text` as what thinbox is doing now."""
        if self._quiet and not text.startswith("warning:"):
            return
        line = f"thinbox: {text}"
        if self._terminal and not text.startswith("warning:"):
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[K" + line[:width])
            self._shown = True
        else:
            self.clear()
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def step(self, text: str) -> None:
        """Show one of many steps: often on a terminal, every ten seconds elsewhere."""
        now = time.monotonic()
        if now - self._stepped >= (_TERMINAL_STEP_S if self._terminal else _PLAIN_STEP_S):
            self._stepped = now
            self.say(text)

    def clear(self) -> None:
        """Take the line away before something else is written."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False
