"""Where a policy's or a handler's module comes from: one rule, however thinbox is started."""

import subprocess
import sys
from pathlib import Path

import pytest

from thinbox.errors import InputError, TrustError
from thinbox.host.code import load_object
from thinbox.sandbox.emulation import load_handler
from thinbox.session.session import choose_policy

SOURCE = Path(__file__).resolve().parents[2] / "src"
POLICY = """
import dataclasses

@dataclasses.dataclass
class Mine:
    name: str = "mine"
    grants_all_data = True

    def check_access(self, access, call):
        return None

def handler(call):
    return 0
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that is ours alone."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("thinbox_local_")]:
        del sys.modules[name]


def write(path: Path, text: str = POLICY) -> Path:
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_a_file_of_the_current_folder_is_loaded_by_name(here: Path) -> None:
    write(here / "mypol.py")
    assert choose_policy("mypol:Mine").name == "mine"
    assert choose_policy("sci+mypol:Mine").name == "sci+mine"
    assert load_handler("mypol:handler")(None) == 0
    assert "mypol" not in sys.modules and str(here) not in sys.path


@pytest.mark.parametrize("load", [choose_policy, load_handler])
def test_one_that_others_may_write_is_not(here: Path, load: object) -> None:
    path = write(here / "mypol.py", "raise SystemExit('it ran')")
    for place, mode in ((path, 0o664), (path, 0o646), (here, 0o775), (here, 0o1777)):
        before = place.stat().st_mode & 0o7777
        place.chmod(mode)
        with pytest.raises(TrustError, match="chmod go-w"):
            load("mypol:Mine")
        place.chmod(before)


def test_an_installed_module_goes_first(here: Path) -> None:
    write(here / "json.py", "raise SystemExit('it ran')")
    with pytest.raises(InputError, match=r"\./json.py is another one, and the installed module goes first"):
        load_object("json:Mine", "policy")
    assert load_object("json:dumps", "policy") is sys.modules["json"].dumps


def test_nothing_else_of_the_folder_is_imported(here: Path) -> None:
    write(here / "mypol.py", "import beside")
    write(here / "beside.py", "raise SystemExit('it ran')")
    (here / "package").mkdir()
    write(here / "package" / "mypol.py")
    with pytest.raises(InputError, match="No module named 'beside'"):
        load_object("mypol:Mine", "policy")
    with pytest.raises(InputError, match="No module named 'package'.*PYTHONPATH"):
        load_object("package.mypol:Mine", "policy")


@pytest.mark.parametrize(
    "text",
    [
        "def (",
        "raise ValueError('a\\nb')",
        "raise SystemExit(7)",
        "1/0",
        "raise RecursionError",
        "x = '\\ud800'.encode()",
        "\0",
    ],
)
def test_whatever_a_module_does_is_one_line(here: Path, text: str) -> None:
    write(here / "mypol.py", text)
    with pytest.raises(InputError) as caught:
        load_object("mypol:Mine", "policy")
    assert "\n" not in str(caught.value)


def test_a_class_that_cannot_be_made_is_one_line(here: Path) -> None:
    write(here / "mypol.py", "class Mine:\n    def __init__(self): raise ValueError('no')")
    with pytest.raises(InputError, match="cannot load policy 'mypol:Mine': no"):
        choose_policy("mypol:Mine")


_START = "import sys; sys.argv = ['thinbox', *sys.argv[1:]]; from thinbox.cli import main; main()"
WAYS = {"module": ["-m", "thinbox"], "console script": ["-P", "-c", _START]}


@pytest.mark.parametrize("way", WAYS)
def test_both_ways_to_start_thinbox_import_nothing_of_the_current_folder(here: Path, way: str) -> None:
    """But what Python itself imports to find a module to run (`importlib`), before any line of ours."""
    for name in ("json", "click", "numpy", "tomllib", "dataclasses", "posix", "platformdirs", "thinbox_plugin", "lzo"):
        write(here / f"{name}.py", f"import sys; sys.stderr.write('HOSTILE {name} ran\\n')")
    (here / "r.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, *WAYS[way], "plan", "r.json"], cwd=here, env={"PYTHONPATH": str(SOURCE)}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "HOSTILE" not in done.stderr
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
