"""Types are the kernel's BTF, or its DWARF, which is read once."""

import shutil
import subprocess
from pathlib import Path

import pytest

from thinbox.errors import KernelImageError
from thinbox.image import types
from thinbox.image.btf import TypeTable, assemble
from thinbox.image.cache import CACHE_VARIABLE
from thinbox.image.kernel import KernelImage, parse_kernel_image
from thinbox.image.types import find_types, read_types


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelImage:
    """A program with DWARF, and a cache of its own."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: apt install gcc")
    source, program = tmp_path / "a.c", tmp_path / "a"
    source.write_text("struct one { int a; long b; } one; int main(void) { return one.a; }")
    subprocess.run(["gcc", "-g", "-no-pie", source, "-o", program], check=True)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return parse_kernel_image(program.read_bytes())


def test_dwarf_is_read_once(image: KernelImage, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, kind = find_types(image)
    assert kind == "DWARF" and TypeTable(raw).offset_of("one", "b") == 8
    monkeypatch.setattr(types, "types_from_dwarf", lambda *_args: pytest.fail("read twice"))
    assert find_types(image) == (raw, kind)


def test_what_the_cache_has_damaged_is_read_again(image: KernelImage, tmp_path: Path) -> None:
    raw, _kind = find_types(image)
    (kept,) = (tmp_path / "cache/types").glob("*.btf")
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert find_types(image) == (raw, "DWARF")
    assert kept.read_bytes().endswith(raw), "and kept again"


def test_raw_btf_is_taken_as_it_is() -> None:
    raw = assemble(b"", b"\0")
    assert read_types(raw) == (raw, "BTF")


def test_a_kernel_without_either_says_what_to_do(image: KernelImage) -> None:
    sections = tuple(section for section in image.sections if "debug" not in section.name)
    without = KernelImage(**{name: getattr(image, name) for name in image.__slots__} | {"sections": sections})
    with pytest.raises(KernelImageError, match="CONFIG_DEBUG_INFO_BTF=y, or its vmlinux .* be given") as caught:
        find_types(without)
    assert "\n" not in str(caught.value)
    with pytest.raises(KernelImageError, match="neither a kernel nor raw BTF"):
        read_types(b"junk")
