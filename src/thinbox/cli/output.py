"""Files that commands write where the user says; `-` is standard output."""

import sys
from pathlib import Path

from thinbox.errors import InputError


def write_output(path: str, text: str) -> None:
    """Write `text` to the file `path`, or to standard output; InputError, one line, if that cannot be."""
    try:
        if path == "-":
            sys.stdout.write(text)
        else:
            Path(path).write_text(text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another file") from error
