"""Where kernels come from: a file, an installed one, the cache, or the package archive.

Why it exists: "the newest Debian cloud kernel, without root, once" is what most people want, and after the
first time it must work with no network. What was newest is remembered for a week; every file is
checked by hash when it is read from the cache, and fetched again if it is damaged.
"""

import contextlib
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from thinbox.errors import CacheError, InputError, KernelImageError, SourceError
from thinbox.image.apt import INDEX_MAX_AGE_S, AptArchive, PackageNotFoundError, PackageVersion
from thinbox.image.cache import (
    cache_dir,
    lock,
    make_folder,
    read_cached,
    sha256_of_cached,
    sha256_of_file,
    store_bytes,
)
from thinbox.image.companions import NONE, Companions, KernelSpec, find_build, read_spec
from thinbox.image.deb import DEB_MAGIC, NoMemberError, deb_member, find_deb_member, iter_deb_files
from thinbox.image.kernel import read_kernel_file
from thinbox.image.kernel_package import IMAGE_PREFIX, is_kernel_name, release_of, with_kernel

__all__ = [
    "DEFAULT_META",
    "KernelFile",
    "Progress",
    "deb_member",
    "fetch_package",
    "iter_deb_files",
    "list_kernels",
    "resolve_kernel",
]

Progress = Callable[[str], None]
"""Takes one line that says what is going on."""

DEFAULT_META = ("linux-image-cloud-amd64", "linux-image-virtual")
"""Packages that depend on the newest kernel: Debian's for clouds, Ubuntu's for virtual machines."""

_RELEASE = re.compile(r"[0-9]+\.[0-9]+[0-9A-Za-z.+~_-]*")
_RETRY_S = 3600.0  # how soon an archive that did not answer is asked again
_BOOT = Path("/boot")


@dataclass(frozen=True, slots=True)
class KernelFile:
    """A kernel on disk: a bzImage or vmlinux, the hash of its bytes, and what to call it (its release, if known); the
    files that have its symbols and types, if they are not its own; `origin` is the package or the build folder it is
    of, if the user named that."""

    path: Path
    data_sha256: str
    label: str
    companions: Companions = NONE
    origin: Path | None = None


@dataclass(frozen=True, slots=True)
class _Record:
    """What the cache remembers about a package asked for: the file it led to, its hash, and when (Unix time)."""

    package: str
    version: str
    file: str
    sha256: str
    checked_s: float

    @property
    def is_fresh(self) -> bool:
        return 0 <= time.time() - self.checked_s < INDEX_MAX_AGE_S


def resolve_kernel(
    spec: str | KernelSpec | None, progress: Progress | None = None, *, refresh: bool = False
) -> KernelFile:
    """Return the kernel `spec` means: None for the newest cloud kernel, a file (bzImage, vmlinux, .deb,
    libkrunfw.so), a folder it was built in, or a release; with `,symbols=FILE` and `,types=FILE` behind it,
    where those are.

    A release is looked for in /boot, in the cache, and in the archive. `refresh` asks the archive even if
    what it said last is recent.

    Raises:
        SourceError: it is nowhere to be found, or the archive cannot be reached.
        KernelImageError: the file cannot be read or holds no kernel.
        CacheError: the cache cannot be written.
    """
    say = progress or _silent
    name, companions = read_spec(spec)
    found = _find_kernel_file(name, say, refresh=refresh)
    return replace(found, companions=companions.over(found.companions))


def _find_kernel_file(spec: str | None, say: Progress, *, refresh: bool) -> KernelFile:
    if spec is None:
        return _default_kernel(say, refresh=refresh)
    path = Path(spec)
    if path.is_dir():
        image, companions = find_build(path)
        return replace(_kernel_at(image), companions=companions, origin=path)
    if path.exists() or "/" in spec or path.suffix == ".deb":
        return _kernel_at(path)
    if not _RELEASE.fullmatch(spec):
        raise SourceError(f"no kernel {spec}: neither a file nor a release such as 6.1.0-56-cloud-amd64")
    if not refresh:
        for known in list_kernels():
            if known.label == spec:
                return known
    return _package_kernel(IMAGE_PREFIX + spec, None, say, refresh=refresh)


