"""Fixtures of the image tests: the default kernel, and builders of small synthetic images and packages."""

import bz2
import gzip
import io
import lzma
import os
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from thinbox.image import KernelFacts, KernelFile, KernelImage, load_facts, resolve_kernel

MakeElf = Callable[..., bytes]
MakeBzImage = Callable[..., bytes]
MakeDeb = Callable[..., bytes]

TEXT_VADDR = 0xFFFFFFFF81000000
TEXT = bytes(range(256)) * 16


@pytest.fixture(scope="session")
def default_kernel() -> KernelFile:
    """Return the newest Debian cloud kernel; a machine without it and without network fails the tests."""
    return resolve_kernel(None)


@pytest.fixture(scope="session")
def default_facts(default_kernel: KernelFile) -> tuple[KernelImage, KernelFacts]:
    return load_facts(default_kernel)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder that thinbox uses for this test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("THINBOX_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def make_elf() -> MakeElf:
    return build_elf


@pytest.fixture(scope="session")
def make_bzimage() -> MakeBzImage:
    return build_bzimage


@pytest.fixture(scope="session")
def make_deb() -> MakeDeb:
    return build_deb


def build_elf(text: bytes = TEXT, *, machine: int = 62, trailer: bytes = b"") -> bytes:
    """Return a linked ELF file with one segment of `text` at 16 MiB, without sections."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, 0x1000000, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 120, TEXT_VADDR, 0x1000000, len(text), len(text) + 4096, 0x200000)
    return header + segment + text + trailer


def build_bzimage(
    unpacked: bytes, compression: str, *, version: int = 0x20F, xloadflags: int = 1, claimed: int | None = None
) -> bytes:
    """Return a bzImage whose payload is `unpacked`, packed as arch/x86/boot/compressed/Makefile does."""
    payload = PACKERS[compression](unpacked)
    if compression != "gzip":  # gzip's own trailer is the size
        payload += struct.pack("<I", len(unpacked))
    if claimed is not None:
        payload = payload[:-4] + struct.pack("<I", claimed)
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1
    setup[0x200:0x206] = b"\xeb\x6aHdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x234] = 1
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<II", setup, 0x248, 32, len(payload))
    return bytes(setup) + bytes(32) + payload + bytes(64)


def pack_lz4_with_the_tool(data: bytes) -> bytes:
    return subprocess.run(["lz4", "-l", "-9", "-c"], input=data, capture_output=True, check=True).stdout


def pack_lz4_legacy(data: bytes) -> bytes:
    import lz4.block

    blocks = [lz4.block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def pack_lzop(data: bytes) -> bytes:
    """Write lzop's container (version 1.03, no checksums) around blocks of 256 KiB."""
    import minilzo

    header = struct.pack(">HHHBBIIIIB", 0x1030, 0x2080, 0x0940, 1, 5, 0, 0o100644, 0, 0, 0) + bytes(4)
    blocks = b""
    for at in range(0, len(data), 256 << 10):
        plain = data[at : at + (256 << 10)]
        packed = minilzo.compress(plain)
        body = packed if len(packed) < len(plain) else plain
        blocks += struct.pack(">II", len(plain), len(body)) + body
    return b"\x89LZO\x00\r\n\x1a\n" + header + blocks + bytes(4)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "lz4": pack_lz4_legacy,
    "zstd": lambda data: zstandard.ZstdCompressor(19, write_content_size=False).compress(data),
    "lzo": pack_lzop,
}


def build_deb(files: dict[str, bytes], suffix: str = ".xz") -> bytes:
    """Return a package that holds `files` and a symbolic link, its data packed as `suffix` says."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo("./" + name)
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("./link")
        link.type, link.linkname = tarfile.SYMTYPE, "target"
        archive.addfile(link)
    packers = {"": PACKERS["none"], ".gz": PACKERS["gzip"], ".xz": PACKERS["xz"], ".bz2": PACKERS["bzip2"]}
    packed = {**packers, ".zst": PACKERS["zstd"]}[suffix](data.getvalue())
    members = {"debian-binary": b"2.0\n", "control.tar": b"", "data.tar" + suffix: packed}
    return b"!<arch>\n" + b"".join(_ar_member(name, content) for name, content in members.items())


def _ar_member(name: str, content: bytes) -> bytes:
    return (
        f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    )


FAKE_APT = """#!/bin/sh
# Stands in for apt: knows the packages in $FAKE_ARCHIVE (NAME.show, NAME.deb); writes down what it was asked.
echo "$(basename "$0") $*" >> "$FAKE_ARCHIVE/log"
for word; do last=$word; done
name=${last%%:*}
case "$(basename "$0") $*" in
    apt-config*) echo 'Acquire::IndexTargets::deb::Packages "";'; echo 'Acquire::IndexTargets::deb::Icons "";';;
    *" update"*)
        if [ -e "$FAKE_ARCHIVE/hang" ]; then echo $$ > "$FAKE_ARCHIVE/pid"; sleep 60 & wait; fi
        if [ -e "$FAKE_ARCHIVE/offline" ]; then echo "W: Failed to fetch http://x  Could not resolve"; fi;;
    *" show "*) cat "$FAKE_ARCHIVE/$name.show" 2>/dev/null || exit 100;;
    *" download "*) [ -e "$FAKE_ARCHIVE/offline" ] && exit 100; cp "$FAKE_ARCHIVE/$name.deb" .;;
esac
"""


@pytest.fixture
def fake_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    """Return the folder of a pretended package archive: apt in $PATH serves what is put there."""
    archive, programs = tmp_path / "archive", tmp_path / "bin"
    archive.mkdir()
    programs.mkdir()
    for name in ("apt-get", "apt-cache", "apt-config"):
        (programs / name).write_text(FAKE_APT)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ARCHIVE", str(archive))
    return archive
