"""Several tenants on the command line: a file of them, their output kept apart, their records in one JSON object.

Why it exists: `thinbox run FILE.toml` and `--tenant NAME=COMMAND` share options, output and exit status.

Rules of this file:
- Every line of output has its tenant's name before it; with `--output DIR` each stream goes to a file of its own.
- The exit status is that of the first tenant, in the order given, whose status is not 0.
"""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinbox.errors import InputError
from thinbox.host.files import load_toml, require_below

if TYPE_CHECKING:
    from thinbox.container.image import ContainerImage
    from thinbox.session.options import TenantSpec

_STREAMS = {1: "stdout", 2: "stderr"}
_FIELDS = (
    "command", "policy", "isolate", "view", "on_violation", "rootfs", "image", "entrypoint", "user", "env", "workdir",
    "stdin", "memory_bytes", "tasks", "plan", "prefault", "modules", "disk",
)  # fmt: skip
"""What a table `[tenant.NAME]` may have."""
_PATHS = ("rootfs", "image", "prefault", "plan")
"""Relative to the file that names them; a plan may be one that comes with thinbox, too."""
Say = Callable[[str], None]


def parse_tenants(texts: Sequence[str], defaults: dict[str, Any], say: Say | None = None) -> "list[TenantSpec]":
    """Return the tenants of `--tenant NAME=COMMAND` options; a command is split as a shell does.

    With an image among `defaults` the command may be empty: the image's own.
    """
    specs = []
    images: dict[str, ContainerImage] = {}
    for text in texts:
        name, equals, command = text.partition("=")
        if not equals:
            raise InputError(f"--tenant takes NAME=COMMAND, not {text!r}")
        specs.append(_spec(name, defaults | {"command": tuple(_split(command))}, images, say))
    return specs


def load_tenants(path: Path, defaults: dict[str, Any], say: Say | None = None) -> "list[TenantSpec]":
    """Load a file of tenants: a table `[tenant.NAME]` for each, with `_FIELDS`.

    `command` is a list of words, or a string that is split as a shell does; `rootfs` lies below the file's folder (one
    elsewhere is for the user to name, with --rootfs); `env` is a table of variables.

    Raises:
        InputError: it cannot be read, or says what there is not.
    """
    tenants = load_toml(path).get("tenant")
    if not isinstance(tenants, dict) or not tenants:
        raise InputError(f"{path} has no tenants; it needs a table [tenant.NAME] with a command for each")
    specs = []
    images: dict[str, ContainerImage] = {}
    for name, table in tenants.items():
        if not isinstance(table, dict) or not table.keys() <= set(_FIELDS):
            unknown = ", ".join(sorted(table.keys() - set(_FIELDS))) if isinstance(table, dict) else "no table"
            raise InputError(f"{path}, tenant {name}: {unknown}; use {', '.join(sorted(_FIELDS))}")
        _require_kinds(f"{path}, tenant {name}", table)
        if {"rootfs", "image"} <= table.keys():
            raise InputError(f"{path}, tenant {name}: image and rootfs exclude each other: a tenant has one root")
        values = dict(defaults)
        for other in ("rootfs", "image"):
            if other in table:
                values |= {"rootfs": None, "image": None}  # its own root, not the command line's
        where = f"{path}, tenant {name}"
        values |= table | {key: _place(path, where, key, table[key]) for key in _PATHS if key in table}
        values["command"] = tuple(_split(values.get("command", ())))
        if "modules" in table:
            values["modules"] = (*defaults.get("modules", ()), *table["modules"])
        if "entrypoint" in table:
            values["entrypoint"] = json.dumps(list(_split(table["entrypoint"])))
        if isinstance(values.get("stdin"), str):
            values["stdin"] = values["stdin"].encode()
        if "env" in table:
            values["env"] = (*defaults.get("env", ()), *(f"{key}={value}" for key, value in table["env"].items()))
        specs.append(_spec(name, values, images, say))
    return specs


def _beside(path: Path, name: str, what: str) -> Path:
    """Return the root file system `name` below the folder of the file `path`; InputError if a link leads out of it."""
    place = path.parent / require_below(name, what)
    if not place.resolve().is_relative_to(path.parent.resolve()):
        require_below("..", what)
    return place


def _place(path: Path, where: str, key: str, value: str) -> Path | str:
    """Return what a field names: roots and images lie below the file's folder, profiles and plans beside it."""
    if key in ("rootfs", "image"):
        place = _beside(path, value, f"{where}: {key}")
        return str(place) if key == "image" else place
    place = path.parent / value
    if key == "plan":
        return str(place) if place.exists() else value
    return place


def _spec(
    name: str, values: dict[str, Any], images: "dict[str, ContainerImage]", say: Say | None = None
) -> "TenantSpec":
    """Return the tenant: its image, plan and profile read, its program, user and folder what image and user say."""
    from thinbox.cli.tenant import plan_tenant
    from thinbox.container.image import load_image
    from thinbox.machine.cpu_model import DEFAULT_CPU, cpu_model
    from thinbox.records.profile import KnownPages
    from thinbox.sandbox.plan_file import load_plan
    from thinbox.session.options import TenantSpec

    image_name, workdir = values.get("image"), values.get("workdir")
    image = None
    if image_name is not None:
        key = f"{image_name} {workdir}"
        if key not in images:
            if say:
                say(f"reading {image_name}")
            images[key] = load_image(image_name, workdir, level=cpu_model(values.get("cpu", DEFAULT_CPU)).level)
        image = images[key]
    elif values.get("entrypoint") is not None:
        raise InputError(f"tenant {name}: entrypoint goes with image; without one, give the whole command")
    asked = {
        "command": values.get("command", ()),
        "entrypoint": values.get("entrypoint"),
        "environment": tuple(values.get("env", ())),
        "user": values.get("user"),
        "workdir": workdir,
    }
    launch = plan_tenant(image, asked, None)
    plan, prefault = values.get("plan"), values.get("prefault")
    kept = (
        *("policy", "isolate", "view", "on_violation", "rootfs", "stdin", "memory_bytes", "tasks"),
        *("modules", "modules_from", "disk"),
    )
    return TenantSpec(
        name,
        launch.command,
        image=image,
        user=launch.user,
        environment=launch.environment,
        workdir=launch.workdir,
        plan=None if plan is None else load_plan(plan),
        prefault=None if prefault is None else KnownPages.load(prefault),
        coverage=values.get("coverage", False),
        keep_faults=values.get("keep_faults", False),
        **{key: values[key] for key in kept if key in values},
    )


def _require_kinds(where: str, table: dict[str, Any]) -> None:
    """Raise InputError for a field that is not what it should be."""
    for key, value in table.items():
        if key in ("command", "entrypoint"):
            words = value if isinstance(value, list) else [value]
            good, wanted = all(isinstance(word, str) for word in words), "a string or a list of words"
        elif key == "modules":
            good, wanted = isinstance(value, list) and all(isinstance(word, str) for word in value), "a list of names"
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


__all__ = ["Prefixed", "file_output", "load_tenants", "parse_tenants"]
