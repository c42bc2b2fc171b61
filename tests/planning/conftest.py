"""gVisor, on each platform that can be tried here."""

import tempfile
from pathlib import Path

import pytest
from support.gvisor_binaries import installed_runsc, newer_runsc


@pytest.fixture
def tmp_for_runsc():
    """A folder that runsc's own can be put into, for its path is short and open to all; empty in the end."""
    folder = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    folder.rmdir()


@pytest.fixture(params=["installed, ptrace", "newer, ptrace", "newer, systrap"])
def gvisor(request, monkeypatch, tmp_for_runsc):
    """A binary and a platform; temporary files go to a folder that must be empty in the end."""
    which, platform = request.param.split(", ")
    runsc = installed_runsc() if which == "installed" else newer_runsc()
    if isinstance(runsc, str):
        pytest.skip(runsc)
    if platform not in runsc.platforms:
        pytest.skip(f"runsc {runsc.version} has no platform {platform}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_for_runsc))
    return runsc, platform
