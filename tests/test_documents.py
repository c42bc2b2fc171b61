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
from thinbox.cli import group

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = ROOT / "README.md"
HANG_S = 600
"""Host time after which a command hangs; those shown here take seconds."""


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def commands():
    """The commands of the README's console blocks, each with the output lines shown below it."""
    found = []
    for line in "".join(blocks(README, "console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_exists(path):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing


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


@pytest.mark.guest
@pytest.mark.parametrize(("command", "shown"), commands(), ids=[command for command, _shown in commands()])
def test_the_readmes_shell_commands_do_what_it_shows(command, shown, tmp_path):
    tool = tmp_path / "thinbox"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m thinbox "$@"\n')
    tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    # What goes to stdout is promised; the place of a kill differs from kernel to kernel.
    assert done.stdout.splitlines() == [line for line in shown if not line.startswith("thinbox: ")], done.stderr
    assert done.stderr.count("\n") == sum(line.startswith("thinbox: ") for line in shown)
