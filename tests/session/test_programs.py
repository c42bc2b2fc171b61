"""Programs as they come today: built for x86-64-v2, from PyPI."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.support.debian_rootfs import rootfs_folder
from tests.support.static_elf import build_elf64
from thinbox.cli.results import _illegal_instruction
from thinbox.image.cache import cache_dir
from thinbox.session.session import RunOptions, run

PROGRAM = """
import numpy as np
a = np.arange(2500.0).reshape(50, 50)
print(np.__version__, (a @ a.T).sum(), np.linalg.svd(a)[1][:2], np.sort(np.random.default_rng(1).random(9))[:2])
"""
PLATFORM = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def wheel(name: str) -> Path:
    """The newest wheel of `name` for Debian 12's Python, from PyPI, kept in the cache."""
    folder = cache_dir() / "test-wheels"
    found = sorted(folder.glob(f"{name}-*.whl"))
    if not found:
        platforms = [word for platform in PLATFORM for word in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
        command += ["--python-version", "3.11", "--implementation", "cp", *platforms, name]
        done = subprocess.run(command, capture_output=True, text=True)
        found = sorted(folder.glob(f"{name}-*.whl"))
        if not found:
            pytest.skip(f"{name} cannot be had from PyPI: {done.stderr.strip().splitlines()[-1:]}")
    return found[-1]


@pytest.fixture
def numpy_root(tmp_path):
    root = tmp_path / "root"
    shutil.copytree(rootfs_folder("python3", "libstdc++6"), root, symlinks=True)
    with zipfile.ZipFile(wheel("numpy")) as archive:
        archive.extractall(root / "usr/lib/python3/dist-packages")
    return root


@pytest.mark.slow
def test_numpy_from_pypi_prints_the_same_isolated_and_not(guest, numpy_root):
    command = ["/usr/bin/python3", "-c", PROGRAM]
    plain = run(guest, command, RunOptions(rootfs=numpy_root, isolate="none"))
    isolated = run(guest, command, RunOptions(rootfs=numpy_root, policy="live"))
    assert plain.exit_code == 0, plain.stderr.decode()[-500:]
    assert (isolated.exit_code, isolated.stdout, isolated.record.kills) == (0, plain.stdout, [])
    assert isolated.record.totals["isolated"] == isolated.record.totals["calls"] > 100


def test_who_asks_for_an_instruction_that_is_not_there_is_named(guest):
    """vmovaps ymm0, ymm1: AVX."""
    text = "".join(f"\\{byte:03o}" for byte in build_elf64(bytes.fromhex("c5fc28c1")))
    result = run(guest, ["sh", "-c", f"printf '{text}' >/tmp/avx; chmod 755 /tmp/avx; exec /tmp/avx"])
    assert result.exit_code == 132
    said = _illegal_instruction(result.console)
    assert said.startswith("avx at 0x400078 in avx was ended by SIGILL") and "v2 has no AVX" in said
    assert _illegal_instruction("").startswith("the program was ended by SIGILL")
