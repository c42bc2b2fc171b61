"""Files that strangers name: regular ones, bounded, and below their folder, or one line."""

import os
from pathlib import Path

import pytest

from thinbox.errors import InputError
from thinbox.host.files import Folder, load_json, load_toml, open_file, read_below, read_file, require_below


def refusal(read: object, *args: object) -> str:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError) as caught:
        read(*args)  # type: ignore[operator]
    assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left open"
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "file").write_bytes(b"data")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in" / "out").symlink_to("../secret")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "in" / "root").symlink_to("/etc/passwd")
    (tmp_path / "in" / "link").symlink_to("sub/../sub/file")
    (tmp_path / "in" / "loop").symlink_to("loop")
    return tmp_path / "in"


def test_what_is_no_regular_file_is_neither_waited_for_nor_read_without_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), Path("/dev/tty"), tmp_path):
        for read in (open_file, load_json, load_toml, lambda path: read_file(path, 10)):
            refusal(read, path)


def test_the_bound_is_exact_and_a_large_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_file(tmp_path / "x", 5) == b"12345"
    assert "larger than" in refusal(read_file, tmp_path / "x", 4)
    os.truncate(tmp_path / "x", 1 << 40)
    assert "larger than" in refusal(load_json, tmp_path / "x")


def test_a_file_that_the_kernel_makes_has_no_size_and_is_bounded_all_the_same() -> None:
    assert "larger than" in refusal(read_file, "/proc/self/maps", 10)


def test_a_name_is_shown_in_one_line(tmp_path: Path) -> None:
    assert "a\\nb\\x1b" in refusal(read_file, tmp_path / "a\nb\x1b", 1)
    refusal(read_file, "a\0b", 1)


def test_a_file_below_its_folder_is_read(folder: Path) -> None:
    assert read_below(folder, "sub/file", 4) == b"data"
    assert read_below(folder, "./sub//file", 4) == b"data"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../secret",
        "sub/../../secret",
        "out",
        "up/secret",
        "root",
        "link",
        "loop",
        "sub",
        "",
        "no",
        "a\0",
    ],
)
def test_whatever_leads_out_of_its_folder_or_is_a_link_is_refused(folder: Path, name: str) -> None:
    refusal(read_below, folder, name, 10)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "out", "up/secret", "root", "loop", "up/in/sub/file"])
def test_with_links_allowed_none_leads_out(folder: Path, name: str) -> None:
    with Folder(folder) as opened:
        assert not opened.has_file(name, links=True)
        refusal(lambda: opened.open_file(name, links=True))
        with opened.open_file("link", links=True) as file:
            assert file.read() == b"data"


def test_a_folder_that_is_swapped_meanwhile_stays_the_one_that_was_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tmp_path / "other" / "sub" / "file").write_bytes(b"theirs")
    with Folder(folder) as opened:
        folder.rename(tmp_path / "before")
        folder.symlink_to(tmp_path / "other")
        with opened.open_file("sub/file") as file:
            assert file.read() == b"data"


@pytest.mark.parametrize("name", ["/root", "..", "a/../../b", "", "a\0b"])
def test_names_that_lead_out_are_told_by_their_text(name: str) -> None:
    assert "x, rootfs leads out" in refusal(require_below, name, "x, rootfs")
