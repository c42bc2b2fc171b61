"""Where the modules of a kernel are: its package, a folder, or what the package archive has for its release.

Why it exists: a kernel travels alone (a bzImage), in a package with its modules, or (Debian since 6.19) in one package
while its modules are in another, `linux-modules-RELEASE`.

Rules of this file:
- Files of a folder are read as they are now; those of a package, whose hash is known, may come from the cache.
- Whatever is wrong with a file, the only exception is `KernelImageError`; what is nowhere is a `SourceError`.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from thinbox.errors import InputError, KernelImageError, SourceError
from thinbox.host.files import read_file
from thinbox.image.cache import cache_dir, sha256_of_cached, sha256_of_file
from thinbox.image.deb import iter_deb_files_where
from thinbox.image.module_file import MOST_MODULE_BYTES, name_of_file
from thinbox.image.source import KernelFile, Progress, fetch_package

LISTS = ("modules.builtin", "modules.builtin.modinfo")
"""Files beside modules that say what is in the kernel itself (Documentation/kbuild/kbuild.rst)."""
_BOOT, _INSTALLED = Path("/boot"), Path("/lib/modules")
_MOST_FILES = 200_000
"""Files of a folder of modules, or of a build; a full build of 7.3 has some 100,000."""


class ModuleSource(Protocol):
    """A place that holds modules: `key` changes with its content, `title` is for messages."""

    @property
    def title(self) -> str: ...
    @property
    def key(self) -> str: ...
    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Yield path and bytes of each module or list whose path is `wanted`."""
        ...


@dataclass(frozen=True, slots=True)
class PackagedModules:
    """The modules in a Debian package."""

    deb: Path
    key: str

    @property
    def title(self) -> str:
        """The package's name."""
        return self.deb.name

    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Yield them in the package's order, in one pass."""
        for entry in iter_deb_files_where(self.deb, lambda path: _is_ours(path) and wanted(path)):
            if entry.data:
                yield entry.path, entry.data


@dataclass(frozen=True, slots=True)
class ModuleFolder:
    """The modules in a folder and those below: installed ones, or a build."""

    folder: Path
    key: str

    @property
    def title(self) -> str:
        """The folder."""
        return str(self.folder)

    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Yield them by name."""
        for path in _files_below(self.folder):
            if wanted(str(path)):
                try:
                    yield str(path), read_file(path, MOST_MODULE_BYTES)
                except InputError as error:
                    raise KernelImageError(str(error)) from error


def find_module_sources(
    kernel: KernelFile | None, release: str, given: Path | None, say: Progress
) -> Iterator[ModuleSource]:
    """Yield where the modules of a kernel may be, nearest first; `given` is what the user named, and then it alone.

    Raises:
        SourceError: they are nowhere, or the package archive cannot be reached.
        KernelImageError: what was named cannot be read.
    """
    if given is not None:
        yield _at(given)
        return
    tried = kernel is None
    if kernel is not None and kernel.origin is not None:
        yield _at(kernel.origin)
        if kernel.origin.is_file():
            for beside in sorted(kernel.origin.parent.glob(f"linux-modules-{release}_*.deb")):
                yield _at(beside)
            tried = True
    elif kernel is not None and kernel.path.parent == _BOOT:
        if (_INSTALLED / release).is_dir():
            yield _at(_INSTALLED / release)
        tried = True
    elif kernel is not None and kernel.path.is_relative_to(cache_dir() / "kernels"):
        yield from _cached_package(kernel.path.parent.name)
        tried = True
    if not tried:
        raise SourceError(f"the kernel {release} came without its modules; give their folder with --modules-from DIR")
    for name in (f"linux-modules-{release}", f"linux-image-{release}"):
        with contextlib.suppress(SourceError):
            yield _at(fetch_package(name, progress=say))
    raise SourceError(f"the modules of kernel {release} are not in its package; give their folder with --modules-from")


def _cached_package(begin: str) -> Iterator[ModuleSource]:
    """Yield the package in the cache whose hash begins so, as the folder of the kernel taken out of it is called."""
    for deb in sorted((cache_dir() / "packages").glob("linux-*.deb")):
        with contextlib.suppress(OSError):
            found = sha256_of_cached(deb)
            if found.startswith(begin):
                yield PackagedModules(deb, found)


def _at(path: Path) -> ModuleSource:
    if path.is_dir():
        digest = hashlib.sha256(str(path).encode())
        for file in _files_below(path):
            status = file.stat()
            digest.update(f"\n{file} {status.st_size} {status.st_mtime_ns}".encode())
        return ModuleFolder(path, digest.hexdigest())
    try:
        return PackagedModules(path, sha256_of_file(path))
    except InputError as error:
        raise KernelImageError(f"{path} is neither a folder of modules nor a package of them: {error}") from error


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield modules and lists, sorted; links to folders are not followed."""
    seen = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        seen += len(names) + len(folders)
        if seen > _MOST_FILES:
            raise KernelImageError(
                f"{folder} has more than {_MOST_FILES} files; give the folder of one kernel's modules"
            )
        for name in sorted(names):
            path = Path(place, name)
            if _is_ours(name) and path.is_file():
                yield path


def _is_ours(path: str) -> bool:
    return name_of_file(path) is not None or path.rpartition("/")[2] in LISTS


__all__ = ["LISTS", "ModuleFolder", "ModuleSource", "PackagedModules", "find_module_sources"]
