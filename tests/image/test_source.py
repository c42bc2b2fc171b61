"""Packages are fetched once, checked whenever they are read, and old ones do when the archive is away."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from thinbox.errors import KernelImageError, SourceError
from thinbox.image import KernelFile, fetch_package, list_kernels, resolve_kernel
from thinbox.image.apt import _copy_archive_sources

META = "linux-image-cloud-amd64"
REAL = "linux-image-6.1.0-9-cloud-amd64"


def publish(archive: Path, name: str, deb: bytes = b"", *, version: str = "1:1.0", depends: str = "") -> None:
    (archive / f"{name}.deb").write_bytes(deb)
    (archive / f"{name}.show").write_text(
        f"Package: {name}\nVersion: {version}\nDepends: {depends}\nSize: {len(deb)}\n"
        f"SHA256: {hashlib.sha256(deb).hexdigest()}\n\n"
    )


def publish_kernel(archive: Path, deb: bytes) -> None:
    publish(archive, META, depends=f"initramfs-tools | x, {REAL} (= 6.1.9-1)")
    publish(archive, REAL, deb)


def asked(archive: Path) -> list[str]:
    """Return what apt was told to do, in order."""
    words = ("update", "show", "download")
    log = (archive / "log").read_text().split("\n") if (archive / "log").exists() else []
    return [word for line in log for word in words if f" {word}" in line]


def grow_old(cache: Path, name: str) -> None:
    path = cache / "packages" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checked_s": 1.0}))


def test_a_second_request_asks_nobody(fake_archive: Path) -> None:
    publish(fake_archive, "tool", b"content")
    path = fetch_package("tool")
    assert path.read_bytes() == b"content"
    before = asked(fake_archive)
    assert fetch_package("tool") == path
    assert asked(fake_archive) == before


def test_a_damaged_file_is_noticed_and_fetched_again(fake_archive: Path) -> None:
    publish(fake_archive, "tool", b"content")
    path = fetch_package("tool")
    path.write_bytes(b"c0ntent")
    assert fetch_package("tool").read_bytes() == b"content"


def test_a_download_with_another_hash_is_refused_and_not_kept(fake_archive: Path, own_cache: Path) -> None:
    publish(fake_archive, "tool", b"content")
    (fake_archive / "tool.deb").write_bytes(b"evil")
    with pytest.raises(SourceError, match="hash"):
        fetch_package("tool")
    assert not list((own_cache / "packages").glob("*.deb"))


def test_an_old_record_makes_it_ask_again_and_take_the_new_version(fake_archive: Path, own_cache: Path) -> None:
    publish(fake_archive, "tool", b"old")
    fetch_package("tool")
    publish(fake_archive, "tool", b"new", version="2.0")
    assert fetch_package("tool").read_bytes() == b"old"
    grow_old(own_cache, "tool")
    assert fetch_package("tool").read_bytes() == b"new"


def test_an_old_file_will_do_while_the_archive_is_away(fake_archive: Path, own_cache: Path) -> None:
    publish(fake_archive, "tool", b"old")
    path = fetch_package("tool")
    grow_old(own_cache, "tool")
    (fake_archive / "offline").touch()
    (fake_archive / "tool.show").unlink()
    lines: list[str] = []
    assert fetch_package("tool", progress=lines.append) == path
    assert any("from the cache" in line for line in lines)
    before = len(asked(fake_archive))
    assert fetch_package("tool") == path  # not asked again for an hour
    assert len(asked(fake_archive)) == before


def test_an_archive_that_is_away_is_one_line_with_what_to_do(fake_archive: Path) -> None:
    (fake_archive / "offline").touch()
    with pytest.raises(SourceError, match="--kernel FILE") as caught:
        resolve_kernel(None)
    assert "\n" not in str(caught.value)


def test_a_package_nobody_has_is_one_line(fake_archive: Path) -> None:
    with pytest.raises(SourceError, match="no nonesuch"):
        fetch_package("nonesuch")
    with pytest.raises(SourceError, match="not a package name"):
        fetch_package("--option")


def test_without_apt_it_says_what_to_do(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SourceError, match="apt-get is not installed"):
        resolve_kernel(None)


def test_the_default_kernel_is_the_meta_packages_dependency(fake_archive: Path, make_deb: Any) -> None:
    publish_kernel(fake_archive, make_deb({"boot/vmlinuz-6.1.0-9-cloud-amd64": b"KERNEL"}))
    found = resolve_kernel(None)
    assert found.label == "6.1.0-9-cloud-amd64"
    assert found.path.read_bytes() == b"KERNEL"
    assert found.data_sha256 == hashlib.sha256(b"KERNEL").hexdigest()
    assert list_kernels()[-1:] == (found,)
    assert resolve_kernel("6.1.0-9-cloud-amd64") == found


def test_ubuntus_meta_package_is_tried_when_debians_is_not_there(fake_archive: Path, make_deb: Any) -> None:
    publish(fake_archive, "linux-image-virtual", depends="linux-image-6.8.0-1-generic")
    publish(fake_archive, "linux-image-6.8.0-1-generic", make_deb({"boot/vmlinuz-6.8.0-1-generic": b"U"}, ".zst"))
    assert resolve_kernel(None).label == "6.8.0-1-generic"


def test_a_cached_kernel_needs_neither_archive_nor_package(fake_archive: Path, own_cache: Path, make_deb: Any) -> None:
    publish_kernel(fake_archive, make_deb({"boot/vmlinuz-6.1.0-9-cloud-amd64": b"KERNEL"}))
    found = resolve_kernel(None)
    for path in (own_cache / "packages").glob("*.deb"):
        path.unlink()
    (fake_archive / "offline").touch()
    (fake_archive / f"{META}.show").unlink()
    assert resolve_kernel(None) == found
    grow_old(own_cache, META)
    assert resolve_kernel(None) == found
    with pytest.raises(SourceError):
        resolve_kernel(None, refresh=True)


def test_a_damaged_cached_kernel_is_taken_out_of_its_package_again(fake_archive: Path, make_deb: Any) -> None:
    publish_kernel(fake_archive, make_deb({"boot/vmlinuz-6.1.0-9-cloud-amd64": b"KERNEL"}))
    found = resolve_kernel(None)
    found.path.write_bytes(b"kERNEL")
    assert resolve_kernel(None) == found
    assert found.path.read_bytes() == b"KERNEL"


def test_files_packages_and_nonsense_as_a_kernel(own_cache: Path, tmp_path: Path, make_deb: Any) -> None:
    plain = tmp_path / "vmlinuz-9.9"
    plain.write_bytes(b"KERNEL")
    assert resolve_kernel(str(plain)) == KernelFile(plain, hashlib.sha256(b"KERNEL").hexdigest(), "9.9")
    deb = tmp_path / "kernel.deb"
    deb.write_bytes(make_deb({"boot/vmlinuz-9.9": b"KERNEL"}))
    assert resolve_kernel(str(deb)).path.read_bytes() == b"KERNEL"
    assert resolve_kernel(str(deb)).label == "9.9"
    deb.write_bytes(make_deb({"etc/x": b""}))
    for spec in (str(deb), str(tmp_path), str(tmp_path / "missing.deb"), "/dev/null"):
        with pytest.raises(KernelImageError):
            resolve_kernel(spec)
    with pytest.raises(SourceError, match="neither a file nor a release"):
        resolve_kernel("nonsense")


def test_third_party_sources_are_left_out(tmp_path: Path) -> None:
    parts = tmp_path / "etc" / "sources.list.d"
    parts.mkdir(parents=True)
    (tmp_path / "etc" / "sources.list").write_text(
        "# deb http://deb.debian.org/debian old main\ndeb http://deb.debian.org/debian stable main\n"
        "deb-src http://deb.debian.org/debian stable main\n"
    )
    (parts / "broken.list").write_text("this is no source\ndeb http://example.org/apt x main\n")
    (parts / "mixed.sources").write_text(
        "Types: deb\nURIs: http://mirror.example/ubuntu\nSuites: noble\n\n"
        "Types: deb\nURIs: https://deb.nodesource.com/x\nSuites: y\n# see debian.org\n"
    )
    target = tmp_path / "out"
    _copy_archive_sources(tmp_path / "etc", target)
    assert (target / "archive.list").read_text() == "deb http://deb.debian.org/debian stable main\n"
    sources = (target / "archive.sources").read_text()
    assert "mirror.example/ubuntu" in sources and "nodesource" not in sources


def test_apt_fetches_package_indexes_only(fake_archive: Path, own_cache: Path) -> None:
    publish(fake_archive, "tool", b"x")
    fetch_package("tool")
    configuration = (own_cache / "apt" / "apt.conf").read_text()
    assert 'Acquire::IndexTargets::deb::Icons::DefaultEnabled "false";' in configuration
    assert "deb::Packages::" not in configuration


def test_an_interrupt_ends_apt_and_leaves_a_usable_cache(fake_archive: Path) -> None:
    publish(fake_archive, "tool", b"content")
    (fake_archive / "hang").touch()
    program = "from thinbox.image import fetch_package; fetch_package('tool')"
    # A shell that runs the tests in the background has SIGINT ignored, and that is inherited.
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 300
    while not (fake_archive / "pid").exists() or not (fake_archive / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    apt = int((fake_archive / "pid").read_text())
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=300)
    assert b"KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(apt, 0)
    (fake_archive / "hang").unlink()
    assert fetch_package("tool").read_bytes() == b"content"
