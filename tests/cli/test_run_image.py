"""`thinbox run --image` on the command line: options win over the image, what does not fit is said in one line."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
from tests.support.container_image import layer_with, write_docker_archive
from thinbox.boot.ready import ReadyGuest
from thinbox.cli import group
from thinbox.container.image import load_image
from thinbox.errors import InputError, RootfsError
from thinbox.image.deb import deb_member
from thinbox.image.source import fetch_package
from thinbox.session.session import RunOptions, run

SOURCE = Path(__file__).resolve().parents[2] / "src"

pytestmark = pytest.mark.usefixtures("guest")


def thinbox_run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "thinbox", "run", "-q", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
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


def test_options_win_over_the_image(image: Path) -> None:
    options = ("--entrypoint", "sh", "--user", "9:10", "--env", "A=b c", "--workdir", "/new/place")
    done = thinbox_run("--image", image, *options, "--", "-c", "id; echo $A; echo $PWD; exit 5")
    assert done.stdout == "uid=9 gid=10 groups=10\nb c\n/new/place\n"
    assert done.returncode == 5


def test_the_image_says_what_runs_and_bad_usage_is_one_line(image: Path, tmp_path: Path) -> None:
    done = thinbox_run("--image", image)
    assert (done.returncode, done.stdout, done.stderr) == (0, "from the image\n", "")
    assert_one_line(thinbox_run("--image", image, "--user", "nobody"), "'nobody' is not in /etc/passwd")
    assert_one_line(thinbox_run("--image", tmp_path / "no\nfile"), "no such file")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image", "x", "--rootfs", "."), "exclude each other"),
        (("--entrypoint", "x", "--", "y"), "goes with --image"),
        (("--image", "x", "--entrypoint", '["a", 1]'), "no such file"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: tuple[str, ...], words: str) -> None:
    with pytest.raises((click.UsageError, InputError), match=words):
        group.main(["run", "-q", *options], standalone_mode=False)


def test_300_mb_run_in_the_default_memory_and_more_says_what_it_needs(guest: ReadyGuest, tmp_path: Path) -> None:
    last = os.urandom(1 << 20)
    image = load_image(str(write_docker_archive(tmp_path / "i", [busybox_layer(big=bytes(299 << 20) + last)])))
    shell = "/bin/busybox dd if=/big bs=1M skip=299 2>/dev/null | /bin/busybox md5sum"
    result = run(guest, ["/bin/sh", "-c", shell], RunOptions(image=image))
    assert result.stdout.decode() == f"{hashlib.md5(last).hexdigest()}  -\n", result.stderr
    assert not result.record.kills
    for need_mib, words in ((450, "need 450 MiB .* use --memory (576|640)$"), (3000, "at most$")):
        larger = replace(image, placement=replace(image.placement, need_bytes=need_mib << 20))
        with pytest.raises(RootfsError, match=words):
            run(guest, ["/bin/sh"], RunOptions(image=larger))
