"""Several tenants on the command line: a file of them, their output kept apart, their records in one JSON object.

Why it exists: `thinbox run FILE.toml` and `--tenant NAME=COMMAND` share options, output and exit status.

Rules of this file:
- Every line of output has its tenant's name before it; with `--output DIR` each stream goes to a file of its own.
- The exit status is that of the first tenant, in the order given, whose status is not 0.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinbox.errors import InputError
from thinbox.host.files import load_toml, require_below

if TYPE_CHECKING:
    from thinbox.session.session import RunResult
    from thinbox.session.several import TenantSpec

SCHEMA = "thinbox.tenants/1"
_STREAMS = {1: "stdout", 2: "stderr"}


def parse_tenants(texts: Sequence[str], defaults: dict[str, Any]) -> "list[TenantSpec]":
    """Return the tenants of `--tenant NAME=COMMAND` options; a command is split as a shell does."""
    from thinbox.session.several import TenantSpec

    specs = []
    for text in texts:
        name, equals, command = text.partition("=")
        if not equals:
            raise InputError(f"--tenant takes NAME=COMMAND, not {text!r}")
        specs.append(TenantSpec(name, tuple(_split(command)), **defaults))
    return specs


def load_tenants(path: Path, defaults: dict[str, Any]) -> "list[TenantSpec]":
    """Load a file of tenants: a table `[tenant.NAME]` for each, with the fields of `TenantSpec`.

    `command` is a list of words, or a string that is split as a shell does; `rootfs` lies below the file's folder (one
    elsewhere is for the user to name, with --rootfs); `env` is a table of variables.

    Raises:
        InputError: it cannot be read, or says what there is not.
    """
    from thinbox.guest.tenant import TenantOptions
    from thinbox.session.several import TenantSpec

    tenants = load_toml(path).get("tenant")
    if not isinstance(tenants, dict) or not tenants:
        raise InputError(f"{path} has no tenants; it needs a table [tenant.NAME] with a command for each")
    known = {each.name for each in fields(TenantSpec)} - {"name", "environment", "keep_faults"} | {"env"}
    specs = []
    for name, table in tenants.items():
        if not isinstance(table, dict) or not table.keys() <= known:
            unknown = ", ".join(sorted(table.keys() - known)) if isinstance(table, dict) else "no table"
            raise InputError(f"{path}, tenant {name}: {unknown}; use {', '.join(sorted(known))}")
        _require_kinds(f"{path}, tenant {name}", table)
        values = defaults | table
        values["command"] = tuple(_split(values.get("command", ())))
        if "rootfs" in table:
            values["rootfs"] = _beside(path, table["rootfs"], f"{path}, tenant {name}: rootfs")
        if isinstance(values.get("stdin"), str):
            values["stdin"] = values["stdin"].encode()
        if (env := values.pop("env", None)) is not None:
            own = dict(entry.split("=", 1) for entry in TenantOptions(("",)).environment)
            values["environment"] = tuple(f"{key}={value}" for key, value in (own | env).items())
        specs.append(TenantSpec(name, **values))
    return specs


def _beside(path: Path, name: str, what: str) -> Path:
    """Return the root file system `name` below the folder of the file `path`; InputError if a link leads out of it."""
    place = path.parent / require_below(name, what)
    if not place.resolve().is_relative_to(path.parent.resolve()):
        require_below("..", what)
    return place


def _require_kinds(where: str, table: dict[str, Any]) -> None:
    """Raise InputError for a field that is not what it should be."""
    for key, value in table.items():
        if key == "command":
            words = value if isinstance(value, list) else [value]
            good, wanted = all(isinstance(word, str) for word in words), "a string or a list of words"
        elif key == "env":
            good = isinstance(value, dict) and all(isinstance(word, str) for word in value.values())
            wanted = "a table of strings"
        elif key in ("memory_bytes", "tasks"):
            good, wanted = type(value) is int and value > 0, "a number above 0"
        else:
            good, wanted = isinstance(value, str), "a string"
        if not good:
            raise InputError(f"{where}: {key} is {wanted}, not {value!r}")


def _split(command: "str | Sequence[str]") -> Sequence[str]:
    try:
        return shlex.split(command) if isinstance(command, str) else list(command)
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot take {command!r} as a command: {error}") from error


class Prefixed:
    """Writes the tenants' output, each line with its tenant's name before it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._width = max(len(name) for name in names)
        self._rest: dict[tuple[str, int], bytes] = {}

    def take(self, name: str, stream: int, data: bytes) -> None:
        """Write whole lines; keep the rest until its end comes."""
        *lines, rest = (self._rest.get((name, stream), b"") + data).split(b"\n")
        self._rest[name, stream] = rest
        self._write(name, stream, lines)

    def end(self) -> None:
        """Write what came without an end of line."""
        for (name, stream), rest in self._rest.items():
            if rest:
                self._write(name, stream, [rest])
        self._rest.clear()

    def _write(self, name: str, stream: int, lines: list[bytes]) -> None:
        text = b"".join(name.ljust(self._width).encode() + b" | " + line + b"\n" for line in lines)
        view = memoryview(text)
        while view:
            view = view[os.write(stream, view) :]


def file_output(folder: Path) -> Callable[[str, int, bytes], None]:
    """Return an output that writes `folder`/NAME.stdout and NAME.stderr anew; `InputError` if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}") from error

    begun: set[Path] = set()

    def take(name: str, stream: int, data: bytes) -> None:
        path = folder / f"{name}.{_STREAMS[stream]}"
        try:
            # What an earlier run left there is not this one's.
            with path.open("ab" if path in begun else "wb") as file:
                file.write(data)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        begun.add(path)

    return take


def tenants_json(results: "dict[str, RunResult]") -> dict[str, Any]:
    """Return the object of `--json`: each tenant's is that of a run (`thinbox.run/1`)."""
    tenants = {name: result.record.to_json() for name, result in results.items()}
    kernel = next(iter(tenants.values()))["kernel"]
    return {"schema": SCHEMA, "kernel": kernel, "exit_code": exit_status(results), "tenants": tenants}


def exit_status(results: "dict[str, RunResult]") -> int:
    """Return the first tenant's status that is not 0, or 0."""
    return next((result.exit_code for result in results.values() if result.exit_code), 0)


__all__ = ["Prefixed", "exit_status", "file_output", "load_tenants", "parse_tenants", "tenants_json"]
