"""What a module says of itself is read, however it is packed; damaged ones are refused."""

import gzip
import lzma
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.support.module_file import build_module_file, module

from thinbox.errors import KernelImageError
from thinbox.image.module_file import ModuleInfo, name_of_file, parse_module, plain_name, unpack_module

INFO = ModuleInfo(
    name="nf_tables",
    release="6.1.0-57-cloud-amd64",
    depends=("nfnetlink", "libcrc32c"),
    before=("crc32c",),
    after=("nf_log", "nft_ct"),
    aliases=("nfnetlink_subsys_10", "pci:v*d[0-9a-f]sv*"),
    signed=True,
)


def test_what_a_module_says_of_itself_is_read() -> None:
    assert parse_module(build_module_file(INFO)) == INFO


@pytest.mark.parametrize(
    "pack",
    [
        lambda data: data,
        gzip.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
        zstandard.ZstdCompressor(write_content_size=False).compress,
    ],
)
def test_every_packing_is_unpacked(pack: Any) -> None:
    data = build_module_file(INFO)
    assert unpack_module(pack(data)) == data


def test_a_file_means_the_module_of_its_name() -> None:
    for file in ("kernel/fs/nf-tables.ko", "nf_tables.ko.xz", "/lib/nf-tables.ko.zst", "nf_tables.ko.gz"):
        assert name_of_file(file) == "nf_tables"
    for file in ("nf_tables", ".ko", "nf_tables.ko.bak", "modules.order"):
        assert name_of_file(file) is None


def test_dashes_are_underscores_but_in_sets() -> None:
    assert plain_name("crypto-ghash-[a-f]-x") == "crypto_ghash_[a-f]_x"


@given(st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject) -> None:
    raw = bytearray(build_module_file(INFO))
    del raw[data.draw(st.integers(0, len(raw))) :]
    for place in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=4)):
        if raw:
            raw[place] = data.draw(st.integers(0, 255))
    try:
        parse_module(unpack_module(bytes(raw)))
    except KernelImageError as error:
        assert "\n" not in str(error)


def test_an_object_file_that_is_no_module_is_refused() -> None:
    with pytest.raises(KernelImageError, match="names neither itself nor a kernel"):
        parse_module(build_module_file(module("")).replace(b"name=", b"nama="))
