"""A directory comes out as it is, sorted, and no symlink of it is ever followed."""

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.support.tar_writer import (
    collect,
    paths,
)
from thinbox.errors import RootfsError
from thinbox.guest.rootfs import EntryKind, open_rootfs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / "etc").mkdir(mode=0o700)
    (root / "usr/bin/b").write_bytes(b"binary" * 1000)
    (root / "usr/bin/b").chmod(0o4755)
    os.link(root / "usr/bin/b", root / "usr/bin/a-later-name-of-b")
    (root / "bin").symlink_to("usr/bin")
    (root / "escape").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe", 0o600)
    os.utime(root / "usr/bin/b", (5, 1234.75))
    return root


def test_a_directory_comes_out_sorted_with_parents_first(tree: Path) -> None:
    assert paths(tree) == [
        b"bin",
        b"escape",
        b"etc",
        b"pipe",
        b"usr",
        b"usr/bin",
        b"usr/bin/a-later-name-of-b",
        b"usr/bin/b",
    ]


def test_a_directory_keeps_modes_times_and_content(tree: Path) -> None:
    entries = {entry.path: (entry, content) for entry, content in collect(tree)}
    file, content = entries[b"usr/bin/a-later-name-of-b"]
    assert (file.kind, file.mode, file.mtime_s) == (EntryKind.FILE, 0o4755, 1234)
    assert content == b"binary" * 1000
    assert entries[b"etc"][0].mode == 0o700
    assert entries[b"pipe"][0].kind is EntryKind.FIFO


def test_hard_links_of_a_directory_are_found_again(tree: Path) -> None:
    link = {entry.path: entry for entry in open_rootfs(tree)}[b"usr/bin/b"]
    assert link.kind is EntryKind.HARDLINK
    assert link.link_target == b"usr/bin/a-later-name-of-b"
    assert link.size_bytes == 0


def test_symlinks_of_a_directory_are_never_followed(tree: Path) -> None:
    entries = {entry.path: entry for entry in open_rootfs(tree)}
    assert entries[b"escape"].kind is EntryKind.SYMLINK
    assert entries[b"escape"].link_target == b"/etc/passwd"
    assert not [path for path in entries if path.startswith(b"bin/")]


def test_sockets_are_left_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert paths(tmp_path) == []


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(b"x")
    assert paths(tmp_path) == [b"caf\xe9"]


def test_a_user_who_is_not_root_owns_files_as_root_in_the_guest(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = (tree / "etc").stat()
    monkeypatch.setattr(os, "geteuid", lambda: status.st_uid or 4242)
    monkeypatch.setattr(os, "getegid", lambda: status.st_gid or 4242)
    assert {(entry.uid, entry.gid) for entry in open_rootfs(tree)} == {(0, 0)}


def test_a_file_that_cannot_be_read_is_named(tree: Path) -> None:
    with pytest.raises(RootfsError, match="usr/bin/a-later-name-of-b: cannot be read"):
        for entry in open_rootfs(tree):
            if entry.path == b"usr/bin/a-later-name-of-b":
                (tree / "usr/bin/a-later-name-of-b").unlink()
                (tree / "usr/bin/a-later-name-of-b").symlink_to("/etc/passwd")
            list(entry.read_chunks())


def test_a_file_that_shrank_is_an_error_and_one_that_grew_is_cut(tree: Path) -> None:
    file = tree / "usr/bin/b"
    entries = {entry.path: entry for entry in open_rootfs(tree)}
    file.write_bytes(b"z" * 9000)
    assert len(b"".join(entries[b"usr/bin/a-later-name-of-b"].read_chunks(777))) == 6000
    file.write_bytes(b"z")
    with pytest.raises(RootfsError, match="5999 bytes early"):
        list(entries[b"usr/bin/a-later-name-of-b"].read_chunks())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make device nodes")
def test_only_standard_device_nodes_are_taken_from_a_directory(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(tmp_path / "vda", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    except PermissionError:
        pytest.skip("device nodes are not allowed here")
    with pytest.raises(RootfsError, match="vda: block device 254:0"):
        list(open_rootfs(tmp_path))
    (tmp_path / "vda").unlink()
    (entry,) = open_rootfs(tmp_path)
    assert (entry.kind, entry.device) == (EntryKind.CHAR, (1, 3))


@pytest.fixture
def swapped(tree: Path, tmp_path: Path) -> Path:
    """Where a swapped link of the tree leads: names that the tree has too, with other contents."""
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    for name in ("bin/b", "bin/a-later-name-of-b", "passwd"):
        (other / name).write_bytes(b"secret" * 1000)
    return other


def swap(place: Path, target: Path) -> None:
    place.rename(place.with_name("moved-away"))
    place.symlink_to(target)


def test_a_folder_that_is_swapped_for_a_link_before_it_is_opened_is_not_followed(tree: Path, swapped: Path) -> None:
    """The seam: a directory is yielded before its content is looked for."""
    seen = []
    with pytest.raises(RootfsError, match="etc: cannot be read: something else came in its place"):
        for entry in open_rootfs(tree):
            seen.append(entry.path)
            if entry.path == b"etc":
                swap(tree / "etc", swapped)
    assert b"etc/passwd" not in seen


def test_a_folder_that_is_swapped_for_another_folder_is_noticed(tree: Path, swapped: Path) -> None:
    with pytest.raises(RootfsError, match="usr: cannot be read: something else"):
        for entry in open_rootfs(tree):
            if entry.path == b"usr":
                (tree / "usr").rename(tree / "moved-away")
                swapped.rename(tree / "usr")


def test_a_folder_that_is_swapped_while_it_is_read_is_the_one_that_was_opened(tree: Path, swapped: Path) -> None:
    found = []
    for entry in open_rootfs(tree):
        found.append(entry)
        if entry.path == b"usr/bin/a-later-name-of-b":
            swap(tree / "usr", swapped)
            with pytest.raises(RootfsError, match="link"):
                list(entry.read_chunks())
    assert found[-1].path == b"usr/bin/b" and found[-1].kind is EntryKind.HARDLINK


def test_a_file_that_is_swapped_for_another_is_not_read(tree: Path, swapped: Path) -> None:
    entries = {entry.path: entry for entry in open_rootfs(tree)}
    (tree / "usr/bin/a-later-name-of-b").unlink()
    (swapped / "bin/b").rename(tree / "usr/bin/a-later-name-of-b")
    with pytest.raises(RootfsError, match="something else"):
        list(entries[b"usr/bin/a-later-name-of-b"].read_chunks())


def test_no_descriptor_is_left_open(tree: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    walk = open_rootfs(tree)
    for entry in walk:
        if entry.path == b"usr/bin/a-later-name-of-b":
            b"".join(entry.read_chunks())
            break
    del walk, entry
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("depth", "fits"), [(256, True), (257, False)])
def test_folders_are_bounded_in_depth(tmp_path: Path, depth: int, fits: bool) -> None:
    (tmp_path / "/".join(["d"] * depth)).mkdir(parents=True)
    if fits:
        assert len(paths(tmp_path)) == depth
    else:
        with pytest.raises(RootfsError, match="more than 256 directories deep"):
            paths(tmp_path)
