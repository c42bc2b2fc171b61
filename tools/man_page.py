"""A command's man page, in roff's man macros (man(7) of groff)."""

import re
from collections.abc import Iterator

from thinbox import __version__
from tools.manual import Block, Manual, Option

_STATUS = (
    ("the program's own", "It ended; 128 + N if signal N ended it."),
    ("137", "thinbox killed a task of it, or SIGKILL ended it."),
    ("126, 127", "The program cannot be executed; it, or its interpreter or loader, is not there."),
    ("1", "A check of the command's own failed: its page says which."),
    ("2", "Bad usage or input."),
    ("3", "The machine failed."),
    ("130", "Interrupted."),
)


def render_man_page(manual: Manual, others: tuple[str, ...]) -> str:
    """Return the man page of one command, section 1. `others` are pages to name under SEE ALSO."""
    lines = [
        '.\\" Made by `make docs-commands` from the command itself; do not edit.',
        f'.TH {_quoted(manual.name.upper())} 1 "" {_quoted(f"thinbox {__version__}")} "User Commands"',
        ".SH NAME",
        f"{_escape(manual.name)} \\- {_escape(manual.summary)}",
        ".SH SYNOPSIS",
        _usage(manual),
        ".SH DESCRIPTION",
        *_blocks(manual.blocks),
    ]
    if manual.options:
        lines += [".SH OPTIONS", *_options(manual.options)]
    if manual.children:
        lines.append(".SH COMMANDS")
    for child in manual.children:
        if manual.path == "thinbox":
            lines += [".TP", f"\\fB{_escape(child.name)}\\fR(1)", _line(child.summary)]
        else:
            lines += [".SS " + _escape(child.path), _usage(child), ".PP", *_blocks(child.blocks)]
            lines += _options(child.options)
    lines += [".SH EXIT STATUS"]
    for status, meaning in _STATUS:
        lines += [".TP", f"\\fB{_escape(status)}\\fR", _line(meaning)]
    lines += [".SH SEE ALSO", ", ".join(f"\\fB{_escape(name)}\\fR(1)" for name in others)]
    return "\n".join(lines) + "\n"


def _usage(manual: Manual) -> str:
    rest = manual.usage.removeprefix(manual.path)
    return f"\\fB{_escape(manual.path)}\\fR{_escape(rest)}"


def _blocks(blocks: tuple[Block, ...]) -> Iterator[str]:
    for block in blocks:
        if block.is_code:
            yield from (".PP", ".RS 4", ".nf", *map(_line, block.text.splitlines()), ".fi", ".RE")
        else:
            yield from (".PP", _line(block.text))


def _options(options: tuple[Option, ...]) -> Iterator[str]:
    for option in options:
        default = f" Default: {option.default}." if option.default else ""
        yield from (".TP", f"\\fB{_escape(option.spelling)}\\fR", _line((option.help + default).strip()))


def _line(text: str) -> str:
    """Return one line of text: a dot or a quote at its start would be a request."""
    escaped = _escape(re.sub(r"`([^`]*)`", r"\1", text))
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def _escape(text: str) -> str:
    """Return text that roff prints as it is: hyphens stay ASCII, so that a command can be copied."""
    table = {"\\": "\\e", "-": "\\-", "~": "\\(ti", "^": "\\(ha", "`": "\\(ga", "…": "...", "'": "\\(aq"}
    return "".join(table.get(character, character) for character in text)


def _quoted(text: str) -> str:
    return '"' + _escape(text).replace('"', "\\(dq") + '"'
