"""A root file system comes out as it is, or as one RootfsError of one line; never half, never outside."""

import bz2
import gzip
import io
import lzma
import os
import socket
import stat
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinbox.errors import RootfsError
from thinbox.guest.rootfs import EntryKind, RootfsEntry, open_rootfs, rootfs_bytes
from thinbox.guest.rootfs_tree import normalise_name

Member = tuple[tarfile.TarInfo, bytes]

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def directory(name: str) -> Member:
    return member(name, kind=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Member:
    return member(name, kind=tarfile.LNKTYPE, linkname=target)


def tar_bytes(*members: Member, tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def write_tar(folder: Path, *members: Member) -> Path:
    path = folder / "root.tar"
    path.write_bytes(tar_bytes(*members))
    return path


def collect(path: Path) -> list[tuple[RootfsEntry, bytes]]:
    return [(entry, b"".join(entry.read_chunks())) for entry in open_rootfs(path)]


def paths(path: Path) -> list[bytes]:
    return [entry.path for entry in open_rootfs(path)]


def require_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 800


def require_refused(path: Path, match: str) -> None:
    with pytest.raises(RootfsError, match=match) as caught:
        collect(path)
    require_one_line(caught.value)


# ---- directories


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


def test_a_user_who_is_not_root_owns_files_as_root_in_the_guest(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# ---- archives


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
def test_what_a_guest_must_not_get_is_refused_by_name(
    tmp_path: Path, members: list[Member], match: str
) -> None:
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
    whole = COMPRESSORS[compression](
        tar_bytes(directory("d"), member("d/f", os.urandom(5000)), member("g", b"g"))
    )
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


def extended_header(content: bytes, kind: bytes = b"x") -> bytes:
    info = tarfile.TarInfo("x")
    info.type = kind
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    "head",
    [
        extended_header(b"1" * (1 << 20)),
        extended_header(b"n" * (1 << 20), b"L"),
        extended_header(b"10 a=bbbb\n") * 3000,
        extended_header(b"13 size=-512\n"),
        extended_header(b"14 mtime=nan_\n"),
        extended_header(b"12 uid=9e99\n"),
    ],
    ids=["huge pax", "huge long name", "endless pax", "negative size", "no time", "no uid"],
)
def test_hostile_extension_headers_end_in_a_rootfs_error_or_an_entry(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(head + tar_bytes(member("f", b"")))
    try:
        collect(path)
    except RootfsError as error:
        require_one_line(error)


# ---- size and memory


def test_rootfs_bytes_counts_whole_pages_and_hard_links_once(tree: Path, tmp_path: Path) -> None:
    assert rootfs_bytes(tree) == 8192
    path = write_tar(tmp_path, member("a", b"1"), member("b", b"2" * 4097), hard_link("c", "b"))
    assert rootfs_bytes(path) == 4096 + 8192


def bomb_pieces(size_bytes: int) -> Iterator[bytes]:
    info = tarfile.TarInfo("bomb")
    info.size = size_bytes
    yield info.tobuf(tarfile.GNU_FORMAT)
    for _ in range(size_bytes >> 20):
        yield bytes(1 << 20)
    yield bytes(10_240)


def test_a_decompression_bomb_costs_no_memory_and_is_known_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as out:
        for piece in bomb_pieces(256 << 20):
            out.write(piece)
    tracemalloc.start()
    try:
        total = sum(len(chunk) for entry in open_rootfs(path) for chunk in entry.read_chunks())
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 256 << 20
    assert peak_bytes < 4 << 20
    assert rootfs_bytes(path, limit_bytes=1 << 20) == 256 << 20


def test_a_header_that_announces_exabytes_is_counted_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge")
    info.size = 1 << 61
    (tmp_path / "t").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert rootfs_bytes(tmp_path / "t", limit_bytes=1 << 30) == 1 << 61
    require_refused(tmp_path / "t", "huge: ")


# ---- fuzzing: whatever the bytes are, entries or RootfsError

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def require_entries_or_rootfs_error(path: Path) -> None:
    seen: set[bytes] = {b""}
    try:
        for entry in open_rootfs(path):
            assert normalise_name(entry.path) == entry.path != b""
            assert entry.path.rpartition(b"/")[0] in seen
            seen.add(entry.path)
            if entry.size_bytes < 1 << 24:
                assert sum(map(len, entry.read_chunks())) == entry.size_bytes
    except RootfsError as error:
        require_one_line(error)


SEED_TAR = tar_bytes(
    directory("usr"),
    symlink("bin", "usr/bin"),
    member("bin/sh", b"x" * 700, pax_headers={"comment": "c"}),
    hard_link("bin/ash", "bin/sh"),
    member("é" * 120, b"long"),
    member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    tar_format=tarfile.PAX_FORMAT,
)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(SEED_TAR) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_archives_give_entries_or_a_rootfs_error(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SEED_TAR)
    for position, value in changes:
        data[position] = value
    (tmp_path / "t").write_bytes(data)
    require_entries_or_rootfs_error(tmp_path / "t")


@FUZZ
@given(st.integers(0, 10_000), st.sampled_from(sorted(COMPRESSORS)), st.binary(max_size=40))
def test_cut_and_patched_compressed_archives_give_entries_or_a_rootfs_error(
    tmp_path: Path, position: int, compression: str, patch: bytes
) -> None:
    data = COMPRESSORS[compression](SEED_TAR)
    position %= len(data)
    (tmp_path / "t").write_bytes(data[:position] + patch + data[position + 2 * len(patch) :])
    require_entries_or_rootfs_error(tmp_path / "t")


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        b"V",
    ]
)


@FUZZ
@given(st.lists(st.tuples(NAMES, KINDS, NAMES), max_size=12))
def test_any_mix_of_names_links_and_kinds_stays_inside(
    tmp_path: Path, rows: list[tuple[str, bytes, str]]
) -> None:
    path = write_tar(
        tmp_path,
        *(member(name, kind=kind, linkname=target, devmajor=1, devminor=3) for name, kind, target in rows),
    )
    require_entries_or_rootfs_error(path)


@FUZZ
@given(st.binary(max_size=2000))
def test_any_bytes_give_a_rootfs_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t").write_bytes(data)
    require_entries_or_rootfs_error(tmp_path / "t")


HEADER_FIELDS = [(124, 12), (136, 12), (100, 8), (108, 8), (116, 8), (329, 8), (337, 8), (0, 100), (157, 100)]


@FUZZ
@given(
    st.sampled_from(HEADER_FIELDS), st.binary(min_size=1, max_size=100), st.sampled_from(b"0123456gxLKSV7D")
)
def test_any_value_of_a_header_field_gives_entries_or_a_rootfs_error(
    tmp_path: Path, field: tuple[int, int], value: bytes, kind: int
) -> None:
    """The header's checksum is made right again, so that the damage reaches the code behind it."""
    header = bytearray(SEED_TAR[:512])
    start, width = field
    header[start : start + width] = value[:width].ljust(width, b"\0")
    header[156] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "t").write_bytes(bytes(header) + SEED_TAR)
    require_entries_or_rootfs_error(tmp_path / "t")
