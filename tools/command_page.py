"""A command's page in docs/commands, as Markdown."""

import re
from collections.abc import Iterator

from tools.manual import Block, Manual, Option

_NOTE = "<!-- Made by `make docs-commands` from the command itself; do not edit. -->"
GUIDES = {
    "run": (
        "terminal.md",
        "policies.md",
        "tenants.md",
        "images.md",
        "plan.md",
        "views.md",
        "undo.md",
        "coverage.md",
        "surface.md",
    ),
    "audit": ("audit.md", "study.md"),
    "attack": ("attacks.md", "threat-model.md"),
    "cost": ("cost.md",),
    "plan": ("plan.md", "calls.md"),
    "report": ("report.md",),
    "compare": ("plan.md",),
    "bench": ("reference/speed.md",),
}
"""Pages to read beside a command's own; a command without any links to the index of pages only."""
_ALWAYS = ("reference/exit-status.md", "reference/records.md", "index.md")


def render_page(manual: Manual, titles: dict[str, str]) -> str:
    """Return the page of one command. `titles` gives the title of each page of docs, by its path there."""
    parts = [f"# `{manual.path}`", _NOTE, *_body(manual, 2)]
    for child in manual.children:
        parts += [f"## `{child.path}`", *_body(child, 3)]
    parts.append("## See also")
    pages = GUIDES.get(manual.path.removeprefix("thinbox "), ()) + _ALWAYS
    parts.append("\n".join(f"- [{titles[page]}](../{page})" for page in pages))
    return "\n\n".join(parts) + "\n"


def render_list(manual: Manual) -> str:
    """Return the page that lists the commands."""
    lines = [f"| [`{child.path}`]({child.name}.md) | {_prose(child.summary)} |" for child in manual.children]
    return (
        "\n\n".join(
            [
                "# Commands",
                _NOTE,
                (
                    "Look up a command here: what it does, and every option it takes. `thinbox COMMAND --help` prints the same, "
                    "and so does `man thinbox-COMMAND` where the package is installed."
                ),
                "\n".join(["| command | what it does |", "|---|---|", *lines]),
                *_blocks(manual.blocks[1:]),
                "The tutorial is the [README](../../README.md); all pages are in [the index](../index.md).",
            ]
        )
        + "\n"
    )


def _body(manual: Manual, level: int) -> Iterator[str]:
    yield from _blocks(manual.blocks[:1])
    yield f"```text\n{manual.usage}\n```"
    yield from _blocks(manual.blocks[1:])
    if manual.options:
        yield f"{'#' * level} Options" if level == 2 else "Options:"
        yield "\n".join(_option(option) for option in manual.options)


def _blocks(blocks: tuple[Block, ...]) -> Iterator[str]:
    for block in blocks:
        yield f"```sh\n{block.text}\n```" if block.is_code else _prose(block.text)


def _option(option: Option) -> str:
    text = _prose(option.help)
    default = f" Default: {_default(option.default)}." if option.default else ""
    return f"- `{option.spelling}`: {text}{default}" if text else f"- `{option.spelling}`.{default}"


def _default(default: str) -> str:
    return f"`{default}`" if re.fullmatch(r"[\w.,-]+", default) else _prose(default)


def _prose(text: str) -> str:
    """Return text whose characters mean themselves, code left as it is; pages of docs that it names are links."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([\\*_<>\[\]~|])", r"\\\1", part) for part in parts[::2]]
    return re.sub(r"docs/([\w./-]+\.md)", r"[docs/\1](../\1)", "".join(parts))
