"""The newest kernel of Debian's archive, in short: what breaks first with a new kernel is seen the week it comes.

Run by `make test-newest`, and by no other target: it asks the archive for what may be another kernel every week.
"""

import json

import pytest
from click.testing import CliRunner
from tests.support.newest_kernel import NoNewestKernelError, newest_kernel, version_key
from thinbox.attacks.matrix import MatrixOptions, run_matrix
from thinbox.audit.run import AuditOptions, audit
from thinbox.boot.ready import prepare
from thinbox.cli.kernel import kernel
from thinbox.session.session import RunOptions, run

SCRIPT = """
echo one | wc -c
for number in 1 2 3; do echo $number > /tmp/$number; done
cat /tmp/? | tr '\\n' ' '; mkdir /tmp/folder && mv /tmp/1 /tmp/folder && ls /tmp/folder
(sleep 0.01; echo child) & wait
dd if=/dev/zero of=/tmp/zeros bs=4096 count=4 2>/dev/null && stat -c %s /tmp/zeros
exit 7
"""
SAID = b"4\n1 2 3 1\nchild\n16384\n"
CALLS = ("getpid", "openat", "pipe2", "clone", "execve", "mmap", "mprotect", "futex", "socketpair", "epoll_wait")
BEST, VIEW = "live+guard", "strict"


@pytest.fixture(scope="module")
def newest():
    try:
        return str(newest_kernel())
    except NoNewestKernelError as error:
        pytest.skip(f"needs the newest kernel: {error}")


@pytest.fixture(scope="module")
def booted_newest(newest):
    return prepare(newest)


@pytest.mark.newest
def test_doctor_finds_nothing_missing(newest):
    done = CliRunner().invoke(kernel, ["doctor", newest, "--json", "-"])
    assert done.exit_code == 0, done.output
    assert all(json.loads(done.stdout)["uses"].values())


@pytest.mark.newest
@pytest.mark.parametrize(
    ("policy", "view", "isolate"), [("live", "none", "none"), ("live", "none", "all"), (BEST, VIEW, "all")]
)
def test_a_script_does_the_same_isolated_or_not(booted_newest, policy, view, isolate):
    options = RunOptions(policy=policy, view=view, isolate=isolate)
    result = run(booted_newest, ("sh", "-c", SCRIPT), options)
    assert (result.exit_code, result.stdout) == (7, SAID), result.record.kills


@pytest.mark.newest
def test_no_call_of_a_handful_is_killed_or_differs(booted_newest):
    record = audit(booted_newest, AuditOptions(CALLS, policy=BEST, view=VIEW))
    assert {entry.call for entry in record.entries} == set(CALLS)
    assert [entry.title for entry in record.entries if not entry.exercised or not entry.same] == []


@pytest.mark.newest
def test_two_attacks_succeed_unisolated_and_do_not_under_the_best(booted_newest):
    names = ("rop-commit-creds", "read-memory")
    found = run_matrix(booted_newest, MatrixOptions(names, ("none", BEST), (VIEW,)))
    assert [row.outcome for row in found.rows if row.policy == "none"] == ["succeeded"] * 2, found.rows
    assert [row.outcome for row in found.rows if row.policy == BEST] == ["detected"] * 2, found.rows


def test_versions_are_compared_by_their_numbers():
    versions = ["7.10.1-1", "7.3.4-1~bpo13+1", "7.3-1", "7.3~rc7-1~exp1", "7.2.13-1", "6.18.15-1"]
    assert sorted(reversed(versions), key=version_key, reverse=True) == versions
