"""What an image says about running it: program, arguments, environment, user, working directory.

Why it exists: `run --image` has to do what a container engine does with the same image and the same options.
Sources: image-spec, config.md; moby, `docker run` (an entrypoint given by the user drops the image's cmd).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinbox import foreign_text
from thinbox.container.platform import ARCHITECTURE, is_ours, normal_architecture, normal_system
from thinbox.errors import InputError, RootfsError

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What moby and podman set if the image has none."""

_MAX_WORDS = 4096


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image's configuration; an empty `user` is root. `diff_ids` are the hashes of the uncompressed layers."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    user: str = ""
    workdir: str = "/"
    volumes: tuple[str, ...] = ()
    diff_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user wants otherwise: None, or nothing, keeps what the image says.

    `entrypoint` is one program, or words; an empty one removes the image's. `environment` holds NAME=VALUE.
    """

    entrypoint: tuple[str, ...] | None = None
    environment: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: `command` with `environment`, in `workdir`, as `user` ("" is root, looked up; None is root)."""

    command: tuple[str, ...]
    environment: tuple[str, ...]
    user: str | None
    workdir: str


def plan_launch(config: ImageConfig, arguments: Sequence[str], overrides: Overrides) -> Launch:
    """Return what to start. `arguments` replace the image's cmd; a new entrypoint drops it too.

    Raises RootfsError if that leaves no program.
    """
    entrypoint, cmd = config.entrypoint, tuple(arguments) or config.cmd
    if overrides.entrypoint is not None:
        entrypoint, cmd = overrides.entrypoint, tuple(arguments)
    command = entrypoint + cmd
    if not command:
        raise RootfsError("the image names no program to run; give one: thinbox run --image … -- PROGRAM ARG…")
    values: dict[str, str] = {}
    for pair in (DEFAULT_PATH, *config.environment, *overrides.environment):
        name, _equals, value = pair.partition("=")
        values[name] = value
    environment = tuple(f"{name}={value}" for name, value in values.items())
    user = config.user if overrides.user is None else overrides.user
    workdir = config.workdir if overrides.workdir is None else overrides.workdir
    return Launch(command, environment, user, workdir or "/")


def parse_json(data: bytes, what: str) -> Any:
    """Return the JSON value in `data`; RootfsError naming `what` for anything else."""
    try:
        return foreign_text.parse_json(data, what)
    except InputError as error:
        raise RootfsError(str(error)) from error


def parse_config(data: bytes, what: str) -> ImageConfig:
    """Return the configuration in an image's config blob; raises RootfsError for another system or a wrong shape."""
    value = require_mapping(parse_json(data, what), what)
    if not is_ours(value):
        system, machine = normal_system(value.get("os")), normal_architecture(value.get("architecture"))
        raise RootfsError(f"the image is for {system!s:.40}/{machine!s:.40}; thinbox runs linux/{ARCHITECTURE}")
    config = require_mapping(value.get("config") or {}, what)
    rootfs = require_mapping(value.get("rootfs") or {}, what)
    environment = _words(config, "Env", what)
    if any("=" not in pair or pair.startswith("=") for pair in environment):
        raise RootfsError(f"{what}: Env holds something that is not NAME=VALUE")
    return ImageConfig(
        entrypoint=_words(config, "Entrypoint", what),
        cmd=_words(config, "Cmd", what),
        environment=environment,
        user=_text(config, "User", what),
        workdir=_text(config, "WorkingDir", what) or "/",
        volumes=tuple(_checked(name, "Volumes", what) for name in require_mapping(config.get("Volumes") or {}, what)),
        diff_ids=_words(rootfs, "diff_ids", what),
    )


def require_mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Return `value` if it is a JSON object; RootfsError naming `what` otherwise."""
    if not isinstance(value, dict):
        raise RootfsError(f"{what}: a JSON object was expected, not {type(value).__name__}")
    return value


def _words(value: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    words = value.get(key)
    if words is None:
        return ()
    if not isinstance(words, list) or len(words) > _MAX_WORDS:
        raise RootfsError(f"{what}: {key} is not a list of at most {_MAX_WORDS} words")
    return tuple(_checked(word, key, what) for word in words)


def _text(value: Mapping[str, Any], key: str, what: str) -> str:
    return _checked(value.get(key) or "", key, what)


def _checked(word: Any, key: str, what: str) -> str:
    """Return `word` if the guest can be given it: text without NUL that has bytes."""
    if not isinstance(word, str) or "\0" in word:
        raise RootfsError(f"{what}: {key} holds something that is not text")
    try:
        word.encode("utf-8", "surrogateescape")
    except UnicodeError as error:
        raise RootfsError(f"{what}: {key} holds text that is not Unicode") from error
    return word