def fetch_package(
    name: str,
    *,
    follow_dependency_prefix: str | None = None,
    progress: Progress | None = None,
    refresh: bool = False,
) -> Path:
    """Return the .deb of the newest version of package `name` for amd64, from the cache if it is fresh.

    With `follow_dependency_prefix` the package is a meta package, and the first dependency whose name starts
    so is meant. Of a kernel's package, the one that holds the kernel is taken (`image.kernel_package`). If the archive
    does not answer, an older cached file will do, unless `refresh` is set.

    Raises:
        SourceError: no such package, or the archive cannot be reached and nothing is cached.
        CacheError: the cache cannot be written.
    """
    say = progress or _silent
    record = _read_record(name)
    if record is not None and record.is_fresh and not refresh and _is_intact(record):
        return _packages() / record.file
    with lock("packages"):
        record = _read_record(name)  # another process may just have fetched it
        cached = record is not None and _is_intact(record)
        if record is not None and cached and record.is_fresh and not refresh:
            return _packages() / record.file
        try:
            return _fetch(name, follow_dependency_prefix, say, update=refresh or record is not None)
        except SourceError as error:
            if record is None or not cached or refresh:
                raise
            say(f"{error}; using {record.file} from the cache")
            retry = asdict(record) | {"checked_s": time.time() - INDEX_MAX_AGE_S + _RETRY_S}
            store_bytes(_record_path(name), json.dumps(retry).encode())
            return _packages() / record.file


def list_kernels() -> tuple[KernelFile, ...]:
    """Return the installed kernels that can be read and the intact cached ones; never asks the archive."""
    found = []
    candidates = [*sorted(_BOOT.glob("vmlinuz-*")), *sorted((cache_dir() / "kernels").glob("*/vmlinuz-*"))]
    for path in candidates:
        with contextlib.suppress(OSError, KernelImageError):
            digest = _installed_hash(path) if path.parent == _BOOT else sha256_of_cached(path)
            if path.parent == _BOOT or _stored_hash(path) == digest:
                found.append(KernelFile(path, digest, path.name.removeprefix("vmlinuz-")))
    return tuple(found)


def _installed_hash(path: Path) -> str:
    """Return the hash of a kernel outside the cache; KernelImageError if it cannot be read."""
    try:
        return sha256_of_file(path)
    except InputError as error:
        raise KernelImageError(str(error)) from error


def _default_kernel(say: Progress, *, refresh: bool) -> KernelFile:
    known = [name for name in DEFAULT_META if _read_record(name) is not None]
    for name in known or DEFAULT_META:
        with contextlib.suppress(PackageNotFoundError):
            return _package_kernel(name, IMAGE_PREFIX, say, refresh=refresh)
    raise SourceError(f"the archive has none of {', '.join(DEFAULT_META)}; give a kernel with --kernel FILE")


def _package_kernel(name: str, follow: str | None, say: Progress, *, refresh: bool) -> KernelFile:
    record = _read_record(name)
    extracted = _extracted_kernel(record.sha256) if record is not None else None
    if record is not None and record.is_fresh and extracted is not None and not refresh:
        return extracted
    try:
        deb = fetch_package(name, follow_dependency_prefix=follow, progress=say, refresh=refresh)
    except SourceError as error:
        if extracted is None or refresh:
            raise
        say(f"{error}; using {extracted.label} from the cache")  # the package is gone, its kernel is not
        return extracted
    return _extract_kernel(deb, sha256_of_cached(deb))


def _kernel_at(path: Path) -> KernelFile:
    """Return the kernel in a file the user named."""
    data = read_kernel_file(path)
    digest = hashlib.sha256(data).hexdigest()
    if data.startswith(DEB_MAGIC):
        return replace(_extracted_kernel(digest) or _extract_kernel(path, digest), origin=path)
    return KernelFile(path, digest, path.name.removeprefix("vmlinuz-"))


def _extract_kernel(deb: Path, deb_sha256: str) -> KernelFile:
    known = _extracted_kernel(deb_sha256)
    if known is not None:
        return known
    member, data = _find_kernel(deb)
    release = release_of(member) or deb.stem
    path = _kernel_folder(deb_sha256) / f"vmlinuz-{release}"
    _store_hashed(path, data)
    return KernelFile(path, _stored_hash(path) or "", release)


def _find_kernel(deb: Path) -> tuple[str, bytes]:
    try:
        return find_deb_member(deb, is_kernel_name)
    except NoMemberError as error:
        raise KernelImageError(
            f"{deb} holds no kernel; if it is a meta package, give the package it depends on (linux-binary-…)"
        ) from error


def _extracted_kernel(deb_sha256: str) -> KernelFile | None:
    """Return the kernel taken out of that package before, if it is still as it was."""
    for path in sorted(_kernel_folder(deb_sha256).glob("vmlinuz-*")):
        with contextlib.suppress(OSError):
            if path.suffix != ".sha256" and (digest := sha256_of_cached(path)) == _stored_hash(path):
                return KernelFile(path, digest, path.name.removeprefix("vmlinuz-"))
    return None


