"""Tenants on the command line: what is read, and how output is kept apart."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.cli.test_run_image import busybox_layer as shell_layer
from tests.support.container_image import write_docker_archive
from thinbox.cli import group
from thinbox.cli.tenants import Prefixed, file_output, load_tenants, parse_tenants
from thinbox.errors import InputError
from thinbox.isolation.policies import BUILT_IN


WRONG = (
    "workdir = 3", "memory_bytes = 'x'", "tasks = -1", "tasks = true", "policy = 3", "stdin = 3", "env = 3",
    "env = {A = 1}", "rootfs = 3", "on_violation = 'bogus'", "isolate = ['x']",
)  # fmt: skip


def test_a_file_of_tenants_is_read_with_the_commands_options_as_defaults(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(
        '[tenant.a]\ncommand = "sh -c \'echo 1\'"\nview = "strict"\nrootfs = "root"\nenv = {X = "1"}\n'
        '[tenant.b]\ncommand = ["id"]\nstdin = "in"\nmemory_bytes = 4096\ntasks = 3\n'
    )
    first, second = load_tenants(path, {"view": "permissive", "policy": "patch"})
    assert (first.name, first.command, first.view, first.policy) == ("a", ("sh", "-c", "echo 1"), "strict", "patch")
    assert first.rootfs == tmp_path / "root" and "X=1" in first.environment
    assert (second.command, second.view, second.stdin) == (("id",), "permissive", b"in")
    assert (second.memory_bytes, second.tasks) == (4096, 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tenant = 3",
        "[tenant.a]",
        "[tenant.a]\ncommand = 3",
        "[tenant.a]\ncommand = 'id'\ncolour = 1",
        "[x\n",
        *(f"[tenant.a]\ncommand = 'id'\n{line}" for line in WRONG),
        "\xff",
    ],
)
def test_a_file_that_says_what_there_is_not_is_refused(tmp_path, text):
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError):
        load_tenants(path, {})
    with pytest.raises(InputError):
        load_tenants(tmp_path / "absent.toml", {})


def test_tenants_as_options():
    (spec,) = parse_tenants(["a=sh -c 'echo \"x y\"'"], {})
    assert spec.command == ("sh", "-c", 'echo "x y"')
    for text in ("a", "=id", "a=", "a='"):
        with pytest.raises(InputError):
            parse_tenants([text], {})


def test_lines_of_tenants_are_never_mixed():
    reader, writer = os.pipe()
    prefixed = Prefixed(["a", "long"])
    prefixed.take("a", writer, b"one\ntw")
    prefixed.take("long", writer, b"x\n")
    prefixed.take("a", writer, b"o\nrest")
    prefixed.end()
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert stream.read() == b"a    | one\nlong | x\na    | two\na    | rest\n"


def test_output_in_files_is_byte_for_byte(tmp_path):
    take = file_output(tmp_path / "out")
    take("a", 1, b"\x00\xff")
    take("a", 1, b"more")
    take("a", 2, b"err")
    assert (tmp_path / "out" / "a.stdout").read_bytes() == b"\x00\xffmore"
    assert (tmp_path / "out" / "a.stderr").read_bytes() == b"err"
    file_output(tmp_path / "out")("a", 1, b"again")
    assert (tmp_path / "out" / "a.stdout").read_bytes() == b"again"


def test_the_default_root_is_where_the_user_says_and_a_files_own_beside_it(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text("[tenant.a]\ncommand = 'id'\n[tenant.b]\ncommand = 'id'\nrootfs = 'own'\n")
    first, second = load_tenants(path, {"rootfs": Path("given")})
    assert (first.rootfs, second.rootfs) == (Path("given"), tmp_path / "own")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("-t", "--tenant", "a=id"), "one screen"),
        (("--events", "--json", "x", "--tenant", "a=id"), "pages one CPU touches"),
        (("--tenant", "a=id", "--", "id"), "none behind --"),
        (("--image", "x", "--rootfs", ".", "--tenant", "a=id"), "exclude each other"),
        (("--entrypoint", "x", "--tenant", "a=id"), "goes with --image"),
    ],
)
def test_what_several_tenants_cannot_have_is_refused_with_its_reason(words, reason):
    done = CliRunner().invoke(group, ["run", "-q", *words], standalone_mode=False)
    assert isinstance(done.exception, InputError | click.UsageError) and reason in str(done.exception)


def test_an_option_of_one_value_is_not_given_twice():
    for words in (
        ("--image", "a", "--image", "b"),
        ("--policy", "sci", "--policy", "live"),
        ("-u", "1", "--user", "2"),
    ):
        done = CliRunner().invoke(group, ["run", "-q", *words, "--", "true"], standalone_mode=False)
        assert isinstance(done.exception, click.UsageError) and "given twice" in str(done.exception)


def test_the_help_names_every_policy_that_comes_with_thinbox():
    shown = CliRunner().invoke(group, ["run", "--help"]).output
    assert [name for name in BUILT_IN if name not in shown] == [] and "[default: live]" in shown


PLAN_TEXT = """schema = "thinbox.plan/1"
name = "no-folders"
default = "isolate"
[calls]
mkdir = "deny:EPERM"
"""


def test_each_tenant_has_its_own_plan_image_user_profile_record_and_coverage(guest, tmp_path):
    """What was for one tenant only: each option is kept for each, and one's does not act on the other."""
    (tmp_path / "deny.toml").write_text(PLAN_TEXT)
    write_docker_archive(tmp_path / "image.tar", [shell_layer()], Entrypoint=["sh", "-c"], Cmd=["id -u"], User="app")
    (tmp_path / "three.toml").write_text(
        """
[tenant.planned]
command = "sh -c 'mkdir /tmp/x 2>/dev/null || echo denied'"
plan = "deny.toml"
[tenant.boxed]
image = "image.tar"
command = ["id; pwd; grep nofile /proc/self/limits | wc -l; echo $A; echo out >/dev/stdout; grep -c ' /proc/sys .*ro' /proc/mounts; ls /dev"]
workdir = "/h"
env = {A = "b c"}
[tenant.plain]
command = "sh -c 'mkdir /tmp/x; id -u'"
user = "9:10"
"""
    )
    out, record = tmp_path / "out", tmp_path / "record.json"
    asked = (
        "--record",
        tmp_path / "record",
        "--coverage",
        tmp_path / "cov.json",
        "--save-profile",
        tmp_path / "p.json",
    )
    words = ["run", "-q", "--output", out, "--json", record, *asked, tmp_path / "three.toml"]
    done = CliRunner().invoke(group, [str(word) for word in words])
    texts = {
        name: (out / f"{name}.stdout").read_text()
        for name in ("planned", "boxed", "plain")
        if (out / f"{name}.stdout").exists()
    }
    errors = {name: (out / f"{name}.stderr").read_text() for name in texts if (out / f"{name}.stderr").exists()}
    tenants = json.loads(record.read_text())["tenants"]
    assert done.exit_code == 0, (done.output, done.exception, texts, errors)
    assert texts["plain"] == "9\n"
    lines = texts["boxed"].splitlines()
    assert lines[0].startswith("uid=7(app) gid=8") and lines[1] == "/h" and lines[3:6] == ["b c", "out", "1"], (
        texts,
        errors,
    )
    assert "null" in lines and "urandom" in lines
    assert texts["planned"] == "denied\n" and tenants["planned"]["plan"] == "no-folders"
    assert [refusal["call"] for refusal in tenants["planned"]["refusals"]] == ["mkdir"]
    assert all(not tenants[name]["plan"] and not tenants[name]["refusals"] for name in ("boxed", "plain"))
    assert all(not tenant["kills"] for tenant in tenants.values())
    coverage = json.loads((tmp_path / "cov.json").read_text())["tenants"]
    for name, tenant in tenants.items():
        assert (tmp_path / "record" / name / "calls.parquet").exists()
        assert tenant["events"]["totals"]["sleeps"] == sum(row[3] for row in tenant["events"]["calls"])
        counted = {each["name"]: each["calls"] for each in coverage[name]["calls"]}
        reached = Counter(c["name"] for c in tenant["calls"] if c["verdict"] not in ("denied", "emulated"))
        assert counted == reached
    learned = json.loads((tmp_path / "p.json").read_text())["calls"]
    assert {"execve", "write"} <= set(learned)
    done = CliRunner().invoke(
        group,
        [
            "run",
            "-q",
            "--prefault",
            str(tmp_path / "p.json"),
            "--json",
            str(record),
            "--tenant",
            "a=id",
            "--tenant",
            "b=id",
            "--surface",
        ],
    )
    assert done.exit_code == 0, (done.output, done.exception)
    for tenant in json.loads(record.read_text())["tenants"].values():
        assert sum(call["prefaulted"] for call in tenant["calls"]) > 100
        assert tenant["surface"]["calls"]


