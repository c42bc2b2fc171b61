"""One workload for all engines: its root file system, and what thinbox saw of it."""

import json

import pytest
from planning.workload import COMMAND, EXPECTED
from thinbox.planning import worlds
from thinbox.planning.evidence import gather_evidence
from thinbox.session.session import RunOptions, run


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    worlds.make_busybox_root(folder)
    (folder / "etc" / "hostname").write_text("thinbox\n")
    return folder


@pytest.fixture(scope="session")
def evidence(guest, root):
    result = run(guest, COMMAND, RunOptions(rootfs=root))
    assert (result.exit_code, result.stdout) == (7, EXPECTED)
    return gather_evidence([json.loads(json.dumps(result.record.to_json()))])
