"""Plans as TOML, schema `thinbox.plan/1`: parsed strictly, rendered for people.

Why it exists: the schema is promised to readers; it is read and written here only (docs/plan.md describes it).

Rules of this file:
- Whatever is not understood is refused with one line that names file, line and remedy; nothing is ignored.
- Of the host only regular files below the plan's folder are read, no link is followed on the way.
- Sources: TOML 1.0 (`foreign_text`); the parser keeps no line numbers, so those come from a look at the text.
"""

import errno as errno_module
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinbox.errors import InputError
from thinbox.foreign_text import MAX_TOML_BYTES, parse_toml
from thinbox.host.files import read_below, read_file, show
from thinbox.sandbox.arguments import WORD, value_names, width_mask
from thinbox.sandbox.plan import Answer, Condition, Disposition, OwnedFile, Phase, Plan, Rule, argument_index
from thinbox.syscalls.table import call_info, call_number

SCHEMA = "thinbox.plan/1"
SHIPPED = Path(__file__).parent.parent / "data" / "plans"
_TOP = frozenset({"schema", "name", "source", "date", "default", "compat", "seed", "phase_marker", "file", "calls"})
_RULE = frozenset({"do", "errno", "emulate", "otherwise", "when", "phase", "reason", "evidence"})
_FILE = frozenset({"path", "from", "text"})
_CONDITION = frozenset({"mask", "is"})
_HANDLER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
DEFAULT_ERRNO = errno_module.ENOSYS
"""What `deny` alone gives: C libraries try an older call then, as on a kernel that lacks it."""
LARGEST_FILE_BYTES = 64 << 20
ALL_FILES_BYTES = 128 << 20
MOST_FILES = 1024
"""Of the files a sandbox owns; they are answered from memory."""
ReadBytes = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an error is: the plan's name, and a line of it (0: unknown)."""

    origin: str
    line: int

    def wrong(self, what: str) -> InputError:
        return InputError(f"plan {self.origin}{f', line {self.line}' if self.line else ''}: {what}")


def load_plan(name: str) -> Plan:
    """Return a plan that ships with thinbox (`nabla`, `gvisor-ptrace-sentry`, …) or the one in file `name`.

    Raises:
        InputError: no such plan, or it is not understood.
    """
    shipped = SHIPPED / f"{name}.toml"
    path = shipped if "/" not in name and not name.endswith(".toml") and shipped.is_file() else Path(name)
    try:
        text = read_file(path, MAX_TOML_BYTES)
    except InputError as error:
        known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
        raise InputError(f"no plan {show(name)}: {error}; thinbox brings {known}") from error
    return parse_plan(text, show(name), lambda file: read_below(path.parent, file, LARGEST_FILE_BYTES))


def parse_plan(text: str | bytes, origin: str, read: ReadBytes) -> Plan:
    """Return the plan in `text`; `read` gives the bytes of a host file named by it; InputError otherwise."""
    data = parse_toml(text, f"plan {origin}")
    lines = _Lines(text if isinstance(text, str) else text.decode())
    top = _Place(origin, 0)
    if data.get("schema") != SCHEMA:
        raise top.wrong(f"schema is {data.get('schema')!r}; this thinbox reads {SCHEMA!r}")
    _require_known(data, _TOP, top, "key")
    for key in ("name", "source", "date"):
        if not isinstance(data.get(key, ""), str):
            raise _Place(origin, lines.of_key(key)).wrong(f"{key} must be a string")
    default = _answer(data.get("default", "deny"), _Place(origin, lines.of_key("default")))
    compat = _answer(data.get("compat", "deny"), _Place(origin, lines.of_key("compat")))
    for key, answer in (("default", default), ("compat", compat)):
        if answer.disposition is Disposition.EMULATE:
            raise _Place(origin, lines.of_key(key)).wrong(f"{key} cannot be emulate; name the calls to emulate")
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise _Place(origin, lines.of_key("seed")).wrong("seed must be an integer")
    calls = data.get("calls", {})
    if not isinstance(calls, dict):
        raise top.wrong("calls must be a table")
    rules: dict[int, tuple[Rule, ...]] = {}
    for name, value in calls.items():
        place = _Place(origin, lines.of_call(name, 0))
        nr = _number(name, place)
        if isinstance(value, list) and not value:
            raise place.wrong(f"{name} has an empty list of rules")
        entries = value if isinstance(value, list) else [value]
        rules[nr] = tuple(_rule(nr, e, _Place(origin, lines.of_call(name, i))) for i, e in enumerate(entries))
    return Plan(
        name=data.get("name", Path(origin).stem),
        rules=rules,
        default=default,
        compat=compat,
        seed=seed,
        marker=_marker(data.get("phase_marker", []), _Place(origin, lines.of_key("phase_marker"))),
        files=_files(data.get("file", []), top, read),
        default_line=lines.of_key("default"),
        compat_line=lines.of_key("compat"),
        source=data.get("source", ""),
        date=data.get("date", ""),
    )


