"""What `run` starts: the user's words, or a container image's, or both.

Why it exists: with an image, program, environment, user and directory come from it unless the user says otherwise.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from thinbox.cli.progress import ProgressLine
from thinbox.container.config import Launch, Overrides, parse_json
from thinbox.errors import InputError

if TYPE_CHECKING:
    from thinbox.container.image import ContainerImage
    from thinbox.guest.terminal import Terminal


def require_something_to_run(options: Mapping[str, Any]) -> None:
    """Raise a usage error unless there is a program or an image, and options that fit."""
    if not options["command"] and not options["image"]:
        raise click.UsageError("Missing argument '-- PROGRAM ARG…', or --image.", click.get_current_context())
    require_options_that_fit(options)


def require_options_that_fit(options: Mapping[str, Any]) -> None:
    """Raise a usage error if there are two root file systems, or an entrypoint without an image."""
    if options["image"] and options["rootfs"]:
        raise click.UsageError("--image and --rootfs exclude each other.", click.get_current_context())
    if options["entrypoint"] is not None and not options["image"]:
        raise click.UsageError("--entrypoint goes with --image.", click.get_current_context())


def load_tenant_image(options: Mapping[str, Any], progress: ProgressLine) -> "ContainerImage | None":
    """Return the image of --image, read and checked; raises RootfsError."""
    if not options["image"]:
        return None
    from thinbox.container.image import load_image
    from thinbox.machine.cpu_model import cpu_model

    progress.say(f"reading {options['image']}")
    image = load_image(options["image"], options["workdir"], level=cpu_model(options["cpu"]).level)
    _overridden(image, options)  # nothing to run is said before a kernel is fetched
    return image


def plan_tenant(image: "ContainerImage | None", options: Mapping[str, Any], terminal: "Terminal | None") -> Launch:
    """Return what to start; without an image, `user` is None if nobody asked for one."""
    term = os.environ.get("TERM") if terminal is not None else None
    if image is not None:
        launch = _overridden(image, options)
        has_term = terminal is None or any(pair.startswith("TERM=") for pair in launch.environment)
        return launch if has_term else replace(launch, environment=(*launch.environment, f"TERM={term or 'xterm'}"))
    from thinbox.guest.tenant import TenantOptions

    values = dict(pair.split("=", 1) for pair in TenantOptions(("",)).environment)
    if options["user"] is not None:
        del values["HOME"]  # it will be that user's
    values |= {"TERM": term} if term else {}
    values |= dict(pair.split("=", 1) for pair in _pairs(options["environment"]))
    environment = tuple(f"{name}={value}" for name, value in values.items())
    return Launch(options["command"], environment, options["user"], options["workdir"] or "/")


def _overridden(image: "ContainerImage", options: Mapping[str, Any]) -> Launch:
    overrides = Overrides(
        entrypoint=parse_entrypoint(options["entrypoint"]),
        environment=_pairs(options["environment"]),
        user=options["user"],
        workdir=options["workdir"],
    )
    return image.launch(options["command"], overrides)


def parse_entrypoint(text: str | None) -> tuple[str, ...] | None:
    """Return the words of --entrypoint: a program, nothing (the image's is removed), or, as podman does, a JSON list.

    Raises InputError for JSON that is no list of words.
    """
    if text is None or not text.startswith("["):
        return None if text is None else tuple(filter(None, (text,)))
    words = parse_json(text.encode(), "--entrypoint")
    if not all(isinstance(word, str) for word in words):
        raise InputError("--entrypoint takes a program or a JSON list of words")
    return tuple(words)


def _pairs(pairs: tuple[str, ...]) -> tuple[str, ...]:
    for pair in pairs:
        name, equals, _value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--env takes NAME=VALUE, not {pair!r}")
    return pairs
