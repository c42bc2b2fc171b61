"""Symbols and types may lie beside a kernel: in a System.map, a vmlinux, raw BTF, or the folder it was built in."""

from pathlib import Path

import pytest
from thinbox.boot.ready import prepare
from thinbox.errors import KernelImageError, SourceError
from thinbox.image.btf import locate_btf
from thinbox.image.btf import assemble
from thinbox.image.companions import Companions, KernelSpec, find_build, load_symbols, load_types, read_spec, split_spec
from thinbox.image.facts import load_facts
from thinbox.image.source import resolve_kernel
from thinbox.session.session import run


def test_a_specification_names_the_files_beside_a_kernel() -> None:
    assert split_spec("bzImage") == ("bzImage", Companions())
    assert split_spec("a,b/bzImage") == ("a,b/bzImage", Companions()), "a comma in a name is a comma"
    found = split_spec("k,symbols=System.map,types=x/vmlinux")
    assert found == ("k", Companions(Path("System.map"), Path("x/vmlinux")))
    assert split_spec("6.1.0-9,types=t")[1] == Companions(None, Path("t"))


@pytest.mark.parametrize("spec", ["k,symbol=x", "k,symbols=", "k,symbols=a,symbols=b", "k,vmlinux,types=x"])
def test_words_that_mean_nothing_are_refused_in_one_line(spec: str) -> None:
    with pytest.raises(KernelImageError, match="symbols=FILE,types=FILE") as caught:
        split_spec(spec)
    assert "\n" not in str(caught.value)


def test_a_build_folder_has_the_kernel_and_what_is_beside_it(tmp_path: Path) -> None:
    with pytest.raises(KernelImageError, match="make bzImage"):
        find_build(tmp_path)
    boot = tmp_path / "arch/x86/boot"
    boot.mkdir(parents=True)
    (boot / "bzImage").write_bytes(b"b")
    assert find_build(tmp_path) == (boot / "bzImage", Companions())
    (tmp_path / "vmlinux").write_bytes(b"v")
    assert find_build(tmp_path) == (boot / "bzImage", Companions(tmp_path / "vmlinux", tmp_path / "vmlinux"))
    (tmp_path / "types.btf").write_bytes(b"t")
    assert find_build(tmp_path)[1].types == tmp_path / "types.btf"
    (boot / "bzImage").unlink()
    assert find_build(tmp_path)[0] == tmp_path / "vmlinux"


def test_files_named_apart_are_the_same_and_none_is_named_twice() -> None:
    files = Companions(Path("System.map"), Path("vmlinux"))
    assert read_spec(KernelSpec("k", files)) == read_spec("k,symbols=System.map,types=vmlinux") == ("k", files)
    assert read_spec(KernelSpec("k,types=t", Companions(Path("a,b")))) == ("k", Companions(Path("a,b"), Path("t")))
    assert read_spec(KernelSpec(None, files)) == (None, files), "of the default kernel"
    assert KernelSpec("k", files).words() == ["--kernel", "k", "--symbols", "System.map", "--types", "vmlinux"]
    with pytest.raises(KernelImageError, match="leave --types out"):
        read_spec(KernelSpec("k,types=t", files))


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The default kernel, a System.map of it, and its types as raw BTF."""
    folder, kernel = tmp_path_factory.mktemp("beside"), resolve_kernel(None)
    image, facts = load_facts(kernel)
    symbols, types = folder / "System.map", folder / "types.btf"
    symbols.write_text("".join(f"{vaddr:016x} {kind} {name}\n" for vaddr, kind, name in facts.symbols))
    offset, size = locate_btf(image, facts.symbols)
    types.write_bytes(image.vmlinux[offset : offset + size])
    return kernel.path, symbols, types


@pytest.mark.guest
def test_facts_from_beside_are_the_kernels_own(beside: tuple[Path, Path, Path]) -> None:
    path, symbols, types = beside
    own, other = load_facts(path)[1], load_facts(resolve_kernel(f"{path},symbols={symbols},types={types}"))[1]
    assert other.symbols.names == own.symbols.names
    assert len(other.types) == len(own.types)
    assert other.sys_call_table == own.sys_call_table
    assert other.sha256 != own.sha256, "other symbols are another kernel: no snapshot is shared"


@pytest.mark.guest
def test_a_kernel_with_them_beside_runs_a_tenant(beside: tuple[Path, Path, Path]) -> None:
    path, symbols, types = beside
    guest = prepare(f"{path},symbols={symbols},types={types}")
    assert run(guest, ["echo", "hello"]).stdout == b"hello\n"


@pytest.mark.guest
def test_symbols_of_another_kernel_are_refused(beside: tuple[Path, Path, Path], tmp_path: Path) -> None:
    image = load_facts(beside[0])[0]
    moved = tmp_path / "System.map"
    lines = beside[1].read_text().splitlines()
    moved.write_text("".join(f"{int(line[:16], 16) + 4096 & (1 << 64) - 1:016x}{line[16:]}\n" for line in lines))
    with pytest.raises(KernelImageError, match="not of this kernel"):
        load_symbols(moved, image)


@pytest.mark.guest
def test_types_of_another_kernel_are_refused(beside: tuple[Path, Path, Path], tmp_path: Path) -> None:
    image, facts = load_facts(beside[0])
    other = bytearray(beside[2].read_bytes())
    at = facts.types.type_starts  # every struct's members are moved by a word
    for start in at.tolist():
        word = 24 + 4 * start
        if other[word + 7] & 0x1F == 4:
            for member in range(int.from_bytes(other[word + 4 : word + 6], "little")):
                place = word + 12 + 12 * member + 8
                moved = int.from_bytes(other[place : place + 4], "little") + 64
                other[place : place + 4] = moved.to_bytes(4, "little")
    path = tmp_path / "types.btf"
    path.write_bytes(other)
    with pytest.raises(KernelImageError, match="not of this kernel: its first task") as caught:
        load_types(path, image, facts.symbols)
    assert "\n" not in str(caught.value)
    path.write_bytes(beside[2].read_bytes().replace(b"\0tcp_", b"\0tcq_"))
    with pytest.raises(KernelImageError, match="functions, and it lacks"):
        load_types(path, image, facts.symbols)
    path.write_bytes(assemble(b"", b"\0"))
    with pytest.raises(KernelImageError, match="no kernel's types"):
        load_types(path, image, facts.symbols)


@pytest.mark.guest
def test_what_is_neither_is_refused_in_one_line(beside: tuple[Path, Path, Path], tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk\n" * 10)
    image, facts = load_facts(beside[0])
    for load in (lambda path: load_types(path, image, facts.symbols), lambda path: load_symbols(path, image)):
        with pytest.raises(KernelImageError, match="neither") as caught:
            load(junk)
        assert "\n" not in str(caught.value)
    with pytest.raises((SourceError, KernelImageError)):
        load_facts(resolve_kernel(f"{beside[0]},types={tmp_path / 'nothing'}"))
