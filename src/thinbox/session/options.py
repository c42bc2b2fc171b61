"""What a run is asked for, and what comes of it: options of one tenant, of several, and the result of each.

Why it exists: a program that runs alone and tenants side by side take the same options, written down once.

Rules of this file: a value that cannot be meant is refused here, with `InputError`, before anything is restored.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from thinbox.errors import InputError
from thinbox.guest.disks import parse_disk
from thinbox.guest.terminal import Terminal
from thinbox.isolation.policies import Policy, load_policy
from thinbox.isolation.view_rules import view_rule
from thinbox.records.profile import KnownPages, load_policy_object, read_policy_file
from thinbox.records.run import RunRecord
from thinbox.sandbox.plan import Plan
from thinbox.syscalls.table import call_number

if TYPE_CHECKING:
    from thinbox.container.image import ContainerImage

VIOLATIONS = ("undo", "oops", "stop")
"""What a refused access can lead to (`enforcement.violation_action`)."""
DEFAULT_POLICY = "live"
ALONE = "tenant"
"""Name of a tenant that runs alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """How one tenant is isolated, what it sees, and what is kept of it.

    `policy` is a name or a policy object; `isolate` is "all", "none" or names of calls. The root is `rootfs`, or
    `image` with what container engines mount, or the guest's own; `user` is a name or number, with :group if wanted,
    looked up there (None: root). An image's own command is in `ContainerImage.launch`. With a `plan` it says what
    becomes of each call; `isolate` then counts for the program's start only. `stdin` is a binary stream or bytes; None
    is no input.

    `modules` are kernel modules to load before any tenant starts, with what they need ("auto": what the kernel asks
    for, when it does), of the kernel's package or the folder `modules_from`; they are the whole guest's. `disk` is the
    size of a disk of its own at /disk, "64M" or "64M:ext4".

    `memory_bytes` and `tasks` limit the tenant's cgroup. `coverage` records which functions and pages each call uses,
    in `record.coverage`; `keep_faults` every granted page, in `record.faults`.
    """

    policy: str | Policy = DEFAULT_POLICY
    isolate: str = "all"
    view: str = "none"
    on_violation: str = "oops"
    plan: Plan | None = None
    prefault: KnownPages | None = None
    rootfs: Path | None = None
    image: "ContainerImage | None" = None
    user: str | None = None
    environment: tuple[str, ...] | None = None
    workdir: str = "/"
    stdin: BinaryIO | bytes | None = None
    memory_bytes: int | None = None
    tasks: int | None = None
    modules: tuple[str, ...] = ()
    modules_from: Path | None = None
    disk: str | None = None
    coverage: bool = False
    keep_faults: bool = False

    def require_sense(self, who: str = "") -> None:
        """Raise InputError, which names the tenant by `who`, for a value that cannot be meant."""
        if not isinstance(self.policy, str):  # what a name stands for is loaded once, by the session
            choose_policy(self.policy)
        parse_isolate(self.isolate)
        view_rule(self.view)
        if self.on_violation not in VIOLATIONS:
            raise InputError(f"{who}on_violation is {', '.join(VIOLATIONS)}, not {self.on_violation!r}")
        if not isinstance(self.workdir, str) or not self.workdir.startswith("/"):
            raise InputError(f"{who}workdir is the path of a folder from /, not {self.workdir!r}")
        if self.rootfs is not None and self.image is not None:
            raise InputError(f"{who}image and rootfs exclude each other: a tenant has one root")
        if isinstance(self.stdin, str):
            raise InputError(f"{who}stdin is bytes or a binary stream, not text")
        for name in ("memory_bytes", "tasks"):
            limit = getattr(self, name)
            if limit is not None and (type(limit) is not int or limit <= 0):
                raise InputError(f"{who}{name} is a number above 0, not {limit!r}")
        if isinstance(self.modules, str) or not all(isinstance(name, str) and name for name in self.modules):
            raise InputError(f"{who}modules is a list of names, not {self.modules!r}")
        if self.disk is not None:
            parse_disk(self.disk, who)
        pairs = () if self.environment is None else self.environment
        if isinstance(pairs, str) or not all(isinstance(pair, str) and pair.find("=") > 0 for pair in pairs):
            raise InputError(f"{who}environment is a list of NAME=VALUE, not {pairs!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(Confinement):
    """How to run one program alone.

    `keep_trace` notes every page touched, for `thinbox cost`. With a `terminal`, stdio is one: what the tenant writes
    to it comes as stdout, and `keys` may change, or act on, what is typed. `on_output(stream, bytes)` takes the
    output; `on_machine(machine, enforcer)` sees the guest just before it starts.
    """

    keep_trace: bool = False
    terminal: Terminal | None = None
    keys: Callable[[bytes], bytes] | None = None
    on_output: Callable[[int, bytes], None] | None = None
    on_machine: Callable[..., None] | None = None
    progress: Callable[[str], None] | None = field(default=None)

    def __post_init__(self) -> None:
        self.require_sense()


@dataclass(frozen=True, slots=True)
class TenantSpec(Confinement):
    """One tenant beside others: its name (letters, digits, `-` and `_`; its host name too), what it runs, and how."""

    name: str
    command: tuple[str, ...]
    view: str = field(default="permissive", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise InputError(f"{self.name!r} is no tenant's name; use letters, digits, - and _")
        if not isinstance(self.command, str) and not self.command:
            raise InputError(f"tenant {self.name} has no program to run")
        require_command(self.command)
        self.require_sense(f"tenant {self.name}: ")


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of it; `stdout` and `stderr` are empty if `on_output` took them. `console` is what the kernel printed
    during the run; `not_started` says why the program could not be executed, empty if it was."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    record: RunRecord
    console: str = ""
    not_started: str = ""


def require_command(command: Sequence[Any]) -> tuple[str, ...]:
    """Return the words of a command; `InputError` if it is none.

    One string is refused: whether a shell should split it, and how, is the caller's to say.
    """
    if isinstance(command, str | bytes):
        raise InputError(
            f"a command is a list of words, not the one string {command!r}; "
            f"give {str(command).split()!r}, or ['sh', '-c', …] for a shell"
        )
    words = tuple(os.fspath(word) if isinstance(word, os.PathLike) else word for word in command)
    if not words:
        raise InputError("there is no program to run; use `thinbox run -- PROGRAM ARG…`")
    for word in words:
        if not isinstance(word, str) or "\0" in word:
            raise InputError(f"a command is a list of words, and {word!r} is none")
    return words


def parse_isolate(text: str) -> Callable[[int], bool]:
    """Return the predicate of `--isolate all|none|CALL,…`; `InputError` for an unknown name."""
    if text == "all":
        return lambda _nr: True
    if text == "none":
        return lambda _nr: False
    if not isinstance(text, str):
        raise InputError(f"isolate is all, none, or names of calls separated by commas, not {text!r}")
    chosen = frozenset(call_number(name.strip()) for name in text.split(",") if name.strip())
    if not chosen:
        raise InputError("--isolate takes all, none, or names of calls separated by commas")
    return lambda nr: nr in chosen


def choose_policy(policy: str | Policy) -> Policy:
    """Return the policy of a name, or the one given; `InputError` for a name there is not, or what is no policy."""
    if isinstance(policy, str):
        return load_policy(policy, read_policy_file, load_policy_object)
    if not callable(getattr(policy, "check_access", None)) or not isinstance(getattr(policy, "name", None), str):
        raise InputError(f"{policy!r} is no policy: it lacks a name or check_access(access, call)")
    return policy


__all__ = [
    "ALONE",
    "DEFAULT_POLICY",
    "VIOLATIONS",
    "Confinement",
    "RunOptions",
    "RunResult",
    "TenantSpec",
    "choose_policy",
    "parse_isolate",
    "require_command",
]
