"""What a command says of itself, as values: the one source of its page in docs/commands and of its man page.

Why it exists: `thinbox COMMAND --help`, the page and the man page must not differ, so all three come from the command
that click parses by.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

import click

from thinbox.cli import COMMANDS, group

_LEFT_OUT = {"--help"}
"""Every command has it, and the page is what it shows."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option: how it is written, what it does, and what holds without it ("" if nothing is said)."""

    spelling: str
    help: str
    default: str


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph; or, if `is_code`, lines to show as they are."""

    text: str
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Manual:
    """What one command says of itself: `path` is "thinbox run"; the first block of `blocks` says what it is for."""

    path: str
    summary: str
    usage: str
    blocks: tuple[Block, ...]
    options: tuple[Option, ...]
    children: tuple["Manual", ...]

    @property
    def name(self) -> str:
        """The command's name as a file's: thinbox-run."""
        return self.path.replace(" ", "-")


def read_manual() -> Manual:
    """Return the manual of `thinbox` itself; its commands are its children, in the order of `thinbox --help`."""
    context = click.Context(group, info_name="thinbox")
    children = tuple(_read_command(name, group.get_command(context, name), context) for name in COMMANDS)
    return Manual(
        "thinbox",
        "run programs on a real Linux kernel, with every system call isolated",
        "thinbox COMMAND [OPTIONS] …",
        tuple(_blocks(group)),
        tuple(_options(group)),
        children,
    )


def _read_command(name: str, command: click.Command | None, parent: click.Context) -> Manual:
    assert command is not None, name
    context = click.Context(command, info_name=name, parent=parent)
    children: tuple[Manual, ...] = ()
    if isinstance(command, click.Group):
        names = command.list_commands(context)
        children = tuple(_read_command(child, command.get_command(context, child), context) for child in names)
    summary = COMMANDS.get(name) if parent.parent is None else None
    summary = summary or command.get_short_help_str(200)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    return Manual(
        context.command_path,
        summary.rstrip("."),
        usage.replace("[ARGS]...", "[ARG…]"),
        tuple(_blocks(command)),
        tuple(_options(command)),
        children,
    )


def _blocks(command: click.Command) -> Iterator[Block]:
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if not paragraph.startswith("\b\n"):
            yield Block(" ".join(paragraph.split()))
            continue
        lines = paragraph.removeprefix("\b\n").splitlines()
        if lines[0].endswith(":"):
            yield Block(lines.pop(0))
        yield Block(inspect.cleandoc("\n".join(lines)), is_code=True)


def _options(command: click.Command) -> Iterator[Option]:
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden and not _LEFT_OUT & set(param.opts):
            yield _option(param)


def _option(param: click.Option) -> Option:
    spelling = " / ".join(", ".join(sorted(names, key=len)) for names in (param.opts, param.secondary_opts) if names)
    if not param.is_flag:
        spelling += " " + _metavar(param)
    text = " ".join((param.help or "").split())
    default = ""
    if found := re.search(r" *\[default: (.*)\]$", text):
        text, default = text[: found.start()], found[1]
    elif param.show_default:
        default = str(param.default)
    return Option(spelling, text, default)


def _metavar(param: click.Option) -> str:
    if param.metavar:
        return param.metavar
    return "|".join(map(str, param.type.choices)) if isinstance(param.type, click.Choice) else param.type.name.upper()
