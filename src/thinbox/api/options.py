"""The options of the public API, and how they become those of a session.

Rules of this file: what a user may give is wide (a str for a path, a dict of variables, a name for a plan); what leaves
here is what `session.options` takes.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict

from thinbox.errors import InputError
from thinbox.session.options import RunOptions, TenantSpec, require_command

if TYPE_CHECKING:
    from typing import Unpack

    from thinbox.container.config import Launch
    from thinbox.isolation.policies import Policy
    from thinbox.sandbox.plan import Plan

PathLike = str | os.PathLike[str]


class Options(TypedDict, total=False):
    """How a program runs; each may be left out.

    `policy` ("live") is a name, several joined by `+`, or a policy object; `isolate` ("all") is all, none or names of
    calls separated by commas; `view` is none, permissive or strict; `on_violation` ("oops") is undo, oops or stop.
    `plan` is a plan, its file, or the name of one that comes with thinbox; `prefault` a profile's file. The root is
    `rootfs`, a folder or archive, or `image`, a container image; `user` a name or number, `env` variables beside the
    default ones, `workdir` where it starts, `stdin` bytes or a binary stream. `memory_bytes` and `tasks` limit it.
    `modules` are kernel modules to load, with what they need, from the kernel's package or `modules_from`, a folder or
    package; ["auto"] loads what the kernel asks for. `disk` is a disk of its own at /disk, "64M" or "64M:ext4".
    `faults` keeps every granted page, `coverage` the functions and pages of each call, `surface` measures what each
    call leaves to an exploit.
    """

    policy: "str | Policy"
    isolate: str
    view: str
    on_violation: str
    plan: "Plan | PathLike | None"
    prefault: PathLike | None
    rootfs: PathLike | None
    image: PathLike | None
    user: str | None
    env: Mapping[str, str] | None
    workdir: str | None
    stdin: bytes | BinaryIO | None
    memory_bytes: int | None
    tasks: int | None
    modules: Sequence[str]
    modules_from: PathLike | None
    disk: str | None
    faults: bool
    coverage: bool
    surface: bool


_PLAIN = ("policy", "isolate", "view", "on_violation", "user", "stdin", "memory_bytes", "tasks", "disk", "coverage")


@dataclass(frozen=True, init=False)
class Tenant:
    """One tenant for `Guest.run_tenants`: its name, what it runs, and `Options` of its own.

    Left out, its view is permissive: with others beside it, it does not see their data.
    """

    name: str
    command: tuple[str, ...]
    options: Options

    def __init__(self, name: str, command: Sequence[str], **options: "Unpack[Options]") -> None:
        """InputError for an option there is not."""
        require_known(options)
        object.__setattr__(self, "name", name)
        object.__setattr__(
            self, "command", tuple(require_command(command)) if command or not options.get("image") else ()
        )
        object.__setattr__(self, "options", options)


def require_known(options: Mapping[str, Any]) -> None:
    """Raise InputError for a name that is no option, with the nearest one."""
    for name in options:
        if name not in Options.__annotations__:
            near = difflib.get_close_matches(name, Options.__annotations__, 1)
            raise InputError(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def run_options(command: Sequence[str], options: Options, level: int) -> tuple[tuple[str, ...], RunOptions]:
    """Return the words to run and the options of a program alone, on a CPU of `level`."""
    words, values = _values(command, options, level)
    return words, RunOptions(**values)


def tenant_spec(tenant: Tenant, level: int) -> TenantSpec:
    """Return what a session takes of a tenant, on a CPU of `level`."""
    words, values = _values(tenant.command, tenant.options, level)
    return TenantSpec(tenant.name, words, **values)


def _values(command: Sequence[str], options: Options, level: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    require_known(options)
    values: dict[str, Any] = {name: options[name] for name in _PLAIN if name in options}  # type: ignore[literal-required]
    values["keep_faults"] = bool(options.get("faults") or options.get("surface"))
    root, image = options.get("rootfs"), options.get("image")
    if root is not None and image is not None:
        raise InputError("image and rootfs exclude each other: a tenant has one root")
    if root is not None:
        values["rootfs"] = Path(root)
    modules, folder = options.get("modules", ()), options.get("modules_from")
    values["modules"] = modules if isinstance(modules, str) else tuple(modules)
    if folder is not None:
        values["modules_from"] = Path(folder)
    launch = _launch(command, options, level)
    if image is not None:
        values["image"] = _image(image, options.get("workdir"), level)
    values |= {"environment": launch.environment, "user": launch.user, "workdir": launch.workdir}
    plan, prefault = options.get("plan"), options.get("prefault")
    if plan is not None:
        values["plan"] = _plan(plan)
    if prefault is not None:
        from thinbox.records.profile import KnownPages

        values["prefault"] = KnownPages.load(Path(prefault))
    return launch.command, values


def _image(image: PathLike, workdir: str | None, level: int) -> Any:
    from thinbox.container.image import load_image

    return load_image(os.fspath(image), workdir, level=level)


def _launch(command: Sequence[str], options: Options, level: int) -> "Launch":
    """Return what to start: with an image, its own program, variables, user and folder where nothing else is said."""
    from thinbox.container.config import Launch, Overrides
    from thinbox.guest.tenant import TenantOptions

    env = options.get("env") or {}
    if not isinstance(env, Mapping):
        raise InputError(f"env is a dict of variables, not {env!r}")
    pairs = tuple(f"{name}={value}" for name, value in env.items())
    user, workdir, image = options.get("user"), options.get("workdir"), options.get("image")
    if image is not None:
        words = () if not isinstance(command, str) and not command else require_command(command)
        overrides = Overrides(environment=pairs, user=user, workdir=workdir)
        found: Launch = _image(image, workdir, level).launch(words, overrides)
        return found
    values = dict(pair.split("=", 1) for pair in TenantOptions(("",)).environment)
    if user is not None:
        del values["HOME"]  # it will be that user's
    environment = tuple(f"{name}={value}" for name, value in (values | dict(env)).items())
    return Launch(require_command(command), environment, user, workdir or "/")


def _plan(plan: Any) -> "Plan":
    from thinbox.sandbox.plan import Plan
    from thinbox.sandbox.plan_file import load_plan

    return plan if isinstance(plan, Plan) else load_plan(os.fspath(plan))


__all__ = ["Options", "PathLike", "Tenant", "require_known", "run_options", "tenant_spec"]
