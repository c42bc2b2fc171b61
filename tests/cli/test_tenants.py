"""Tenants on the command line: what is read, and how output is kept apart."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest
from click.testing import CliRunner
from thinbox.cli import group
from thinbox.cli.tenants import Prefixed, file_output, load_tenants, parse_tenants
from thinbox.errors import InputError


WRONG = (
    "workdir = 3", "memory_bytes = 'x'", "tasks = -1", "tasks = true", "policy = 3", "stdin = 3", "env = 3",
    "env = {A = 1}", "rootfs = 3", "on_violation = 'bogus'", "isolate = ['x']",
)  # fmt: skip
HERE = (
    "--plan",
    "--image",
    "--entrypoint",
    "--user",
    "--env",
    "--prefault",
    "--save-profile",
    "--record",
    "--coverage",
)


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


@pytest.mark.parametrize("option", HERE)
def test_an_option_that_would_not_be_kept_is_refused(tmp_path, option):
    done = CliRunner().invoke(group, ["run", "-q", option, "A=b", "--tenant", "a=id"])
    assert isinstance(done.exception, InputError) and f"{option}: for one tenant only" in str(done.exception)
    done = CliRunner().invoke(group, ["run", "-q", "--events", "--surface", "--tenant", "a=id"])
    assert "--events and --surface" in str(done.exception)


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
    assert (tenants["web"]["policy"], tenants["batch"]["policy"]) == ("sci+transfer", "sci")
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
