"""Modules are found by name and by alias, behind all that they need, and only those of the kernel at hand."""

import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.module_file import RELEASE, build_module_file, module

from thinbox.errors import InputError, SourceError
from thinbox.image.module_file import ModuleInfo
from thinbox.image.modules import ModuleLibrary
from thinbox.image.source import KernelFile

MODULES = (
    module("base"),
    module("middle", "base", before=("crypto-fast", "not_there"), aliases=("net-pf-40",)),
    module("top", "middle", after=("late",), aliases=("fs-top", "pci:v0000[89]086d*")),
    module("late"),
    module("fast", aliases=("crypto-fast",)),
    module("other_pf", aliases=("net-pf-40",)),
)
LISTS = {"modules.builtin": b"kernel/fs/ext4/ext4.ko\n", "modules.builtin.modinfo": b"ext4.alias=fs-ext3\0"}

Fill = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, own_cache: Path) -> Fill:
    def fill(*modules: ModuleInfo) -> Path:
        for info in modules:
            path = tmp_path / "modules" / "kernel" / f"{info.name.replace('_', '-')}.ko.xz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(lzma.compress(build_module_file(info)))
        for name, data in LISTS.items():
            (tmp_path / "modules" / name).write_bytes(data)
        return tmp_path / "modules"

    return fill


def library(path: Path) -> ModuleLibrary:
    return ModuleLibrary(None, RELEASE, path)


def test_a_module_comes_behind_what_it_needs_and_before_what_is_to_follow(folder: Fill) -> None:
    order = library(folder(*MODULES)).require(["top"])
    assert order.names == ("base", "fast", "middle", "top", "late")
    assert order.required == {"base", "middle", "top"}


def test_an_alias_of_several_is_a_choice(folder: Fill) -> None:
    order = library(folder(*MODULES)).require(["net-pf-40"])
    assert order.choices == (("middle", "other_pf"),) and not order.required
    assert library(folder(*MODULES)).find("pci:v00008086d1") == ("top",)
    assert library(folder(*MODULES)).find("pci:v00007086d1") is None


def test_what_is_in_the_kernel_needs_nothing(folder: Fill) -> None:
    found = library(folder(*MODULES, module("user", "ext4")))
    assert found.find("ext4") == found.find("fs-ext3") == ()
    assert found.require(["ext4"]).names == ()
    assert found.require(["user"]).names == ("user",)


def test_dashes_and_underscores_mean_the_same(folder: Fill) -> None:
    found = library(folder(*MODULES))
    assert found.require(["other-pf"]).names == found.require(["other_pf"]).names == ("other_pf",)


def test_an_unknown_module_is_refused_with_the_nearest(folder: Fill) -> None:
    with pytest.raises(InputError, match=r"there is no module 'midle' in .*; did you mean 'middle'\?"):
        library(folder(*MODULES)).require(["midle"])


def test_a_module_of_another_kernel_is_refused_by_both_names(folder: Fill) -> None:
    with pytest.raises(InputError, match=f"module base .* is of kernel 5.0, and this is {RELEASE}"):
        library(folder(module("base", release="5.0"), module("top", "base"))).require(["top"])


def test_what_a_module_needs_must_be_there(folder: Fill) -> None:
    with pytest.raises(InputError, match="the module 'gone', which is needed, is not in"):
        library(folder(module("top", "gone"))).require(["top"])


def test_modules_that_need_each_other_come_to_an_end(folder: Fill) -> None:
    assert set(library(folder(module("a", "b"), module("b", "a"))).require(["a"]).names) == {"a", "b"}


def test_bytes_are_unpacked_and_in_order(folder: Fill) -> None:
    found = library(folder(*MODULES))
    loaded = list(found.load(("base", "late")))
    assert [(one.name, one.data) for one in loaded] == [
        (name, build_module_file(module(name))) for name in ("base", "late")
    ]


def test_a_damaged_file_is_left_out(folder: Fill, tmp_path: Path) -> None:
    place = folder(*MODULES)
    (place / "kernel" / "late.ko.xz").write_bytes(b"\xfd7zXZ\0 damaged")
    assert library(place).require(["top"]).names[-1] == "top"


def test_a_package_is_read_once_and_a_changed_folder_again(
    folder: Fill, own_cache: Path, tmp_path: Path, make_deb: Any
) -> None:
    deb = tmp_path / "linux-image.deb"
    deb.write_bytes(make_deb({f"lib/modules/x/{info.name}.ko": build_module_file(info) for info in MODULES}))
    for rounds in range(2):
        lines: list[str] = []
        found = ModuleLibrary(None, RELEASE, deb, lines.append)
        assert [one.name for one in found.load(found.require(["middle"]).names)] == ["base", "fast", "middle"]
        assert bool(lines) is (rounds == 0)
    place = folder(module("base"))
    assert library(place).find("late") is None
    assert library(folder(module("late"))).find("late") == ("late",)


def test_a_package_beside_the_kernels_has_its_modules(own_cache: Path, tmp_path: Path, make_deb: Any) -> None:
    kernel = tmp_path / "linux-binary-x.deb"
    kernel.write_bytes(make_deb({"usr/lib/modules/x/vmlinuz": b"kernel"}))
    (tmp_path / f"linux-modules-{RELEASE}_1_amd64.deb").write_bytes(
        make_deb({"usr/lib/modules/x/base.ko": build_module_file(module("base"))})
    )
    file = KernelFile(own_cache / "vmlinuz", "", RELEASE, origin=kernel)
    assert ModuleLibrary(file, RELEASE).require(["base"]).names == ("base",)


def test_a_kernel_alone_has_none_and_the_option_is_named(tmp_path: Path, own_cache: Path) -> None:
    alone = KernelFile(tmp_path / "bzImage", "", "bzImage")
    with pytest.raises(SourceError, match="came without its modules; give their folder with --modules-from DIR"):
        ModuleLibrary(alone, RELEASE).require(["base"])


def test_a_folder_without_modules_is_refused(tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(InputError, match="holds no kernel modules"):
        library(tmp_path).require(["base"])
