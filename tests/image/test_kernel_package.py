"""A package's kernel is found where each distribution puts it, by what the package holds and depends on."""

from pathlib import Path
from typing import Any

import pytest
from tests.image.test_source import publish
from thinbox.errors import KernelImageError
from thinbox.image import resolve_kernel
from thinbox.image.apt import PackageVersion
from thinbox.image.kernel_package import is_kernel_name, release_of, with_kernel

RELEASE = "7.3.4+deb13-cloud-amd64"
MODULES = f"usr/lib/modules/{RELEASE}/vmlinuz"


def package(name: str, *depends: str) -> PackageVersion:
    return PackageVersion(name, "1", "0" * 64, 1, depends)


@pytest.mark.parametrize(
    ("path", "release"),
    [
        ("boot/vmlinuz-6.1.0-9-cloud-amd64", "6.1.0-9-cloud-amd64"),
        (MODULES, RELEASE),
        (f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux", RELEASE),
        (f"usr/lib/debug/boot/vmlinux-{RELEASE}", RELEASE),
        ("somewhere/bzImage", None),
    ],
)
def test_a_kernel_and_its_release_are_read_off_its_path(path: str, release: str | None) -> None:
    assert is_kernel_name(path)
    assert release_of(path) == release


@pytest.mark.parametrize("path", ["boot/System.map-7.3", "usr/lib/debug/vmlinux-gdb.py", "boot/config-6.1", "vmlinuzz"])
def test_other_files_are_no_kernels(path: str) -> None:
    assert not is_kernel_name(path)


def test_the_binary_package_is_followed_only_where_the_image_depends_on_it() -> None:
    binary = package(f"linux-binary-{RELEASE}")
    new, old = package(f"linux-image-{RELEASE}", "dracut", binary.name), package(f"linux-image-{RELEASE}", "kmod")
    shown = {binary.name: binary}
    assert with_kernel(new, shown.get) is binary
    assert with_kernel(old, shown.get) is old
    assert with_kernel(package("busybox-static", binary.name), shown.get).name == "busybox-static"  # type: ignore[union-attr]
    assert with_kernel(None, shown.get) is None


def test_a_release_and_the_default_lead_to_the_kernel_behind_the_meta_packages(
    fake_archive: Path, make_deb: Any
) -> None:
    image, binary = f"linux-image-{RELEASE}", f"linux-binary-{RELEASE}"
    publish(fake_archive, "linux-image-cloud-amd64", depends=f"linux-base-cloud-amd64, {image} (= 7)")
    publish(fake_archive, image, make_deb({"usr/share/doc/x": b"nothing"}), depends=f"linux-base-x, {binary} (= 7)")
    publish(fake_archive, binary, make_deb({MODULES: b"KERNEL"}))
    found = resolve_kernel(None)
    assert found.label == RELEASE
    assert found.path.name == f"vmlinuz-{RELEASE}"
    assert found.path.read_bytes() == b"KERNEL"
    assert resolve_kernel(RELEASE, refresh=True) == found


def test_a_meta_packages_file_is_refused_with_what_to_give_instead(
    own_cache: Path, tmp_path: Path, make_deb: Any
) -> None:
    meta = tmp_path / "linux-image-7.deb"
    meta.write_bytes(make_deb({"usr/share/doc/x": b"nothing"}))
    with pytest.raises(KernelImageError, match="linux-binary") as caught:
        resolve_kernel(str(meta))
    assert "\n" not in str(caught.value)
