"""Tenants on the command line: what is read, and how output is kept apart."""

import json
import os
import subprocess
import sys

import pytest
from thinbox.cli.tenants import Prefixed, file_output, load_tenants, parse_tenants
from thinbox.errors import InputError


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
        [sys.executable, "-m", "thinbox", *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (3, "a | /\n"), done.stderr
    record = json.loads((tmp_path / "t.json").read_text())
    assert record["schema"] == "thinbox.tenants/1"
    assert [(name, run["policy"], run["view"], run["exit_code"]) for name, run in record["tenants"].items()] == [
        ("a", "live", "permissive", 0),
        ("b", "live", "permissive", 3),
    ]