def _require_known(table: dict[str, Any], known: frozenset[str], place: _Place, what: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise place.wrong(f"unknown {what} {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _number(name: str, place: _Place) -> int:
    try:
        return call_number(name)
    except InputError as error:
        raise place.wrong(str(error)) from None


def _marker(value: Any, place: _Place) -> tuple[int, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise place.wrong("phase_marker must be the name of a call, or a list of names")
    return tuple(_number(name, place) for name in names)


def _files(value: Any, place: _Place, read: ReadBytes) -> tuple[OwnedFile, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise place.wrong("files are written as [[file]] tables")
    if len(value) > MOST_FILES:
        raise place.wrong(f"it has {len(value)} files; at most {MOST_FILES} are read")
    out, left_bytes = [], ALL_FILES_BYTES
    for entry in value:
        _require_known(entry, _FILE, place, "key of a file")
        path, origin, text = entry.get("path"), entry.get("from"), entry.get("text")
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise place.wrong("a file needs path, an absolute one")
        if (isinstance(origin, str), isinstance(text, str)) not in ((True, False), (False, True)):
            raise place.wrong(f"file {path} needs either from (a file of the host) or text")
        try:
            data = text.encode() if isinstance(text, str) else read(str(origin))
        except (InputError, ValueError) as error:  # ValueError: a surrogate in `text`
            raise place.wrong(f"file {path}: {error}") from error
        left_bytes -= len(data)
        if left_bytes < 0:
            raise place.wrong(f"its files have more than {ALL_FILES_BYTES >> 20} MiB together")
        out.append(OwnedFile(path, data, origin or ""))
    return tuple(out)


def _answer(value: Any, place: _Place) -> Answer:
    """Read an answer: `"isolate"`, `"deny"`, `"deny:EPERM"` and so on."""
    if not isinstance(value, str):
        raise place.wrong(f"a disposition is written as a string, not {value!r}")
    word, colon, detail = value.partition(":")
    try:
        disposition = Disposition(word)
    except ValueError:
        raise place.wrong(f"{word!r} is no disposition; use {', '.join(Disposition)}") from None
    if disposition is Disposition.DENY:
        return Answer(disposition, _errno(detail, place) if colon else DEFAULT_ERRNO)
    if colon:
        raise place.wrong(f"only deny takes an errno (deny:EPERM), not {word}")
    return Answer(disposition)


def _errno(value: Any, place: _Place) -> int:
    number = getattr(errno_module, value, None) if isinstance(value, str) and value.startswith("E") else value
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 4095:  # MAX_ERRNO, err.h
        raise place.wrong(f"{value!r} is no errno; write a name such as EPERM")
    return number


def _rule(nr: int, value: Any, place: _Place) -> Rule:
    if isinstance(value, str):
        return Rule(nr, _checked(nr, _answer(value, place), place), line=place.line)
    if not isinstance(value, dict):
        raise place.wrong(f"a call takes a disposition, a table or a list of tables, not {value!r}")
    _require_known(value, _RULE, place, "key of a rule")
    handler = value.get("emulate", "")
    if ("do" in value) == ("emulate" in value):
        raise place.wrong("a rule needs do (a disposition) or emulate (package.module:function), and not both")
    if "emulate" in value:
        if not isinstance(handler, str) or not _HANDLER.fullmatch(handler):
            raise place.wrong(f"emulate takes package.module:function, not {handler!r}")
        answer = Answer(Disposition.EMULATE, handler=handler)
    else:
        answer = _answer(value["do"], place)
    if "errno" in value:
        if answer.disposition is not Disposition.DENY:
            raise place.wrong("errno goes with deny only")
        answer = Answer(Disposition.DENY, _errno(value["errno"], place))
    otherwise = _answer(value["otherwise"], place) if "otherwise" in value else None
    if otherwise and (answer.disposition is not Disposition.EMULATE or otherwise.disposition is Disposition.EMULATE):
        raise place.wrong("otherwise goes with emulate, and is isolate, pass, deny or kill")
    try:
        phase = Phase(value.get("phase", "always"))
    except ValueError:
        raise place.wrong(f"{value['phase']!r} is no phase; use {', '.join(Phase)}") from None
    reason, evidence = value.get("reason", ""), value.get("evidence", {})
    if not isinstance(reason, str) or not isinstance(evidence, dict):
        raise place.wrong("reason is a string and evidence a table")
    when = _conditions(nr, value.get("when", {}), place)
    return Rule(nr, _checked(nr, answer, place), when, otherwise, phase, place.line, reason, evidence)


def _checked(nr: int, answer: Answer, place: _Place) -> Answer:
    if answer.disposition is Disposition.EMULATE and not answer.handler:
        from thinbox.sandbox.handlers import HANDLERS

        info = call_info(nr)
        if info is not None and info.name not in HANDLERS:
            raise place.wrong(f'thinbox has no emulation of {info.name}; write emulate = "package.module:function"')
    return answer


def _conditions(nr: int, value: Any, place: _Place) -> tuple[Condition, ...]:
    info = call_info(nr)
    if not isinstance(value, dict) or info is None:
        raise place.wrong("when is a table of arguments and their values")
    out = []
    for name, wanted in value.items():
        index = argument_index(nr, name)
        if index is None:
            known = ", ".join(argument.name for argument in info.args) or "none"
            raise place.wrong(f"{info.name} has no argument {name!r}; it has {known}")
        width = width_mask(nr, index)
        if isinstance(wanted, dict):
            _require_known(wanted, _CONDITION, place, "key of a condition")
            if set(wanted) != _CONDITION:
                raise place.wrong(f"{name} needs mask and is")
            mask = _value(info.name, index, wanted["mask"], place) & width
            wanted = wanted["is"]
        else:
            mask = width
        values = wanted if isinstance(wanted, list) else [wanted]
        if not values:
            raise place.wrong(f"{name} has an empty list of values")
        numbers = tuple(_value(info.name, index, v, place) & width for v in values)
        if any(number & ~mask for number in numbers):
            raise place.wrong(f"a value of {name} has bits outside its mask and would never match")
        out.append(Condition(index, name, mask, numbers))
    return tuple(out)


def _value(call: str, index: int, value: Any, place: _Place) -> int:
    """Read a number, a name, or names joined by `|`; `~` before it all inverts."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(1 << 63) <= value <= WORD:
            raise place.wrong(f"{value} does not fit into a register")
        return value & WORD
    if not isinstance(value, str):
        raise place.wrong(f"{value!r} is no value of an argument")
    text = value.removeprefix("~")
    names, total = value_names(call, index), 0
    for word in text.split("|"):
        if word in names:
            total |= names[word]
            continue
        try:
            total |= int(word, 0)
        except ValueError:
            hint = f"; known are {', '.join(names)}" if names else "; write a number"
            raise place.wrong(f"{word!r} is not known as a value here{hint}") from None
    return (~total if value.startswith("~") else total) & WORD


class _Lines:
    """Finds the lines of keys: `name = …`, `[calls.name]`, `[[calls.name]]`."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()

    def of_key(self, key: str) -> int:
        """Return the line of a top-level key, 0 if it is not there."""
        pattern = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=")
        for number, line in enumerate(self._lines, 1):
            if line.lstrip().startswith("["):
                break
            if pattern.match(line):
                return number
        return 0

    def of_call(self, name: str, nth: int) -> int:
        """Return the line of a call's `nth` rule, 0 if it was written in a way that is not seen through."""
        quoted = rf"[\"']?{re.escape(name)}[\"']?"
        inline = re.compile(rf"\s*(calls\s*\.\s*)?{quoted}\s*=")
        header = re.compile(rf"\s*\[\[?\s*calls\s*\.\s*{quoted}\s*\]\]?")
        found = [n for n, line in enumerate(self._lines, 1) if header.match(line)]
        if not found:
            start = next((n for n, line in enumerate(self._lines) if re.match(r"\s*\[\s*calls\s*\]", line)), 0)
            found = [n for n, line in enumerate(self._lines[start:], start + 1) if inline.match(line)][:1]
            if found and (nth or self._lines[found[0] - 1].rstrip().endswith("[")):
                return self._inside(found[0], nth)
        return found[nth] if nth < len(found) else (found[0] if found else 0)

    def _inside(self, first: int, nth: int) -> int:
        """Return the line of the `nth` table of a list that begins in line `first`, if each stands in a line of its
        own."""
        openings = [first + i for i, line in enumerate(self._lines[first:], 1) if line.lstrip().startswith("{")]
        return openings[nth] if nth < len(openings) else first
