"""Facts are the kernel's own, a second start finds them in the cache, and a damaged cache is rebuilt."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from thinbox.errors import KernelImageError
from thinbox.image import KernelFacts, KernelFile, KernelImage, load_facts
from thinbox.image.facts import _preempt_model
from thinbox.image.facts_file import read_facts

facts_module = import_module("thinbox.image.facts")


def same(one: tuple[KernelImage, KernelFacts], other: tuple[KernelImage, KernelFacts]) -> bool:
    return (
        one[0] == other[0]
        and all(
            getattr(one[1], name) == getattr(other[1], name)
            for name in ("release", "banner", "build", "sha256", "config", "sys_call_table", "unimplemented")
        )
        and list(one[1].symbols) == list(other[1].symbols)
    )


def test_the_release_is_that_of_the_file(
    default_kernel: KernelFile, default_facts: tuple[KernelImage, KernelFacts]
) -> None:
    _, facts = default_facts
    assert facts.release == default_kernel.label
    assert facts.banner.startswith(f"Linux version {facts.release} ")
    assert facts.build.startswith("#") and facts.banner.endswith(facts.build)
    assert facts.sha256 == default_kernel.data_sha256


def test_the_call_table_has_the_numbers_of_the_abi(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    """Numbers from the x86-64 ABI (arch/x86/entry/syscalls/syscall_64.tbl), which never change."""
    table = default_facts[1].sys_call_table
    known = {
        0: "read",
        1: "write",
        39: "getpid",
        59: "execve",
        60: "exit",
        102: "getuid",
        231: "exit_group",
        257: "openat",
    }
    assert {nr: table[nr] for nr in known} == {nr: f"__x64_sys_{name}" for nr, name in known.items()}
    assert len(table) >= 424
    missing = default_facts[1].unimplemented
    assert {134, 335, 423} <= missing  # uselib is off in Debian; 335 to 423 were never given out
    assert not missing & set(known)
    assert all(table[nr].startswith("__x64_") for nr in range(len(table)))


def test_what_debian_builds_its_cloud_kernel_with(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    config = default_facts[1].config
    assert all(config[name] is True for name in ("pti", "kaslr", "relocatable", "btf", "smp", "modules"))


def test_the_preempt_model_is_read_from_the_banner() -> None:
    assert _preempt_model("#1 SMP PREEMPT_DYNAMIC Debian") == "dynamic"
    assert _preempt_model("#1 SMP PREEMPT_RT Debian") == "rt"
    assert _preempt_model("#1 SMP PREEMPT Debian") == "full"
    assert _preempt_model("#1 SMP Debian") == "none or voluntary"


def test_cached_facts_are_those_that_were_parsed_and_damage_is_noticed(
    own_cache: Path, default_kernel: KernelFile, default_facts: tuple[KernelImage, KernelFacts]
) -> None:
    parsed = load_facts(default_kernel)
    assert same(parsed, default_facts)
    assert same(load_facts(default_kernel), parsed)
    for path in sorted((own_cache / "facts").iterdir()):
        for damage in (b"", None):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data if damage is None else damage)
            assert read_facts(default_kernel.data_sha256) is None
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    assert read_facts(default_kernel.data_sha256) is not None
    next((own_cache / "facts").glob("*.facts")).write_bytes(b"damaged")
    assert same(load_facts(default_kernel), parsed)
    assert read_facts(default_kernel.data_sha256) is not None


def test_a_second_start_works_nothing_out_again_and_imports_little(
    default_kernel: KernelFile, default_facts: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes in seconds, `thinbox bench` tells."""

    def again(*_arguments: object) -> None:
        raise AssertionError("worked out again")

    for name in ("parse_kernel_image", "parse_symbols", "parse_facts"):
        monkeypatch.setattr(facts_module, name, again)
    load_facts(default_kernel)
    program = (
        "import sys; from thinbox.image import *; load_facts(resolve_kernel(None)); "
        "print([name for name in ('vmlinux_to_elf', 'elftools', 'debian', 'lz4', 'zstandard', 'unicorn', 'numba') "
        "if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_a_file_that_changed_after_it_was_found_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"x")
    with pytest.raises(KernelImageError, match="changed"):
        load_facts(KernelFile(path, "0" * 64, "x"))


def test_a_file_that_is_no_kernel_is_one_line(own_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"not a kernel at all")
    with pytest.raises(KernelImageError) as caught:
        load_facts(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
