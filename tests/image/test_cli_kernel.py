"""`thinbox kernel` prints its result on standard output and everything else elsewhere."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from thinbox.cli.kernel import kernel
from thinbox.errors import SourceError
from thinbox.image import KernelFacts, KernelFile, KernelImage


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
