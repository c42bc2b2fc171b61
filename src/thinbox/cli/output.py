"""Files that commands write where the user says; `-` is standard output."""

import sys
from pathlib import Path

from thinbox.errors import InputError


def one_line(text: str) -> str:
    """Return a message as one line that a terminal only prints: names and texts of strangers are in it."""
    words = " ".join(text.split("\n"))
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in words)


def write_output(path: str, text: str) -> None:
    """Write `text` to the file `path`, or to standard output; InputError, one line, if that cannot be."""
    try:
        if path == "-":
            sys.stdout.write(text)
        else:
            Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another file") from error
