"""Options that several commands share."""

from collections.abc import Callable
from typing import Any

import click

from thinbox.boot.params import DEFAULT_MEMORY_MIB


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --kernel, --memory, --append and --quiet."""
    for option in (
        click.option("--quiet", "-q", is_flag=True, help="Say nothing on stderr but errors."),
        click.option("--append", default="", metavar="WORDS", help="Words added to the kernel command line."),
        click.option(
            "--memory", default=DEFAULT_MEMORY_MIB, show_default=True, metavar="MIB", help="Guest memory in MiB."
        ),
        click.option(
            "--kernel",
            "kernel_spec",
            metavar="K",
            help="A bzImage, a vmlinux, a Debian package file, or a release. [default: Debian's newest cloud kernel]",
        ),
    ):
        command = option(command)
    return command
