"""An archive comes out whole, below the root and nowhere else, or ends in a RootfsError naming the entry."""

import gzip
import os
import tarfile
from pathlib import Path

import pytest

from tests.support.tar_writer import (
    COMPRESSORS,
    Member,
    collect,
    directory,
    hard_link,
    member,
    paths,
    require_refused,
    symlink,
    tar_bytes,
    write_tar,
)
from thinbox.errors import RootfsError
from thinbox.guest.rootfs import EntryKind, open_rootfs


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_every_compression_gives_the_same_entries(tmp_path: Path, compression: str) -> None:
    content = os.urandom(70_000)
    data = tar_bytes(directory("./"), directory("./usr"), member("./usr/f", content, mtime=99, uid=7, gid=8))
    path = tmp_path / "archive-without-a-suffix"
    path.write_bytes(COMPRESSORS[compression](data))
    (usr, _), (file, read_back) = collect(path)
    assert (usr.path, usr.kind, usr.mode) == (b"usr", EntryKind.DIRECTORY, 0o755)
    assert (file.path, file.mode, file.uid, file.gid, file.mtime_s) == (b"usr/f", 0o644, 7, 8, 99)
    assert file.size_bytes == 70_000
    assert read_back == content


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_format_survive(tmp_path: Path, tar_format: int) -> None:
    name = "/".join(["d" * 90] * 2) + "/é"
    path = tmp_path / "t.tar"
    path.write_bytes(tar_bytes(member(name, b"1"), tar_format=tar_format))
    assert paths(path)[-1] == name.encode()


def test_content_may_be_left_unread_or_half_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path, member("a", b"a" * 50_000), member("b", b"b" * 50_000), member("c", b"c"))
    seen = []
    for entry in open_rootfs(path):
        seen.append(next(entry.read_chunks(100)) if entry.path == b"b" else b"")
    assert seen == [b"", b"b" * 100, b""]


def test_an_entry_of_an_archive_cannot_be_read_late(tmp_path: Path) -> None:
    first, _second = open_rootfs(write_tar(tmp_path, member("a", b"a"), member("b", b"b")))
    with pytest.raises(ValueError, match="after the next entry"):
        list(first.read_chunks())


def test_missing_parents_are_made_as_roots_directories(tmp_path: Path) -> None:
    entries = list(open_rootfs(write_tar(tmp_path, member("a/b/c", b"", uid=5))))
    assert [(e.path, e.kind, e.mode, e.uid) for e in entries] == [
        (b"a", EntryKind.DIRECTORY, 0o755, 0),
        (b"a/b", EntryKind.DIRECTORY, 0o755, 0),
        (b"a/b/c", EntryKind.FILE, 0o644, 5),
    ]


def test_merged_usr_names_move_to_where_the_symlink_leads(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path,
        symlink("bin", "usr/bin"),
        symlink("lib", "/usr/lib"),
        directory("bin"),
        member("bin/sh", b"#!"),
        member("lib/x/y", b"1"),
        hard_link("bin/bash", "bin/sh"),
        directory("usr/bin"),
    )
    entries = list(open_rootfs(path))
    assert [e.path for e in entries] == [
        b"bin",
        b"lib",
        b"usr",
        b"usr/bin",
        b"usr/bin/sh",
        b"usr/lib",
        b"usr/lib/x",
        b"usr/lib/x/y",
        b"usr/bin/bash",
        b"usr/bin",
    ]
    assert entries[8].link_target == b"usr/bin/sh"


def test_symlinks_that_point_outside_stay_inside(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path,
        symlink("out", "../../../../tmp"),
        member("out/f", b"1"),
        symlink("up", ".."),
        member("up/g"),
    )
    assert paths(path) == [b"out", b"tmp", b"tmp/f", b"up", b"g"]


def test_a_symlink_loop_among_parents_is_refused(tmp_path: Path) -> None:
    require_refused(write_tar(tmp_path, symlink("a", "b"), symlink("b", "a"), member("a/f")), "loop")


