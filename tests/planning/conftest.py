"""What tests of plans share: one workload for all engines, and gVisor on each platform that can be tried here."""

import json
import tempfile
from pathlib import Path

import pytest
from tests.planning.workload import COMMAND, EXPECTED
from tests.support.gvisor_binaries import installed_runsc, newer_runsc
from thinbox.planning import runtimes
from thinbox.planning.evidence import gather_evidence
from thinbox.session.session import RunOptions, run


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    runtimes.make_busybox_root(folder)
    (folder / "etc" / "hostname").write_text("thinbox\n")
    return folder


@pytest.fixture(scope="session")
def evidence(guest, root):
    result = run(guest, COMMAND, RunOptions(rootfs=root))
    assert (result.exit_code, result.stdout) == (7, EXPECTED)
    return gather_evidence([json.loads(json.dumps(result.record.to_json()))])


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
