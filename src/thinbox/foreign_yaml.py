"""YAML that others wrote: parsed within bounds to what JSON has, or refused with one exception.

Why it exists: `yaml.safe_load` recurses, makes dates and sets of plain words, and lets nine short lines of aliases
stand for a billion values. Manifests of Kubernetes need none of that.

Rules of this file:
- The result is made of what JSON has, at most `MAX_DEPTH` deep, integers of at most 64 bits, every key a string and
  once; or the exception is `InputError`, of one line that begins with what is read.
- No I/O: `host.files` reads the bytes.

Source: YAML 1.2.2, "10.3. Core Schema"; of YAML 1.1 what sigs.k8s.io/yaml keeps (`yes`, `on`, octal with a leading 0).
"""

import re
from collections.abc import Iterator
from typing import Any

from thinbox.errors import InputError
from thinbox.foreign_text import MAX_DEPTH

MAX_YAML_BYTES = 4 << 20
"""libyaml reads about 3 MB/s; a manifest that lists every call with a comment has 100 KiB."""
MAX_YAML_VALUES = 200_000
"""Values, those that aliases repeat counted each time."""

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_INTEGER = re.compile(r"[-+]?(?:0x[0-9a-fA-F]{1,16}|0o[0-7]{1,22}|0b[01]{1,64}|0[0-7]{1,22}|0|[1-9][0-9]{0,19})")
_NUMBER = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_STRING_TAG = "tag:yaml.org,2002:str"


def parse_yaml(data: bytes | str, what: str) -> list[Any]:
    """Return the documents of the YAML text `data`; `what` names it in messages.

    Raises:
        InputError: anything else than YAML within the bounds; merge keys (`<<`) and tags but `!!str` are not read.
    """
    import yaml  # 20 ms of every start otherwise

    try:
        if len(data) > MAX_YAML_BYTES:
            raise ValueError(f"it is larger than {MAX_YAML_BYTES >> 20} MiB")  # noqa: TRY301
        events = yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return list(_documents(events))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise _refusal(what, where + str(getattr(error, "problem", None) or error)) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise _refusal(what, str(error)) from error


def _refusal(what: str, why: str) -> InputError:
    shown = "".join(char if char.isprintable() else " " for char in " ".join(why.split()))
    return InputError(f"{what} is no YAML that is read here: {shown[:200]}")


class _Builder:
    """One document: containers that are open, values by anchor, how many values there are."""

    def __init__(self) -> None:
        self.root: list[Any] = []
        self.open: list[tuple[Any, str, list[Any]]] = []
        self.anchors: dict[str, tuple[Any, int, int]] = {}
        self.starts: list[int] = []
        self.count = 0

    @property
    def wants_key(self) -> bool:
        """Whether the next value is a mapping's key."""
        return bool(self.open) and isinstance(self.open[-1][0], dict) and not self.open[-1][2]

    def put(self, value: Any, *, values: int = 1) -> None:
        self.count += values
        if self.count > MAX_YAML_VALUES:
            raise ValueError(f"it has more than {MAX_YAML_VALUES} values")
        if not self.open:
            self.root.append(value)
            return
        container, _anchor, key = self.open[-1]
        if isinstance(container, list):
            container.append(value)
        elif not key:
            if not isinstance(value, str):
                raise ValueError(  # noqa: TRY004 - it becomes one InputError
                    f"a key is no word: {str(value)[:60]!r}"
                )
            if value == "<<":
                raise ValueError("merge keys (<<) are not read; write the keys out")
            if value in container:
                raise ValueError(f"it has the key {value[:60]!r} twice in one mapping")
            key.append(value)
        else:
            container[key.pop()] = value

    def begin(self, container: Any, anchor: str) -> None:
        if len(self.open) >= MAX_DEPTH:
            raise ValueError(f"it is nested too deeply; {MAX_DEPTH} levels are read")
        self.starts.append(self.count)
        self.open.append((container, anchor, []))

    def end(self) -> None:
        container, anchor, _key = self.open.pop()
        values = self.count - self.starts.pop() + 1
        self.put(container)
        if anchor:
            self.anchors[anchor] = (container, values, _depth(container))

    def repeat(self, anchor: str) -> None:
        if anchor not in self.anchors:
            raise ValueError(f"the alias *{anchor[:60]} stands for nothing before it")
        value, values, depth = self.anchors[anchor]
        if len(self.open) + depth > MAX_DEPTH:
            raise ValueError(f"it is nested too deeply; {MAX_DEPTH} levels are read")
        self.put(value, values=values)


def _depth(value: Any) -> int:
    """Return how many containers lie in each other; `value` has at most `MAX_DEPTH`."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            break
        seen = {id(inner): inner for inner in level}  # an alias is looked into once
        level = [x for inner in seen.values() for x in (inner.values() if isinstance(inner, dict) else inner)]
    return depth


def _documents(events: Iterator[Any]) -> Iterator[Any]:
    import yaml

    made = _Builder()
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            made = _Builder()
        elif isinstance(event, yaml.DocumentEndEvent):
            yield made.root[0] if made.root else None
        elif isinstance(event, yaml.AliasEvent):
            made.repeat(event.anchor)
        elif isinstance(event, yaml.ScalarEvent):
            value = _text(event) if made.wants_key else _scalar(event)
            made.put(value)
            if event.anchor:
                made.anchors[event.anchor] = (value, 1, 0)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if event.tag not in (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
                raise ValueError(f"the tag {event.tag[:60]!r} is not read")
            made.begin({} if isinstance(event, yaml.MappingStartEvent) else [], event.anchor or "")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            made.end()


def _text(event: Any) -> str:
    text: str = event.value
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("it has text that is not Unicode (a lone surrogate)")
    if event.tag not in (None, "!", _STRING_TAG):
        raise ValueError(f"the tag {event.tag[:60]!r} is not read")
    return text


def _scalar(event: Any) -> Any:
    text = _text(event)
    if event.style or event.tag:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if _NUMBER.fullmatch(text):
        value = float("nan") if "n" in text.lower() else float(text)  # .inf and .nan are none that JSON has
        if value - value != 0:
            raise ValueError(f"it has {text[:20]}, a number that is too large, or none")
        return value
    return text


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.removeprefix("+"))
    octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    value = sign * int(digits, 8 if octal else 0)
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError("it has an integer of more than 64 bits")
    return value
