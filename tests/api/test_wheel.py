"""A wheel, installed in an environment of its own outside the tree, has all that the commands need."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import thinbox
from thinbox.cli import COMMANDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 500


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=LIMIT_S)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel and, from the one that runs the tests, what it depends on: but not this tree."""
    folder = tmp_path_factory.mktemp("empty") / "env"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel],
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def test_the_wheel_brings_a_man_page_for_each_command(installed):
    found = {path.name for path in (installed / "share" / "man" / "man1").iterdir()}
    assert found == {"thinbox.1", *(f"thinbox-{name}.1" for name in COMMANDS)}


def run_in(folder, *words):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [folder / "bin" / words[0], *map(str, words[1:])],
        cwd=folder.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_the_wheel_has_types_data_version_and_addresses(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    package = ROOT / "src" / "thinbox"
    wanted = {
        f"thinbox/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert "thinbox/py.typed" in wanted and wanted <= names
    headers = Parser().parsestr(text)
    assert headers["Version"] == thinbox.__version__ and headers.get_all("Project-URL")
    places = [
        path
        for path in ROOT.rglob("*.toml")
        if f'"{thinbox.__version__}"' in path.read_text() and ".venv" not in path.parts
    ]
    assert not places, "the version stands in thinbox/__init__.py only"


@pytest.mark.usefixtures("guest")  # the default kernel is cached
def test_an_installed_wheel_runs_the_commands(installed):
    where = run_in(installed, "python", "-c", "import thinbox; print(thinbox.__file__)")
    assert where.stdout.startswith(str(installed)), where.stderr
    done = run_in(installed, "thinbox", "run", "-q", "--json", "run.json", "--", "id", "-u")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    done = run_in(installed, "thinbox", "audit", "-q", "--json", "audit.json", "getpid")
    assert done.returncode == 0, done.stderr
    words = ("attack", "-q", "--policy", "none,live", "--json", "attack.json", "rop-commit-creds")
    done = run_in(installed, "thinbox", *words)
    assert done.returncode == 0, done.stderr
    outcomes = [row["outcome"] for row in json.loads((installed.parent / "attack.json").read_text())["rows"]]
    assert outcomes == ["succeeded", "detected"]
    done = run_in(installed, "thinbox", "report", "run.json", "audit.json", "attack.json", "-o", "page.html")
    assert done.returncode == 0, done.stderr
    assert "rop-commit-creds" in (installed.parent / "page.html").read_text()
    done = run_in(installed, "python", "-c", "import thinbox; print(thinbox.boot().run(['id', '-u']).check().text)")
    assert done.stdout == "0\n\n", done.stderr
