"""Packages of every format are read without dpkg, and damaged ones are refused."""

import io
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinbox.errors import KernelImageError
from thinbox.image import deb as packages
from thinbox.image.deb import deb_member, iter_deb_files

FILES = {"boot/vmlinuz-1.2.3": b"kernel" * 1000, "etc/x": b""}


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2", ".zst"])
def test_every_packing_is_read(suffix: str, make_deb: Any, tmp_path: Path) -> None:
    deb = tmp_path / "x.deb"
    deb.write_bytes(make_deb(FILES, suffix))
    entries = list(iter_deb_files(deb))
    assert {entry.path: entry.data for entry in entries if stat.S_ISREG(entry.mode)} == FILES
    assert [entry.link_target for entry in entries if stat.S_ISLNK(entry.mode)] == ["target"]
    assert deb_member(deb, lambda path: path.startswith("boot/")) == FILES["boot/vmlinuz-1.2.3"]


def test_a_file_that_is_not_in_it_is_an_error(make_deb: Any, tmp_path: Path) -> None:
    deb = tmp_path / "x.deb"
    deb.write_bytes(make_deb(FILES))
    with pytest.raises(KernelImageError):
        deb_member(deb, lambda path: path == "nope")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["", ".gz", ".xz", ".bz2", ".zst"]), st.data())
def test_damaged_packages_are_refused_or_read(make_deb: Any, tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    raw = bytearray(make_deb(FILES, suffix))
    del raw[data.draw(st.integers(0, len(raw))) :]
    for place in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=3)):
        if raw:
            raw[place] = data.draw(st.integers(0, 255))
    deb = tmp_path / "x.deb"
    deb.write_bytes(raw)
    try:
        list(iter_deb_files(deb))
    except KernelImageError as error:
        assert "\n" not in str(error)


def package(info: object, tar_tail: bytes, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a package whose data begins with the header `info` and goes on with `tar_tail`."""
    import tarfile

    raw = info.tobuf(tarfile.GNU_FORMAT) + tar_tail
    path = tmp_path / "x.deb"
    path.write_bytes(build({}))
    monkeypatch.setattr(packages, "_open_data", lambda _raw: io.BytesIO(raw))
    return path


def test_a_body_without_end_is_refused_while_it_is_skipped(
    make_deb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tarfile

    class Endless(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            return super().read(size) or bytes(size)

    info = tarfile.TarInfo("big")
    info.size = 1 << 60
    path = package(info, b"", make_deb, tmp_path, monkeypatch)
    monkeypatch.setattr(packages, "_open_data", lambda _raw: Endless(info.tobuf(tarfile.GNU_FORMAT)))
    monkeypatch.setattr(packages, "MAX_UNPACKED_BYTES", 64 << 20)
    with pytest.raises(KernelImageError, match="unpacks to more than 64 MiB"):
        deb_member(path, lambda name: name == "nope")


def test_a_header_of_any_size_is_not_read_whole(make_deb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile

    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    with pytest.raises(KernelImageError, match="a header announces"):
        list(iter_deb_files(package(info, bytes(1024), make_deb, tmp_path, monkeypatch)))