def _kernel_folder(deb_sha256: str) -> Path:
    return cache_dir() / "kernels" / deb_sha256[:16]


def _fetch(name: str, prefix: str | None, say: Progress, *, update: bool) -> Path:
    """Find a package in the archive, download it unless the cache has it, and remember it."""
    failure: SourceError | None = None
    for every_source in (False, True):
        archive = AptArchive(cache_dir() / ("apt-all" if every_source else "apt"), every_source=every_source)
        # A fresh index may still name a version the archive has replaced since: then ask again.
        for ask in (True,) if update or not archive.index_is_fresh else (False, True):
            try:
                return _fetch_from(archive, name, prefix, say, update=ask)
            except SourceError as error:
                # The first failure is the one to report, unless a later one knows there is no such package.
                failure = error if failure is None or isinstance(error, PackageNotFoundError) else failure
    raise failure or SourceError(f"{name} was looked for nowhere")


def _fetch_from(archive: AptArchive, name: str, prefix: str | None, say: Progress, *, update: bool) -> Path:
    complete = True
    if update:
        say(f"asking {'every package source' if archive.every_source else 'the package archive'} for its index")
        complete = archive.update()
    package = archive.show(name)
    if package is not None and prefix is not None:
        target = next((depend for depend in package.depends if depend.startswith(prefix)), None)
        package = archive.show(target) if target is not None else None
    package = with_kernel(package, archive.show)
    if package is None and complete:
        raise PackageNotFoundError(f"the package archive has no {name} for amd64; {_other_way(name)}")
    if package is None:
        raise SourceError(f"the package archive cannot be reached; connect and try again, or {_other_way(name)}")
    path = _download(archive, package, name, say)
    record = _Record(package.name, package.version, path.name, package.sha256, time.time() if complete else 0.0)
    store_bytes(_record_path(name), json.dumps(asdict(record)).encode())
    return path


def _download(archive: AptArchive, package: PackageVersion, name: str, say: Progress) -> Path:
    path = _packages() / f"{package.name}_{package.version.replace(':', '%3a')}_amd64.deb"
    with contextlib.suppress(OSError):
        if sha256_of_cached(path) == package.sha256:
            return path
    say(f"fetching {package.name} {package.version} ({package.size_bytes / 1e6:.1f} MB)")
    make_folder(_packages())
    try:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=_packages()) as folder:
            fetched = archive.download(package, Path(folder))
            data = fetched.read_bytes() if fetched is not None else b""
    except OSError as error:
        raise CacheError(f"cannot write into {_packages()}: {error.strerror}; free space there") from error
    if not data:
        raise SourceError(f"{package.name} cannot be downloaded; connect and try again, or {_other_way(name)}")
    _store_hashed(path, data)
    if _stored_hash(path) != package.sha256:
        path.unlink(missing_ok=True)
        raise SourceError(f"{package.name} does not have the hash its archive's index gives; try again later")
    return path


def _other_way(name: str) -> str:
    return "give a kernel with --kernel FILE" if name.startswith(IMAGE_PREFIX) else "check the machine's apt sources"


def _packages() -> Path:
    return cache_dir() / "packages"


def _record_path(name: str) -> Path:
    return _packages() / f"{name.replace('/', '_')}.json"


def _read_record(name: str) -> _Record | None:
    """Return what is remembered about a package; None if nothing is, or the file is damaged."""
    try:
        raw = json.loads(read_cached(_record_path(name)))
        record = _Record(
            str(raw["package"]), str(raw["version"]), str(raw["file"]), str(raw["sha256"]), float(raw["checked_s"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if Path(record.file).name == record.file else None


def _is_intact(record: _Record) -> bool:
    try:
        return sha256_of_cached(_packages() / record.file) == record.sha256
    except OSError:
        return False


def _store_hashed(path: Path, data: bytes) -> None:
    """Store a file and, next to it, its hash in the form `sha256sum -c` reads."""
    store_bytes(path, data)
    digest = hashlib.sha256(data).hexdigest()
    store_bytes(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n".encode())


def _stored_hash(path: Path) -> str | None:
    try:
        return read_cached(path.with_name(path.name + ".sha256")).decode("ascii").split()[0]
    except (OSError, ValueError, IndexError):
        return None


def _silent(_line: str) -> None:
    """Take the place of a progress function."""
