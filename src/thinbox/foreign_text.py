"""JSON and TOML that others wrote: parsed within bounds, or refused with one exception.

Why it exists: the parsers of the standard library end in RecursionError on deep nesting, in ValueError on an integer
of 5,000 digits, take NaN for a number and the last of two equal keys for the only one. Who reads a file of a stranger's
needs none of that, and needs it in one place.

Rules of this file:
- The result is made of what JSON and TOML have, at most `MAX_DEPTH` deep, integers of at most 64 bits, finite numbers,
  every key once; or the exception is `InputError`, of one line that begins with what is read.
- No I/O: `host.files` reads the bytes.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from thinbox.errors import InputError

MAX_DEPTH = 64
"""Containers in containers. A record of thinbox has 8, a container's config.json 10."""

MAX_JSON_BYTES = 256 << 20
"""A call takes about 300 bytes of a record: 900,000 calls."""

MAX_JSON_VALUES = 16_000_000
"""Commas and brackets, which bound the values: an empty list takes 2 bytes of text and 64 of memory. With a record's 20
bytes a value, this many are more than `MAX_JSON_BYTES` holds."""

MAX_TOML_BYTES = 4 << 20
"""The largest plan that thinbox brings has 20 KiB; `tomllib` reads about 1 MB/s."""

_LEAST, _MOST = -(1 << 63), 1 << 64
_DIGITS = 20
"""Of 2^64 - 1, and of -2^63 with its sign."""
_DIGIT = b"9"
_ONE_DIGIT = bytes.maketrans(b"0123456789", _DIGIT * 10)
"""Fewer digits in a row than `_DIGITS` less one are 64 bits at most; then no integer is looked at in Python."""
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
_STRING = re.compile(rb'"[^"]*"')
_LONGEST_ERROR = 200
_MAY_BE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_KEY = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"{_KEY}(?:[ \t]*+\.[ \t]*+{_KEY}){{{MAX_DEPTH},}}")
"""A dotted key of more parts than that. `tomllib` takes quadratic time for it, and does not recurse."""


def parse_json(data: bytes, what: str) -> Any:
    """Return the value of the JSON text `data`; `what` names it in messages.

    Lone surrogates are refused but for those that stand for bytes (U+DC80 to U+DCFF, PEP 383): thinbox writes a
    tenant's words so.

    Raises:
        InputError: anything else than one JSON value within the bounds.
    """
    try:
        _require_size(len(data), MAX_JSON_BYTES)
        _require_few_values(data)
        _require_shallow_text(data)
        value = json.loads(
            _decode(data),
            parse_int=_bounded_integer if _DIGIT * (_DIGITS - 1) in data.translate(_ONE_DIGIT) else int,
            parse_float=_finite_float,
            parse_constant=_refuse_constant,
            object_pairs_hook=_object,
        )
        if _MAY_BE_SURROGATE.search(data):
            _require_text(value)
    except RecursionError as error:
        raise _too_deep(what) from error
    except (ValueError, MemoryError) as error:
        raise InputError(f"{what} is damaged or no JSON ({_one_line(error)})") from error
    return value


def parse_toml(data: bytes | str, what: str) -> dict[str, Any]:
    """Return the table of the TOML text `data`; `what` names it in messages.

    Raises:
        InputError: anything else than TOML within the bounds.
    """
    import tomllib  # 5 ms of every start otherwise

    try:
        text = _decode(data) if isinstance(data, bytes) else data
        _require_size(len(text), MAX_TOML_BYTES)
        _require_short_keys(text)
        table = tomllib.loads(text, parse_float=_finite_float)
        _require_shallow(table)
        _require_small_integers(table)
        _require_text(table)
    except RecursionError as error:
        raise _too_deep(what) from error
    except (ValueError, MemoryError) as error:  # tomllib.TOMLDecodeError is a ValueError
        raise InputError(f"{what} is not TOML: {_one_line(error)}") from error
    return table


def _require_size(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise ValueError(f"it is larger than {limit_bytes >> 20} MiB")


def _require_few_values(data: bytes) -> None:
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES} values")


def _require_short_keys(text: str) -> None:
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {MAX_DEPTH} parts")


def _too_deep(what: str) -> InputError:
    return InputError(f"{what} is nested too deeply; {MAX_DEPTH} levels are read")


def _decode(data: bytes) -> str:
    text = data.decode()
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark; save it as plain UTF-8")
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice[:60]!r} twice in one object")
    return made


def _bounded_integer(text: str) -> int:
    if len(text) <= _DIGITS and _LEAST <= (value := int(text)) < _MOST:
        return value
    raise ValueError("it has an integer of more than 64 bits")


def _finite_float(text: str) -> float:
    value = float(text)
    if value - value != 0:  # an infinity, or no number
        raise ValueError(f"it has {text[:20]}, a number that is too large, or none")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"it has {text}, which JSON does not know")


def _require_shallow_text(data: bytes) -> None:
    """Raise RecursionError if brackets nest deeper than `MAX_DEPTH`: innermost pairs are taken away, level by level."""
    plain = data.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in data else data
    # Two quotes side by side are an empty string, or make one string of two: what was in a string still is.
    brackets = _STRING.sub(b"", plain.translate(_ONE_KIND, _NO_BRACKETS).replace(b'""', b""))
    for _depth in range(MAX_DEPTH):
        brackets, before = brackets.replace(b"[]", b""), len(brackets)
        if len(brackets) == before:
            break
    if len(brackets) > MAX_DEPTH or b"[]" in brackets:  # a shorter rest has no partner, which the parser will say
        raise RecursionError


def _containers(value: Any) -> Sequence[Any]:
    """Return the values of one container."""
    return list(value.values()) if isinstance(value, dict) else value


def _require_shallow(value: Any) -> None:
    """Raise RecursionError past `MAX_DEPTH`; level by level, for the interpreter's own limit is no bound on repr."""
    level = [value] if isinstance(value, dict | list) else []
    for _depth in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _containers(outer) if isinstance(inner, dict | list)]
        if not level:
            return
    raise RecursionError


def _require_small_integers(table: dict[str, Any]) -> None:
    todo: list[Any] = [table]
    while todo:
        for value in _containers(todo.pop()):
            if isinstance(value, dict | list):
                todo.append(value)
            elif isinstance(value, int) and not _LEAST <= value < _MOST:
                raise ValueError("it has an integer of more than 64 bits")


def _require_text(value: Any) -> None:
    """Raise ValueError if a string or key holds a surrogate that stands for no byte."""
    todo: list[Any] = [[value]]
    while todo:
        container = todo.pop()
        words: list[Any] = [*container, *container.values()] if isinstance(container, dict) else container
        for word in words:
            if isinstance(word, str):
                try:
                    word.encode("utf-8", "surrogateescape")
                except UnicodeEncodeError:
                    raise ValueError("it has text that is not Unicode (a lone surrogate)") from None
            elif isinstance(word, dict | list):
                todo.append(word)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    return shown if len(shown) <= _LONGEST_ERROR else f"{shown[:_LONGEST_ERROR]}…"