def test_the_output_of_one_tenant_goes_to_files_too(guest, tmp_path):
    done = CliRunner().invoke(
        group, ["run", "-q", "--output", str(tmp_path / "out"), "--", "sh", "-c", "echo hello; echo no >&2"]
    )
    assert done.exit_code == 0 and done.output == ""
    assert [(tmp_path / "out" / f"tenant.{name}").read_text() for name in ("stdout", "stderr")] == ["hello\n", "no\n"]


def test_a_program_that_cannot_be_executed_is_one_line_and_a_shells_status(guest, tmp_path):
    (tmp_path / "script").write_text("#!/no/such\n")
    (tmp_path / "script").chmod(0o755)
    words = [sys.executable, "-m", "thinbox", "run", "-q", "--rootfs", str(tmp_path)]
    done = subprocess.run([*words, "--", "/script"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr.splitlines() == [
        "thinbox: cannot run /script: it, or the interpreter or loader it names, is not in the root file system"
    ]
    done = subprocess.run([*words, "--tenant", "a=/script"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 127 and done.stderr.startswith("thinbox: a: cannot run /script")


def test_the_commands_of_the_documents_run(guest, tmp_path):
    """docs/tenants.md, word for word."""
    text = (Path(__file__).parents[2] / "docs" / "tenants.md").read_text()
    (tmp_path / "tenants.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    record, out = tmp_path / "record.json", tmp_path / "out"
    done = CliRunner().invoke(
        group, ["run", "--output", str(out), "--json", str(record), str(tmp_path / "tenants.toml")]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert (out / "web.stdout").read_bytes() == b"hello\n" and (out / "batch.stdout").read_bytes() == b"10\n"
    tenants = json.loads(record.read_text())["tenants"]
    assert (tenants["web"]["policy"], tenants["batch"]["policy"]) == ("sci+transfer", "live")
    words = ["run", "-q", "--output", str(out), "--tenant", 'web=sh -c "echo hello"', "--tenant", "batch=id"]
    done = CliRunner().invoke(group, words)
    assert done.exit_code == 0, (done.output, done.exception)
    assert (out / "batch.stdout").read_bytes() == b"uid=0(root) gid=0(root)\n"


def test_tenants_of_the_command_line_run_and_their_record_has_policy_and_view(tmp_path, guest):
    words = [
        "run",
        "-q",
        "--policy",
        "live",
        "--tenant",
        "a=pwd",
        "--tenant",
        "b=sh -c 'exit 3'",
        "--json",
        tmp_path / "t.json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "thinbox", *map(str, words)], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout) == (3, "a | /\n"), done.stderr
    record = json.loads((tmp_path / "t.json").read_text())
    assert record["schema"] == "thinbox.tenants/1"
    assert [(name, run["policy"], run["view"], run["exit_code"]) for name, run in record["tenants"].items()] == [
        ("a", "live", "permissive", 0),
        ("b", "live", "permissive", 3),
    ]


@pytest.mark.parametrize("root", ["/", "/etc", "..", "a/../..", "link", "link/etc"])
def test_a_file_of_tenants_names_no_root_outside_its_folder(tmp_path, root):
    (tmp_path / "link").symlink_to("/")
    path = tmp_path / "t.toml"
    path.write_text(f"[tenant.a]\ncommand = 'id'\nrootfs = '{root}'\n")
    with pytest.raises(InputError, match="tenant a: rootfs leads out of the folder"):
        load_tenants(path, {})
