"""The symbols found are the kernel's own: all of them, where the linker put them, silently."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from thinbox.errors import KernelImageError
from thinbox.image import KernelFacts, KernelImage, load_kernel_image
from thinbox.image.kallsyms import parse_symbols

SOURCE = """
.globl _stext, _etext, visible
.text
_stext: visible: nop
hidden: nop
.weak maybe
maybe: nop
_etext: nop
.data
.globl datum
datum: .quad 1
.bss
room: .quad 0
"""


def test_an_elf_symbol_table_is_read_as_nm_reads_it(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("needs gcc and nm: apt install gcc binutils")
    (tmp_path / "x.s").write_text(SOURCE)
    output = tmp_path / "vmlinux"
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-Wl,-e,visible", "-o", output, tmp_path / "x.s"],
        check=True,
        capture_output=True,
    )
    lines = subprocess.run(["nm", output], capture_output=True, text=True, check=True).stdout.splitlines()
    expected = {(int(value, 16), kind, name) for value, kind, name in map(str.split, lines)}
    table = parse_symbols(load_kernel_image(output))
    found = {(int(start), kind, name) for start, kind, name in table}
    assert {entry for entry in found if not entry[2].startswith("_")} == {
        entry for entry in expected if not entry[2].startswith("_")
    }


def test_a_kernel_without_kallsyms_is_one_clear_line(make_elf: Any, capsys: pytest.CaptureFixture[str]) -> None:
    image = load_kernel_image(make_elf(b"Linux version 6.1.0 (x) \n".ljust(1 << 16, b"\0")))
    with pytest.raises(KernelImageError, match="CONFIG_KALLSYMS") as caught:
        parse_symbols(image)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_the_real_kernels_symbols_agree_with_its_segments(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    image, facts = default_facts
    text = image.section(".text")
    assert text is not None
    assert facts.symbols.text_start == text.vaddr
    assert facts.symbols.text_end == text.vaddr + text.size_bytes
    btf = image.section(".BTF")
    assert btf is not None and facts.symbols.address_of("__start_BTF") == btf.vaddr


def test_every_export_of_the_real_kernel_is_among_its_symbols(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    """__ksymtab_NAME holds, in place-relative form, where NAME is: the linker's word against kallsyms'."""
    image, facts = default_facts
    checked = 0
    for vaddr, _, name in facts.symbols:
        if not name.startswith("__ksymtab_"):
            continue
        relative = int.from_bytes(image.read_vaddr(vaddr, 4), "little", signed=True)
        export = name.removeprefix("__ksymtab_")
        target = (vaddr + relative) & 0xFFFFFFFFFFFFFFFF  # wraps round to a per-CPU variable's offset
        assert target in facts.symbols.addresses_of(export), export
        checked += 1
    assert checked > 1000


def test_static_functions_that_share_a_name_are_all_there(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    names = [name for _, kind, name in default_facts[1].symbols if kind == "t"]
    assert len(names) - len(set(names)) > 100
