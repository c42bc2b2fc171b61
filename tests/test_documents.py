"""The documents hold: examples run, links lead somewhere, promised tests exist, commands parse."""

import ast
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.pages import broken_links, links, tokens
from thinbox.cli import COMMANDS, group

from tools import site, write_commands

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = ROOT / "README.md"
HANG_S = 600
"""Host time after which a command hangs; those shown here take seconds."""


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


PAGES_OF_COMMANDS = [path for path in DOCUMENTS if "\n```console\n" in path.read_text()]
"""Pages whose console blocks are executed."""
DIFFERS = re.compile(r"\d+\.\d s of host time")
"""What of an output is not the same each time."""
ON_STDERR = ("thinbox: ", "holds: ", "+ ")
"""How lines begin that are shown, but go to stderr."""


def commands(page):
    """The commands of a page's console blocks, each with the output lines shown below it."""
    found = []
    for line in "".join(blocks(page, "console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def shown_lines(text):
    """The lines of an output, without what differs and without spaces nobody sees."""
    return [DIFFERS.sub("host time", line).rstrip() for line in text.splitlines()]


@pytest.mark.guest
@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/policies.md",
        "docs/policies/profile.md",
        "docs/surface.md",
        "docs/audit.md",
        "docs/plan.md",
        "docs/report.md",
        "docs/python.md",
        "docs/extending.md",
    ],
)
def test_the_python_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in blocks(ROOT / name, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, name, "exec"), {"__name__": "example"})
        assert printed.getvalue()
    if name == "docs/policies.md":
        assert printed.getvalue() in blocks(ROOT / name, "text")


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "examples").glob("*.py"))], ids=lambda path: path.name)
def test_documents_and_examples_import_the_public_api_only(path):
    """Also in prose: no sentence sends a reader to an inner module to import."""
    text = path.read_text()
    codes = [text] if path.suffix == ".py" else blocks(path, "python")
    imported = [
        name
        for code in codes
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    assert not [name for name in imported if name and name.startswith("thinbox.")]
    assert not re.findall(r"(?:from|import) thinbox\.\w+", text)


def test_each_part_of_extending_is_under_thirty_lines():
    found = blocks(ROOT / "docs" / "extending.md", "python")
    assert len(found) == 4 and all(len(code.splitlines()) < 30 for code in found)


def test_the_readmes_example_is_under_ten_lines():
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line.strip()]) < 10


def test_the_readme_fits_two_screens():
    assert len(README.read_text().splitlines()) <= 100


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_and_anchor_leads_somewhere(path):
    assert broken_links(path, ROOT) == []


def test_a_broken_link_or_anchor_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# A title: `code`, and so on\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n[a](other.md#a-title-code-and-so-on) [b](#page) [c](https://x/y.md) `[d](no.md)` [e][ref] ![f](no.svg)\n"
        "[g](other.md#twice-1) [h](#no) [i](/etc/passwd)\n\n```\n[j](no.md)\n```\n\n| k |\n|---|\n| [k](no.txt) |\n\n[ref]: gone.md\n"
    )
    assert broken_links(page, tmp_path) == [
        "gone.md", "no.svg", "other.md#twice-1", "#no", "/etc/passwd", "no.txt",
    ]  # fmt: skip


