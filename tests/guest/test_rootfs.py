"""What is given is a directory or an archive, or one RootfsError; its size is known before it is unpacked."""

import os
from pathlib import Path

import pytest

from tests.support.tar_writer import (
    hard_link,
    member,
    require_one_line,
    write_tar,
)
from thinbox.errors import RootfsError
from thinbox.guest.rootfs import open_rootfs, rootfs_bytes


def test_missing_and_special_paths_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, match in (
        (tmp_path / "nowhere", "nowhere: no such file"),
        (tmp_path / "fifo", "neither a directory nor a file"),
        (tmp_path / "fifo/x", "no such file"),
        (tmp_path / ("x" * 300), "too long"),
        (Path("nul\0byte"), "nul"),
    ):
        with pytest.raises(RootfsError, match=match) as caught:
            open_rootfs(path)
        require_one_line(caught.value)


def test_rootfs_bytes_counts_whole_pages_and_hard_links_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "b").write_bytes(b"binary" * 1000)
    os.link(tree / "b", tree / "c")
    assert rootfs_bytes(tree) == 8192
    path = write_tar(tmp_path, member("a", b"1"), member("b", b"2" * 4097), hard_link("c", "b"))
    assert rootfs_bytes(path) == 4096 + 8192
