"""Files that commands write where the user says; `-` is standard output."""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from thinbox.errors import InputError
from thinbox.records.json_rows import JsonRows

_ROWS = 512
"""Rows of a long list written at a time: half a megabyte of text."""


def one_line(text: str) -> str:
    """Return a message as one line that a terminal only prints: names and texts of strangers are in it."""
    words = " ".join(text.split("\n"))
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in words)


def write_output(path: str, text: str) -> None:
    """Write `text` to the file `path`, or to standard output; InputError, one line, if that cannot be."""
    _write(path, (text,))


def write_json(path: str, data: Any) -> None:
    """Write a JSON object, a line for each value, as a stream: lists given as `JsonRows` are never held whole.

    Raises:
        InputError: it cannot be written there.
    """
    _write(path, chain(render_json(data), "\n"))


def render_json(data: Any, depth: int = 0) -> Iterator[str]:
    """Return the text of `json.dumps(data, indent=1)` in parts; `JsonRows` are lists."""
    inner = "\n" + " " * (depth + 1)
    if isinstance(data, JsonRows):
        rows, opening = iter(data), "["
        while batch := list(islice(rows, _ROWS)):
            yield opening + _indented(batch, depth)[1 : -(depth + 2)]
            opening = ","
        yield "[]" if opening == "[" else "\n" + " " * depth + "]"
    elif isinstance(data, dict) and any(isinstance(value, dict | JsonRows) for value in data.values()):
        opening = "{"
        for key, value in data.items():
            yield f"{opening}{inner}{json.dumps(key)}: "
            yield from render_json(value, depth + 1)
            opening = ","
        yield "\n" + " " * depth + "}"
    else:
        yield _indented(data, depth)


def _indented(data: Any, depth: int) -> str:
    import msgspec

    # With `indent`, json.dumps is slow Python. msgspec lays out what it wrote the same way, its values as they are.
    text = json.dumps(data)
    try:
        text = msgspec.json.format(text, indent=1)
    except msgspec.DecodeError:
        # A word with bytes that are no UTF-8, of a command, is escaped as half of a surrogate pair.
        text = json.dumps(data, indent=1)
    return text.replace("\n", "\n" + " " * depth)


def _write(path: str, parts: Iterable[str]) -> None:
    try:
        if path == "-":
            for part in parts:
                sys.stdout.write(part)
        else:
            with Path(path).open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(parts)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another file") from error
