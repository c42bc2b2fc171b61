"""Whatever the bytes of an archive are: entries or a RootfsError, in constant memory, never outside the root."""

import gzip
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tar_writer import (
    COMPRESSORS,
    collect,
    directory,
    hard_link,
    member,
    require_one_line,
    require_refused,
    symlink,
    tar_bytes,
    write_tar,
)
from thinbox.errors import RootfsError
from thinbox.guest.rootfs import open_rootfs, rootfs_bytes
from thinbox.guest.rootfs_tree import normalise_name


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


pytestmark = pytest.mark.slow
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
def test_damaged_archives_give_entries_or_a_rootfs_error(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
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
def test_any_mix_of_names_links_and_kinds_stays_inside(tmp_path: Path, rows: list[tuple[str, bytes, str]]) -> None:
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
@given(st.sampled_from(HEADER_FIELDS), st.binary(min_size=1, max_size=100), st.sampled_from(b"0123456gxLKSV7D"))
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
