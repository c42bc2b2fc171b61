"""Every packing a kernel knows is unpacked; whatever else a file holds, the answer is KernelImageError."""

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinbox.errors import KernelImageError
from thinbox.image import KernelFacts, KernelFile, KernelImage, load_kernel_image
from thinbox.image.compression import decompress
from thinbox.image.kernel import parse_kernel_image

FORMATS = ("none", "gzip", "xz", "lzma", "bzip2", "lz4", "zstd", "lzo")


def assert_refused(data: bytes) -> None:
    with pytest.raises(KernelImageError) as caught:
        load_kernel_image(data)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("compression", FORMATS)
def test_every_packing_gives_back_the_vmlinux(compression: str, make_elf: Any, make_bzimage: Any) -> None:
    elf = make_elf(random.Random(1).randbytes(1 << 20) * 9)  # more than one lz4 block, more than one lzo block
    image = load_kernel_image(make_bzimage(elf + b"relocs", compression))
    assert image.compression == compression
    assert image.vmlinux == elf
    assert image.setup_header is not None and image.setup_header[0x11:0x15] == b"HdrS"
    if compression != "none":
        assert image.relocs == b"relocs"


def test_the_lz4_tools_own_output_is_read(make_elf: Any) -> None:
    if shutil.which("lz4") is None:
        pytest.skip("needs the lz4 program: apt install lz4")
    elf = make_elf()
    packed = subprocess.run(["lz4", "-l", "-c"], input=elf, capture_output=True, check=True).stdout
    assert load_kernel_image(packed).vmlinux == elf


def test_a_bare_vmlinux_is_loaded_as_it_is(make_elf: Any, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(make_elf())
    image = load_kernel_image(path)
    assert (image.setup_header, image.bzimage, image.compression) == (None, None, "none")
    assert image.entry_paddr == 0x1000000
    assert image.segments[0].memory_bytes == image.segments[0].file_bytes + 4096
    assert image.read_vaddr(0xFFFFFFFF81000001, 3) == b"\x01\x02\x03"
    assert image.read_vaddr(0x1234, 3) == b""


def test_a_payload_of_another_size_than_it_says_is_refused(make_elf: Any, make_bzimage: Any) -> None:
    with pytest.raises(KernelImageError, match="fetch"):
        load_kernel_image(make_bzimage(make_elf(), "xz", claimed=12345))


def test_kernels_without_a_64_bit_entry_are_refused(make_elf: Any, make_bzimage: Any) -> None:
    for options in ({"version": 0x20A}, {"xloadflags": 0}):
        with pytest.raises(KernelImageError, match="64-bit"):
            load_kernel_image(make_bzimage(make_elf(), "gzip", **options))
    with pytest.raises(KernelImageError, match="x86-64"):
        load_kernel_image(make_elf(machine=183))


@pytest.mark.slow
@pytest.mark.parametrize("compression", FORMATS[1:])
def test_a_bomb_is_refused_at_the_limit(compression: str, make_bzimage: Any) -> None:
    bomb = make_bzimage(bytes(64 << 20), compression)
    payload = bomb[2 * 512 + 32 : -64]
    with pytest.raises(KernelImageError, match="more than 1 MiB"):
        decompress(payload, 1 << 20)


def test_a_missing_lzo_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, make_elf: Any, make_bzimage: Any
) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    data = make_bzimage(make_elf(), "lzo")
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(KernelImageError, match=r"thinbox\[lzo\]"):
        load_kernel_image(data)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "fifo", Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(KernelImageError) as caught:
            load_kernel_image(path)
        assert "\n" not in str(caught.value)


def test_nothing_is_refused() -> None:
    assert_refused(b"")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=4096))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert_refused(data)


MAGICS = (
    b"\x1f\x8b\x08",
    b"\xfd7zXZ\0",
    b"]\0\0\x80\0",
    b"BZh9",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
    b"\x7fELF\x02\x01\x01",
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from((*MAGICS, b"\x89LZO\0\r\n\x1a\n")), st.binary(max_size=2048))
def test_random_bytes_after_a_magic_are_refused(magic: bytes, data: bytes) -> None:
    assert_refused(magic + data)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_images_are_refused_or_still_whole(
    make_elf: Any, make_bzimage: Any, compression: str, data: st.DataObject
) -> None:
    image = bytearray(make_bzimage(make_elf(), compression))
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image) - 65)) :]
        assert_refused(bytes(image))
        return
    for place in data.draw(st.lists(st.integers(0, len(image) - 1), min_size=1, max_size=4)):
        image[place] = data.draw(st.integers(0, 255))
    try:
        found = parse_kernel_image(bytes(image))
    except KernelImageError as error:
        assert "\n" not in str(error)
    else:
        assert found.vmlinux.startswith(b"\x7fELF")


