"""What is skipped is said once, with what to install."""

import subprocess
import sys

from tests.support.engines import ENGINES
from tests.support.skips import advice
from thinbox.planning.runsc import INSTALL_RUNSC
from thinbox.planning.runtimes import INSTALL_BWRAP

TESTS = """
import pytest

@pytest.mark.parametrize("program", ["crun", "podman crun", "crun"])
def test_engine(program):
    pytest.skip(f"{program} not installed: apt install {program}")

@pytest.mark.skipif(True, reason="no such kernel here")
def test_kernel():
    pass

def test_runs():
    pass
"""


def test_packages_are_named_once_and_other_reasons_with_their_number():
    reasons = ["x not installed: apt install runc libseccomp2", "apt install docker.io", "no cgroups", "no cgroups"]
    assert advice(reasons) == ["2 skipped: apt install docker.io libseccomp2 runc", "2 skipped: no cgroups"]
    assert advice([]) == []
    # A package of another release is no matter of one word more.
    assert advice(["platform x: (apt install -t backports runsc)"])[0].startswith("1 skipped: platform x")


def test_the_reasons_of_the_tests_name_their_packages():
    said = [f"{engine.name}: apt install {engine.packages}" for engine in ENGINES] + [INSTALL_BWRAP, INSTALL_RUNSC]
    (line,) = advice(said)
    assert line.startswith(f"{len(said)} skipped: apt install ")
    assert {"bubblewrap", "conmon", "crun", "docker.io", "podman", "runc", "runsc", "systemd"} <= set(line.split())
    assert line.split()[-1] == "systemd", "no word of the sentence is taken for a package"


def test_a_run_says_it_at_its_end(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.support.skips",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 skipped: apt install crun podman" in lines
    assert "1 skipped: no such kernel here" in lines