def test_a_later_file_replaces_an_earlier_one_and_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path, member("f", b"old"), member("f", b"new"))
    assert [(e.replaces, content) for e, content in collect(path)] == [(False, b"old"), (True, b"new")]


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([member("../evil", b"1")], r"\.\./evil"),
        ([member("a/../../evil", b"1")], r"\.\."),
        ([member("/etc/shadow", b"1")], "absolute"),
        ([hard_link("l", "../../etc/shadow")], r"\.\."),
        ([hard_link("l", "/etc/shadow")], "absolute"),
        ([hard_link("l", "nowhere")], "no earlier file"),
        ([hard_link("l", "l")], "no earlier file"),
        ([directory("d"), hard_link("l", "d")], "no earlier file"),
        ([member("f", b"1"), member("f/g", b"1")], "f above it is a file"),
        ([member("f", b"1"), directory("f")], "is a file and then a directory"),
        ([member("bin/x", b"1"), symlink("bin", "usr/bin")], "put the symlink first"),
        ([member("n" * 300, b"")], "too long"),
        ([member("vda", kind=tarfile.BLKTYPE, devmajor=254, devminor=0)], "vda: block device 254:0"),
        ([member("mem", kind=tarfile.CHRTYPE, devmajor=1, devminor=1)], "mem: character device 1:1"),
        ([member("volume", kind=b"V")], "'V' is not supported"),
        ([symlink("s", "")], "target is empty"),
    ],
)
def test_what_a_guest_must_not_get_is_refused_by_name(tmp_path: Path, members: list[Member], match: str) -> None:
    require_refused(write_tar(tmp_path, *members), match)


def test_standard_device_nodes_are_taken(tmp_path: Path) -> None:
    nodes = {
        "null": (1, 3),
        "zero": (1, 5),
        "full": (1, 7),
        "random": (1, 8),
        "urandom": (1, 9),
        "tty": (5, 0),
    }
    path = write_tar(
        tmp_path,
        *(member(name, kind=tarfile.CHRTYPE, devmajor=a, devminor=b) for name, (a, b) in nodes.items()),
    )
    assert {entry.path.decode(): entry.device for entry in open_rootfs(path)} == nodes


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_an_archive_cut_anywhere_is_refused(tmp_path: Path, compression: str) -> None:
    whole = COMPRESSORS[compression](tar_bytes(directory("d"), member("d/f", os.urandom(5000)), member("g", b"g")))
    # Plain tar may lose its padding (it is no data), not the first zero block after the last member.
    end = 512 + 512 + 5120 + 1024 + 512 if compression == "plain" else len(whole) - 8
    path = tmp_path / "cut"
    for cut in {0, 1, 5, 100, 511, 512, 513, 1024, 3000, 6000, end - 600, end - 1}:
        if 0 <= cut < end:
            path.write_bytes(whole[:cut])
            require_refused(path, "tar archive|truncated|damaged|early")


def test_a_wrong_checksum_of_the_compressed_stream_is_found(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(tar_bytes(member("f", b"1"))))
    data[-5] ^= 1
    (tmp_path / "t").write_bytes(data)
    require_refused(tmp_path / "t", "damaged.*CRC")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b", b"\xfd7zXZ\0junk", b"\x7fELF" + bytes(4096)])
def test_what_is_no_tar_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    require_refused(tmp_path / "t", "not a tar archive|damaged")


def test_a_chain_of_folders_below_a_symlink_takes_steps_with_its_length_and_is_bounded(tmp_path: Path) -> None:
    from thinbox.guest import rootfs_tree

    names = ["/".join(["d"] * depth) for depth in range(1, 2000)]
    with pytest.raises(RootfsError, match="more than 256 directories deep"):
        list(open_rootfs(write_tar(tmp_path, symlink("l", "d"), *map(directory, names))))
    tree = rootfs_tree.RootfsTree()
    tree.add(b"l", rootfs_tree.EntryKind.SYMLINK, b"/".join([b"d"] * 200))
    with pytest.raises(RootfsError, match="more than 256 directories deep once its symlinks are followed"):
        tree.resolve(b"l/" + b"/".join([b"e"] * 100))


def test_a_symlink_that_is_replaced_leads_nowhere_any_more(tmp_path: Path) -> None:
    archive = write_tar(
        tmp_path, directory("a"), symlink("l", "a"), member("l/x"), symlink("m", "l/../l"), member("m/y"), symlink("m", "b"),
        member("m/z"), symlink("k/l", "../a"), member("k/l/z"),
    )  # fmt: skip
    assert paths(archive) == [b"a", b"l", b"a/x", b"m", b"a/y", b"m", b"b", b"b/z", b"k", b"k/l", b"a/z"]
