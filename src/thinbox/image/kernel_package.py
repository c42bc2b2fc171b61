"""Which package of the archive holds a kernel, and which of its files is it.

Why it exists: distributions move the file. Until 6.18 Debian's `linux-image-RELEASE` holds `boot/vmlinuz-RELEASE`;
since 6.19 it holds nothing and depends on `linux-binary-RELEASE`, which holds `usr/lib/modules/RELEASE/vmlinuz`.
With debugging data (`linux-image-RELEASE-dbg`) it is `usr/lib/debug/boot/vmlinux-RELEASE`, or
`usr/lib/debug/lib/modules/RELEASE/vmlinux`.

Rules of this file: asked by what a package depends on and holds, never by a version.

Source: debian/changelog of Debian's package linux, 6.19~rc6-1~exp1 (linux-image became a meta package).
"""

from collections.abc import Callable
from pathlib import PurePosixPath

from thinbox.image.apt import PackageVersion

IMAGE_PREFIX, BINARY_PREFIX = "linux-image-", "linux-binary-"
_FILES = ("vmlinuz", "vmlinux", "bzImage")
_MODULES = "modules"


def with_kernel(package: PackageVersion | None, show: Callable[[str], PackageVersion | None]) -> PackageVersion | None:
    """Return the package that holds the kernel of `package`: itself, or the `linux-binary-` it depends on.

    `show` looks a package up in the archive's index.
    """
    if package is None or not package.name.startswith(IMAGE_PREFIX):
        return package
    wanted = BINARY_PREFIX + package.name.removeprefix(IMAGE_PREFIX)
    return show(wanted) if wanted in package.depends else package


def is_kernel_name(path: str) -> bool:
    """Tell whether a file of a package is a kernel: vmlinuz, vmlinux or bzImage, with or without its release."""
    name = PurePosixPath(path).name
    return name.partition("-")[0] in _FILES and not name.endswith(".py")  # vmlinux-gdb.py


def release_of(member: str) -> str | None:
    """Return the release that the path of a packaged kernel names, None if it names none."""
    path = PurePosixPath(member)
    _kind, dash, release = path.name.partition("-")
    if dash and release:
        return release
    folder = path.parent
    return folder.name if folder.parent.name == _MODULES else None
