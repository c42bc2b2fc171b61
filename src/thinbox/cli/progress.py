"""Progress on stderr: a line that rewrites itself on a terminal, plain lines elsewhere."""

import os
import shutil
import sys
import time


class ProgressLine:
    """`say(text)` shows what is going on; quiet commands get one that says nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._started = time.monotonic()
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

    def clear(self) -> None:
        """Take the line away before something else is written."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False
