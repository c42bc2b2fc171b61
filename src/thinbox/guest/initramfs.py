"""The initramfs: agent, busybox, and the few nodes a kernel needs before anything is mounted.

The newc cpio format is Documentation/driver-api/early-userspace/buffer-format.rst; no kept library
writes it, and these are its only twenty lines.
"""

import contextlib
import stat
from typing import TYPE_CHECKING

from thinbox.errors import CacheError
from thinbox.guest.agent import build_agent

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDERS = (
    "bin",
    "dev",
    "etc",
    "home",
    "lib",
    "mnt",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/sbin",
    "var",
)
_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    "etc/hostname": b"thinbox\n",
    "etc/hosts": b"127.0.0.1 localhost thinbox\n",
}


def fetch_busybox(progress: "Callable[[str], None] | None" = None) -> bytes:
    """Return busybox of Debian's package `busybox-static`, fetched once and cached."""
    from thinbox.image.cache import cache_dir, read_sealed, sha256_of_cached, store_sealed
    from thinbox.image.deb import deb_member
    from thinbox.image.source import fetch_package

    package = fetch_package("busybox-static", progress=progress)
    # To unpack it takes a twentieth of a second of every command.
    path = cache_dir() / "members" / f"busybox-{sha256_of_cached(package)[:32]}"
    busybox = read_sealed(path)
    if busybox is None:
        busybox = deb_member(package, lambda name: name.lstrip("./") in ("bin/busybox", "usr/bin/busybox"))
        with contextlib.suppress(CacheError):
            store_sealed(path, busybox)
    return busybox


def build_initramfs(busybox: bytes) -> bytes:
    """Return the initramfs as an uncompressed cpio archive; the same bytes for the same busybox."""
    out = bytearray()
    for name in FOLDERS:
        mode = 0o1777 if name == "tmp" else 0o755
        _add(out, name, stat.S_IFDIR | mode, b"")
    _add(out, "dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))
    _add(out, "dev/null", stat.S_IFCHR | 0o666, b"", device=(1, 3))
    _add(out, "init", stat.S_IFREG | 0o755, build_agent())
    _add(out, "bin/busybox", stat.S_IFREG | 0o755, busybox)
    for name, data in _FILES.items():
        _add(out, name, stat.S_IFREG | 0o644, data)
    _add(out, "TRAILER!!!", 0, b"")
    return bytes(out)


def _add(out: bytearray, name: str, mode: int, data: bytes, *, device: tuple[int, int] = (0, 0)) -> None:
    encoded = name.encode() + b"\0"
    fields = (len(out), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    out += b"070701" + b"".join(b"%08X" % value for value in fields) + encoded
    out += bytes(-len(out) % 4) + data
    out += bytes(-len(out) % 4)