def test_the_real_kernel_cut_short_is_refused(default_kernel: KernelFile) -> None:
    whole = default_kernel.path.read_bytes()
    for length in (1, 0x201, 0x206, 0x24F, 0x1000, len(whole) // 2):
        assert_refused(whole[:length])


def test_the_real_kernel_has_what_a_loader_needs(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    image, facts = default_facts
    assert image.setup_header is not None
    assert image.entry_paddr == min(segment.paddr for segment in image.segments)
    assert len(image.relocs) % 4 == 0 and len(image.relocs) > 100_000
    assert image.entry_paddr == facts.symbols.address_of("startup_64") - 0xFFFFFFFF80000000
    assert sum(segment.memory_bytes for segment in image.segments) > 30 << 20


# -- sizes that a hostile header claims ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init_bytes", "fits"), [(0xFFFF_FFFF, False), ((1 << 30) + 1, False), (1 << 30, True), (0, True)]
)
def test_memory_to_start_in_is_bounded(make_elf: Any, make_bzimage: Any, init_bytes: int, fits: bool) -> None:
    image = bytearray(make_bzimage(make_elf(), "gzip"))
    image[0x260:0x264] = init_bytes.to_bytes(4, "little")
    if fits:
        parse_kernel_image(bytes(image))
    else:
        with pytest.raises(KernelImageError, match="MiB to start in"):
            parse_kernel_image(bytes(image))


def elf_of(segments: int, text: bytes, sections: int = 0, names: bytes = b"") -> bytes:
    """An ELF file in which every segment is all of `text`, and every section's name begins `names`."""
    import struct

    at = 64 + 56 * segments
    behind = at + len(text) + len(names)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0x1000000, 64, behind if sections else 0, 0, 64, 56, segments,
        64, sections, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, at, 0xFFFFFFFF81000000, 0x1000000, len(text), len(text), 0x200000)
    section = struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at + len(text), len(names), 0, 0, 1, 0)
    return header + segment * segments + text + names + section * sections


def test_segments_over_one_another_are_refused_for_they_multiply_what_is_loaded() -> None:
    parse_kernel_image(elf_of(1, bytes(1 << 20)))
    with pytest.raises(KernelImageError, match="over one another"):
        parse_kernel_image(elf_of(1000, bytes(1 << 20)))


def test_names_of_sections_are_bounded() -> None:
    """A name without an end, 60,000 times: as many copies of 16 MiB."""
    image = parse_kernel_image(elf_of(1, bytes(4096), 60_000, b"x" * (16 << 20)))
    assert {len(section.name) for section in image.sections} == {256}


_WORDS = st.sampled_from([0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["none", "gzip", "zstd"]), st.data())
def test_any_header_is_read_or_refused_within_bounds(
    make_elf: Any, make_bzimage: Any, compression: str, data: st.DataObject
) -> None:
    """Words of the setup header and of the ELF headers, set to what breaks arithmetic."""
    from thinbox.boot.payload import compressed_payload, unpacked_payload
    from thinbox.errors import InputError
    from thinbox.image.kallsyms import _elf_symbols

    elf = bytearray(elf_of(2, bytes(range(256)), 2, b"\0.symtab\0"))
    for at in data.draw(st.lists(st.integers(0, len(elf) - 8), max_size=3)):
        width = data.draw(st.sampled_from([2, 4, 8]))
        elf[at : at + width] = (data.draw(_WORDS) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    image = bytearray(make_bzimage(bytes(elf), compression))
    for at in data.draw(st.lists(st.integers(0x1F1, 0x268), max_size=3)):
        image[at : at + 4] = (data.draw(_WORDS) & 0xFFFF_FFFF).to_bytes(4, "little")
    for whole in (bytes(elf), bytes(image)):
        try:
            found = parse_kernel_image(whole)
        except KernelImageError as error:
            assert str(error).isprintable()
            continue
        assert sum(len(piece) for _paddr, piece in unpacked_payload(found).pieces) <= len(found.vmlinux)
        for section in found.sections:
            try:
                list(_elf_symbols(found, section))
            except KernelImageError:
                pass
        try:
            compressed_payload(found)
        except InputError as error:
            assert str(error).isprintable()
