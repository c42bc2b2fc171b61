"""The exported profile enforced by this machine's own kernel: bubblewrap with the compiled program, runc with the JSON."""

import json
import shutil
import subprocess

import pytest
from thinbox.errors import InputError
from thinbox.planning import worlds
from thinbox.planning.evidence import gather_evidence
from thinbox.planning.exports.bpf import render_bpf
from thinbox.planning.exports.oci import seccomp_object
from thinbox.planning.filters import make_filter
from thinbox.planning.make_plan import PlanOptions, make_plan
from thinbox.planning.runtime_calls import find_runtimes
from thinbox.sandbox.plan_file import parse_plan
from thinbox.session.session import RunOptions, run

COMMAND = ["sh", "-c", "echo hello | wc -c; id -u; ls / | sort | head -3; cat /etc/hostname; exit 7"]
EXPECTED = b"6\n0\nbin\ndev\netc\nthinbox\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    worlds.make_busybox_root(folder)
    (folder / "etc" / "hostname").write_text("thinbox\n")
    return folder


@pytest.fixture(scope="module")
def native(root):
    """Skips where this machine has no bubblewrap, or does not let it make namespaces."""
    try:
        plain = worlds.run_native(root, COMMAND)
    except InputError as error:
        pytest.skip(str(error))
    if plain.exit_code != 7:
        pytest.skip(f"bubblewrap cannot run here: {plain.stderr.decode(errors='replace').strip()}")
    assert plain.stdout == EXPECTED
    return plain


@pytest.fixture(scope="module")
def evidence(guest, root):
    result = run(guest, COMMAND, RunOptions(rootfs=root))
    assert (result.exit_code, result.stdout) == (7, EXPECTED)
    return gather_evidence([json.loads(json.dumps(result.record.to_json()))])


def program(plan):
    return render_bpf(make_filter(plan, find_runtimes(("exec",))))


def test_the_program_runs_to_its_end_under_its_own_profile(native, evidence, root):
    for strict in (False, True):
        plan = make_plan(evidence, PlanOptions(strict=strict))
        under = worlds.run_native(root, COMMAND, program=program(plan))
        assert (under.exit_code, under.stdout) == (7, EXPECTED), under.stderr


def test_a_call_outside_the_profile_fails_as_the_profile_says(native, evidence, root):
    stray = ["sh", "-c", "mkdir /tmp/x; echo $?; echo on"]
    denied = worlds.run_native(root, stray, program=program(make_plan(evidence, PlanOptions())))
    assert denied.stdout == b"1\non\n" and b"Function not implemented" in denied.stderr
    killed = worlds.run_native(root, stray, program=program(make_plan(evidence, PlanOptions(strict=True))))
    assert killed.stdout == b"159\non\n"
    assert worlds.run_native(root, stray).stdout == b"0\non\n"


def test_an_argument_outside_the_profile_fails_as_the_profile_says(native, root):
    text = """schema = "thinbox.plan/1"
default = "deny:EPERM"
[calls]
"""
    names = "read write close openat fstat newfstatat mmap mprotect brk exit_group execve arch_prctl set_tid_address prctl rt_sigaction rt_sigprocmask set_robust_list rseq prlimit64 readlink getrandom getuid geteuid dup2 clone fork wait4 getpid getppid uname getcwd rt_sigreturn ioctl poll setsockopt connect bind sendto lseek fcntl getsockname stat fchdir chdir"
    text += "".join(f'{name} = "isolate"\n' for name in names.split())
    inside = text + 'socket = { do = "isolate", when = { family = "AF_INET" } }\n'
    unix_only = text + 'socket = { do = "isolate", when = { family = "AF_UNIX" } }\n'
    command = ["sh", "-c", "nc -w 1 127.0.0.1 9"]
    for plan, says in ((inside, b"can't connect"), (unix_only, b"Operation not permitted")):
        ran = worlds.run_native(root, command, program=program(parse_plan(plan, "p", None)))
        assert says in ran.stderr, ran.stderr


def test_runc_starts_the_program_and_the_profile_holds(evidence, root, tmp_path):
    runc = shutil.which("runc")
    if runc is None:
        pytest.skip("runc is not installed: apt install runc")
    subprocess.run([runc, "spec"], cwd=tmp_path, check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["root"] = {"path": str(root), "readonly": True}
    config["process"] |= {"terminal": False, "noNewPrivileges": True}
    config["linux"].pop("resources", None)

    def start(name, command, profile):
        config["process"]["args"] = command
        config["linux"].pop("seccomp", None)
        if profile:
            config["linux"]["seccomp"] = profile
        (tmp_path / "config.json").write_text(json.dumps(config))
        words = [runc, "--root", str(tmp_path / "state"), "run", f"thinbox-test-{name}"]
        return subprocess.run(
            words, cwd=tmp_path, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False
        )

    plain = start("plain", COMMAND, None)
    if plain.returncode != 7:
        pytest.skip(f"runc cannot run here: {plain.stderr.decode(errors='replace').strip()[-200:]}")
    profile = seccomp_object(make_filter(make_plan(evidence, PlanOptions()), find_runtimes(("runc-nnp",))))
    under = start("under", COMMAND, profile)
    assert (under.returncode, under.stdout) == (7, EXPECTED), under.stderr
    stray = start("stray", ["sh", "-c", "chmod 700 /proc/self/x; uptime; mkdir /dev/shm/x; echo $?"], profile)
    assert stray.stdout.endswith(b"1\n") and b"mkdir" in stray.stderr and b"Function not implemented" in stray.stderr
    without = make_filter(make_plan(evidence, PlanOptions()))
    assert start("without", COMMAND, seccomp_object(without)).returncode != 7