def test_every_page_is_reached_from_the_index():
    index = ROOT / "docs" / "index.md"
    reached, ahead = set(), [index]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        # From the index, and from a folder's own index, no further: a page that only another mentions is not found.
        for target in links(page.read_text()) if page.name == "index.md" else []:
            place = (page.parent / target.partition("#")[0]).resolve()
            if place.suffix == ".md" and place not in reached:
                ahead.append(place)
    assert set(DOCUMENTS) <= reached


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_opens_with_sentences_that_say_what_it_is_for(path):
    title, _inside, _end, *rest = [token for token in tokens(path.read_text()) if token.type != "html_block"]
    assert title.tag == "h1"
    assert rest[0].type == "paragraph_open" and rest[1].content.rstrip().endswith((".", ":"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_list_or_a_table_stands_apart(path):
    """Behind an empty line: what builds the site would else take it for part of the paragraph."""
    lines = path.read_text().splitlines()
    starts = [
        token.map[0]
        for token in tokens(path.read_text())
        if token.type in {"bullet_list_open", "ordered_list_open", "table_open", "fence"} and not token.level
    ]
    assert not [lines[at] for at in starts if at and lines[at - 1].strip()]


@pytest.mark.parametrize("path", write_commands.files(), ids=lambda path: path.name)
def test_pages_of_commands_are_those_of_the_commands(path):
    """If this fails, a command has changed: run `make docs-commands`."""
    assert path.read_text() == write_commands.files()[path]


def test_no_page_is_left_of_a_command_that_is_gone():
    folders = write_commands.FOLDERS
    assert {path for folder in folders for path in folder.iterdir()} == write_commands.files().keys()


def test_a_page_of_a_command_has_each_of_its_options():
    files = {path.name: text for path, text in write_commands.files().items()}
    for name in COMMANDS:
        for param in group.get_command(None, name).params:
            for option in (each for each in (*param.opts, *param.secondary_opts) if each.startswith("-")):
                assert f"{option}" in files[f"thinbox-{name}.md"]
                assert option.replace("-", "\\-") in files[f"thinbox-{name}.1"]


def test_the_site_has_each_page_once_in_its_navigation():
    def pages(entries):
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                yield from pages(entry if isinstance(entry, list) else entry.values())

    named = sorted(pages(site.navigation()))
    assert named == sorted(path.relative_to(ROOT).as_posix() for path in DOCUMENTS)


def test_every_test_the_specification_names_exists():
    links = re.findall(r"\[(test_\w+)\]\((tests/[\w/]+\.py)\)", (ROOT / "SPECIFICATION.md").read_text())
    assert links
    missing = [
        name for name, file in links if not re.search(rf"^\s*def {name}\b", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert not missing


def named_commands(text):
    """The words behind `thinbox` where it is a command: in code, in a line of it after a prompt, a pipe or a path."""
    code = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    # An indented block, as in a list, is code too.
    code += re.findall(r"^ {3,}(\$ .*)$", text, re.MULTILINE)
    return {
        word
        for part in code
        for word in re.findall(r"(?:^|[|;&`$(/]) *thinbox +([a-z][\w-]*)", part, re.MULTILINE)
        if not part.lstrip().startswith(("import ", "from "))
    }


def test_commands_are_found_wherever_a_document_names_one():
    text = "Run `thinbox one` and\n\n   $ thinbox two -- x\n\n```console\n$ echo | thinbox three\n.venv/bin/thinbox four\n```\nthinbox is"
    assert named_commands(text) == {"one", "two", "three", "four"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_a_document_names_exists(path):
    names = named_commands(path.read_text())
    assert names <= set(group.list_commands(None))
    assert path != README or len(names) >= 8


def test_pages_with_commands_to_run_are_found():
    assert README in PAGES_OF_COMMANDS and len(PAGES_OF_COMMANDS) >= 6


@pytest.mark.guest
@pytest.mark.parametrize("page", PAGES_OF_COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_commands_do_what_their_page_shows(page, tmp_path):
    """A page's commands run one after the other in one folder, as its reader runs them."""
    tool = tmp_path / "bin" / "thinbox"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m thinbox "$@"\n')
    tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
    for command, shown in commands(page):
        words = ["bash", "-c", command]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )
        # What goes to stdout is promised; the place of a kill differs from kernel to kernel.
        expected = shown_lines("\n".join(line for line in shown if not line.startswith(ON_STDERR)))
        assert shown_lines(done.stdout) == expected, (command, done.stderr)
        assert done.stderr.count("\n") == sum(line.startswith(ON_STDERR) for line in shown), (command, done.stderr)
