"""`thinbox kernel` prints its result on standard output and everything else elsewhere."""

import gzip
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.image.conftest import build_bzimage, build_elf

from thinbox.cli import group as main_group
from thinbox.cli.kernel import kernel
from thinbox.errors import KernelImageError, SourceError
from thinbox.image import KernelFacts, KernelFile, KernelImage
from thinbox.image.types import find_types


def test_info_is_the_default_and_names_the_release(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    plain = CliRunner().invoke(kernel, [])
    assert plain.exit_code == 0
    assert default_facts[1].release in plain.stdout
    assert CliRunner().invoke(kernel, ["info"]).stdout == plain.stdout


def test_info_as_json(default_kernel: KernelFile, tmp_path: Path) -> None:
    result = json.loads(CliRunner().invoke(kernel, ["info", "--json", "-"]).stdout)
    assert result["schema"] == "thinbox.kernel/1"
    assert result["sha256"] == default_kernel.data_sha256
    assert result["syscalls"] > 300
    CliRunner().invoke(kernel, ["info", str(default_kernel.path), "--json", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out").read_text())["sha256"] == result["sha256"]


def test_list_shows_cached_kernels(default_kernel: KernelFile) -> None:
    assert str(default_kernel.path) in CliRunner().invoke(kernel, ["list"]).stdout
    listed = json.loads(CliRunner().invoke(kernel, ["list", "--json", "-"]).stdout)
    assert default_kernel.data_sha256 in {entry["sha256"] for entry in listed["kernels"]}


def test_fetch_away_from_the_archive_is_an_error(fake_archive: Path) -> None:
    (fake_archive / "offline").touch()
    result = CliRunner().invoke(kernel, ["fetch"])
    assert isinstance(result.exception, SourceError)
    assert result.stdout == ""


@pytest.mark.parametrize("command", [[], ["info"], ["list"], ["fetch"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    result = CliRunner().invoke(kernel, [*command, "--help"])
    assert result.exit_code == 0 and "Usage:" in result.stdout


@pytest.mark.guest
def test_every_command_with_a_kernel_takes_the_files_beside_it(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk\n")
    found = []
    for name in main_group.list_commands(click.Context(main_group)):
        command = main_group.get_command(click.Context(main_group), name)
        if command is not None and any("--kernel" in param.opts for param in command.params):
            assert {"--symbols", "--types"} <= {word for param in command.params for word in param.opts}, name
            found.append(name)
    assert {"boot", "run", "audit", "attack", "plan", "compare", "bench"} <= set(found)
    for command in (["boot"], ["run", "-q"], ["kernel", "info"]):
        for option in ("--symbols", "--types"):
            words = [*command, option, str(junk), *(["true"] if command[0] == "run" else [])]
            result = CliRunner().invoke(main_group, words)
            assert isinstance(result.exception, KernelImageError), (command, option, result.output)
            assert "neither" in str(result.exception) and "\n" not in str(result.exception)


@pytest.mark.guest
def test_files_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    for option in ("--symbols", "--types"):
        result = CliRunner().invoke(main_group, ["kernel", "info", option, str(tmp_path / "nothing")])
        assert isinstance(result.exception, KernelImageError) and "nothing" in str(result.exception)


@pytest.mark.guest
def test_what_is_wrong_with_files_beside_a_kernel_is_a_finding(
    default_facts: tuple[KernelImage, KernelFacts], tmp_path: Path
) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk\n")
    result = CliRunner().invoke(main_group, ["kernel", "doctor", "--types", str(junk), "--symbols", str(junk)])
    assert result.exit_code == 1
    assert "symbols: no symbols (" in result.stdout and "types: no types (" in result.stdout, "both at once"
    junk.write_bytes(find_types(default_facts[0])[0].replace(b"\0tcp_", b"\0tcq_"))
    result = CliRunner().invoke(main_group, ["kernel", "doctor", "--types", str(junk)])
    assert result.exit_code == 1 and "not of this kernel" in result.stdout
    result = CliRunner().invoke(main_group, ["kernel", "doctor", "k,types=a", "--types", str(junk)])
    assert isinstance(result.exception, KernelImageError) and "leave --types out" in str(result.exception)


ODD_FILES = {
    "empty": b"",
    "text": b"Linux version 6.1 \n" * 10,
    "gzip of text": gzip.compress(b"hello" * 1000),
    "a damaged archive": b"BZh" + bytes(range(256)) * 4,
    "an object file": build_elf()[:16] + b"\x01\0" + build_elf()[18:],
    "for another machine": build_elf(machine=183),
    "without any name": build_elf(),
    "with a banner alone": build_elf(b"Linux version 6.1.0-odd (x@y) (gcc) #1 SMP now\n".ljust(4096, b"\0")),
    "cut short": build_bzimage(build_elf(), "gzip")[:-200],
    "a bzImage of nothing": build_bzimage(build_elf(), "xz"),
    "a library": build_elf()[:16] + b"\x03\0" + build_elf()[18:] + b"\0KERNEL_BUNDLE\0",
    "half a header": build_elf()[:80],
}


@pytest.mark.parametrize("what", ODD_FILES)
@pytest.mark.parametrize("command", ["doctor", "info"])
def test_no_file_leads_to_anything_but_one_line_or_findings(what: str, command: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(ODD_FILES[what])
    for words in ([], ["--types", str(path)], ["--symbols", str(path)]):
        result = CliRunner().invoke(main_group, ["kernel", command, str(path), *words])
        if isinstance(result.exception, KernelImageError):
            assert "\n" not in str(result.exception) and str(result.exception)
        else:
            assert command == "doctor" and result.exit_code == 1, result.output
            assert "boot           no" in result.stdout and result.stdout.count("\n  so ") >= 2, "all at once"
