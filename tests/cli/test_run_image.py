"""`thinbox run --image` on the command line: options win over the image, what does not fit is said in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.container_image import layer_with, write_docker_archive
from thinbox.image.deb import deb_member
from thinbox.image.source import fetch_package

SOURCE = Path(__file__).resolve().parents[2] / "src"

pytestmark = pytest.mark.usefixtures("guest")


def thinbox_run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "thinbox", "run", "-q", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def busybox_layer(**more: bytes) -> bytes:
    busybox = deb_member(fetch_package("busybox-static"), lambda path: path.endswith("bin/busybox"))
    # Absolute links, as in images of NixOS: they have to be followed inside the root.
    links = {"bin": "/real/bin", "real/bin/sh": "/real/bin/busybox", "real/bin/id": "busybox"}
    return layer_with({"real/bin/busybox": busybox, **links, "etc/passwd": b"app:x:7:8::/h:\n", **more})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_docker_archive(
        tmp_path / "image.tar", [busybox_layer()], Entrypoint=["sh", "-c"], Cmd=["echo from the image"], User="app"
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("thinbox: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_the_image_says_what_runs(image: Path) -> None:
    done = thinbox_run("--image", image)
    assert (done.returncode, done.stdout, done.stderr) == (0, "from the image\n", "")


def test_options_win_over_the_image(image: Path) -> None:
    options = ("--entrypoint", "sh", "--user", "9:10", "--env", "A=b c", "--workdir", "/new/place")
    done = thinbox_run("--image", image, *options, "--", "-c", "id; echo $A; echo $PWD; exit 5")
    assert done.stdout == "uid=9 gid=10 groups=10\nb c\n/new/place\n"
    assert done.returncode == 5


def test_bad_usage_is_one_line(image: Path, tmp_path: Path) -> None:
    assert_one_line(thinbox_run("--image", image, "--user", "nobody"), "'nobody' is not in /etc/passwd")
    assert_one_line(thinbox_run("--image", image, "--entrypoint", "", "--", "nothing"), "nothing", "not in the root")
    assert_one_line(thinbox_run("--image", image, "--entrypoint", ""), "names no program")
    assert_one_line(thinbox_run("--image", image, "--rootfs", tmp_path), "exclude each other")
    assert_one_line(thinbox_run("--image", tmp_path / "no\nfile"), "no such file")


def test_300_mb_run_in_the_default_memory_and_more_says_what_it_needs(tmp_path: Path) -> None:
    chunk = os.urandom(1 << 20)
    path = tmp_path / "large.tar"
    write_docker_archive(path, [busybox_layer(big=chunk * 300)], Cmd=["sh", "-c", "cat /big | busybox md5sum; exit 3"])
    done = thinbox_run("--image", path, "--isolate", "none", "--", "sh", "-c", "/bin/busybox wc -c /big; exit 3")
    assert (done.returncode, done.stdout) == (3, f"{300 << 20} /big\n"), done.stderr
    write_docker_archive(path, [busybox_layer(big=chunk * 450)], Cmd=["id"])
    assert_one_line(thinbox_run("--image", path), "need 452 MiB", "--memory 640")
    write_docker_archive(path, [busybox_layer(big=chunk), *[layer_with({f"f{n}": chunk * 250}) for n in range(0)]])
