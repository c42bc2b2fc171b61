"""The root file systems tests use hold what was asked for, and what they depend on, merged under /usr."""

import io
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.debian_rootfs import MAINTAINERS, build_rootfs, resolve_closure, rootfs_folder
from thinbox.errors import RootfsError, SourceError
from thinbox.guest.rootfs import open_rootfs


def ar_member(name: str, data: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return header + data + b"\n" * (len(data) % 2)


def tar_xz(files: dict[str, bytes | str]) -> bytes:
    """Bytes become a file, text a symlink to it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.mode = 0o755
            if isinstance(content, str):
                info.type, info.linkname, content = tarfile.SYMTYPE, content, b""
            info.size, info.mtime = len(content), 1_000_000_000
            tar.addfile(info, io.BytesIO(content))
    return lzma.compress(out.getvalue())


class Archive:
    """A package archive in a folder; remembers what was fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []

    def add(self, name: str, files: dict[str, bytes | str], **fields: str) -> None:
        control = f"Package: {name}\nVersion: 1\nArchitecture: amd64\n"
        control += "".join(f"{field.replace('_', '-')}: {value}\n" for field, value in fields.items())
        (self.folder / f"{name}.deb").write_bytes(
            b"!<arch>\n"
            + ar_member("debian-binary", b"2.0\n")
            + ar_member("control.tar.xz", tar_xz({"control": control.encode()}))
            + ar_member("data.tar.xz", tar_xz(files))
        )

    def fetch(self, name: str) -> Path:
        self.fetched.append(name)
        path = self.folder / f"{name}.deb"
        if not path.exists():
            raise SourceError(f"no package {name}")
        return path


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def test_dependencies_come_along_and_alternatives_fall_back(archive: Archive) -> None:
    archive.add("a", {}, Depends="b (>= 1), missing | c:any [amd64], virtual", Pre_Depends="d")
    archive.add("b", {}, Depends="a, d")
    archive.add("c", {}, Provides="virtual (= 2)")
    archive.add("d", {})
    assert sorted(resolve_closure(["a"], archive.fetch)) == ["a", "b", "c", "d"]


def test_what_is_left_out_as_a_dependency_is_there_if_asked_for(archive: Archive) -> None:
    archive.add("a", {}, Depends="perl, b")
    archive.add("b", {}, Depends="big")
    archive.add("perl", {})
    without = MAINTAINERS | {"big"}
    assert sorted(resolve_closure(["a"], archive.fetch, without)) == ["a", "b"]
    assert sorted(resolve_closure(["a", "perl"], archive.fetch, without)) == ["a", "b", "perl"]


def test_a_dependency_nobody_has_is_an_error(archive: Archive) -> None:
    archive.add("a", {}, Depends="gone")
    with pytest.raises(SourceError, match="gone"):
        resolve_closure(["a"], archive.fetch)


def test_files_of_bin_and_lib_land_below_usr(archive: Archive, tmp_path: Path) -> None:
    archive.add("a", {"bin/x": b"x", "lib/y": b"y", "usr/share/doc/a/copyright": b"c", "bin/link": "/bin/x"})
    root = build_rootfs(["a"], tmp_path / "root", archive.fetch)
    assert os.readlink(root / "bin") == "usr/bin"
    assert (root / "usr/bin/x").read_bytes() == b"x"
    assert (root / "usr/bin/x").stat().st_mtime == 1_000_000_000
    assert (root / "usr/lib/y").read_bytes() == b"y"
    assert os.readlink(root / "usr/bin/link") == "/bin/x"
    assert not (root / "usr/share/doc").exists()
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert b"usr/bin/x" in [entry.path for entry in open_rootfs(root)]


def test_a_package_cannot_write_outside_the_target(archive: Archive, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive.add("a", {"out": str(outside), "out/f": b"1"})
    root = build_rootfs(["a"], tmp_path / "root", archive.fetch)
    assert list(outside.iterdir()) == []
    assert (root / str(outside).lstrip("/") / "f").read_bytes() == b"1"
    archive.add("b", {"../f": b"1"})
    with pytest.raises(RootfsError):
        build_rootfs(["b"], tmp_path / "other", archive.fetch)
    assert not (tmp_path / "other").exists()


def test_the_same_packages_are_not_unpacked_twice(archive: Archive, tmp_path: Path) -> None:
    archive.add("a", {})
    build_rootfs(["a"], tmp_path / "root", archive.fetch)
    build_rootfs(["a", "a"], tmp_path / "root", archive.fetch)
    assert archive.fetched == ["a"]


@pytest.mark.guest
@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
@pytest.mark.parametrize(
    ("package", "command", "printed"),
    [
        ("dash", ["/bin/sh", "-c", "echo $((6 * 7))"], b"42\n"),
        ("sqlite3", ["/usr/bin/sqlite3", ":memory:", "SELECT 6 * 7"], b"42\n"),
        ("python3-minimal", ["/usr/bin/python3", "-c", "print(6 * 7)"], b"42\n"),
        ("python3", ["/usr/bin/python3", "-c", "import json, ssl; print(json.dumps(42))"], b"42\n"),
    ],
)
def test_real_packages_run_in_their_root(package: str, command: list[str], printed: bytes) -> None:
    """Fetches the packages once into the cache folder, as the kernel tests do their kernel."""
    root = rootfs_folder(package)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # a PYTHONHOME of ours means nothing in there
    done = subprocess.run(["/usr/sbin/chroot", root, *command], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr
