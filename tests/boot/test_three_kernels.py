"""Debian's three flavours boot, and run a tenant isolated: cloud (every other test), generic, and rt."""

import pytest
from thinbox.boot.ready import prepare
from thinbox.image.source import fetch_package
from thinbox.session.session import RunOptions, run

COMMAND = ["sh", "-c", "uname -v; (sleep 0.05; echo late) | cat; ls / | wc -l; cat /proc/self/status | head -3; pwd"]


@pytest.mark.parametrize(
    ("meta", "word"), [("linux-image-amd64", b"PREEMPT_DYNAMIC"), ("linux-image-rt-amd64", b"PREEMPT_RT")]
)
def test_the_flavour_boots_and_runs_a_tenant_the_same_isolated_and_not(meta, word):
    package = fetch_package(meta, follow_dependency_prefix="linux-image-")
    guest = prepare(str(package))
    isolated = run(guest, COMMAND)
    plain = run(guest, COMMAND, RunOptions(isolate="none"))
    assert word in isolated.stdout
    assert isolated.stdout == plain.stdout
    assert (isolated.exit_code, isolated.stderr) == (0, b"")
    totals = isolated.record.totals
    assert totals["isolated"] == totals["calls"] == plain.record.totals["calls"]
    assert totals["killed"] == 0
    assert totals["tables_made"] == totals["tables_freed"] > 3
    assert totals["table_pages_made"] == totals["table_pages_freed"]
