"""The newest cloud kernel that Debian's archive has, whatever suite this machine is set up for.

Why it exists: tests run on the kernel of the machine's own suite; what breaks first is the newest. Other suites are asked
by the same private apt, with sources of its own.

Rules of this file: no root, nothing of the machine's apt is changed; what was fetched is kept for a week.
"""

import json
import re
import tempfile
import time
from pathlib import Path

from thinbox.errors import SourceError
from thinbox.image.apt import INDEX_MAX_AGE_S, AptArchive, PackageVersion
from thinbox.image.cache import cache_dir, make_folder, store_bytes
from thinbox.image.kernel_package import IMAGE_PREFIX, with_kernel

SUITES = ("sid", "stable-backports")
META = "linux-image-cloud-amd64"
_MIRROR = re.compile(r"https?://[^\s\]]*debian\.org/debian/?(?=\s|$)")
_USUAL_MIRROR = "http://deb.debian.org/debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class NoNewestKernelError(Exception):
    """The archive has none, or does not answer: why, in words."""


def newest_kernel(etc: Path = Path("/etc/apt")) -> Path:
    """Return the package file of the newest kernel of SUITES; `etc` is where the machine's sources are.

    Raises:
        NoNewestKernelError: there is none to be had.
    """
    folder = cache_dir() / "newest-kernel"
    try:
        known = json.loads((folder / "known.json").read_bytes())
        if (folder / known["file"]).exists() and 0 <= time.time() - known["checked_s"] < INDEX_MAX_AGE_S:
            return folder / known["file"]
    except (OSError, ValueError, KeyError):
        pass
    if not _KEYRING.exists():
        raise NoNewestKernelError(f"{_KEYRING} is missing: apt install debian-archive-keyring")
    make_folder(folder)
    found: list[tuple[tuple[int, ...], PackageVersion, AptArchive]] = []
    asked: list[str] = []
    for suite in SUITES:
        try:
            archive = _archive_of(folder / suite, suite, etc)
            package = _kernel_of(archive)
        except SourceError as error:
            asked.append(f"{suite}: {error}")
            continue
        if package is None:
            asked.append(f"{suite}: no {META}")
        else:
            found.append((version_key(package.version), package, archive))
    if not found:
        raise NoNewestKernelError(f"the archive has no newest kernel ({'; '.join(asked)})")
    _key, package, archive = max(found, key=lambda one: one[0])
    with tempfile.TemporaryDirectory(dir=folder) as place:
        deb = archive.download(package, Path(place))
        if deb is None:
            raise NoNewestKernelError(f"the archive does not hand out {package.name} {package.version}")
        kept = folder / f"{package.name}.deb"
        deb.replace(kept)
    store_bytes(folder / "known.json", json.dumps({"file": kept.name, "checked_s": time.time()}).encode())
    return kept


def version_key(version: str) -> tuple[int, ...]:
    """Return the numbers of an upstream version, to compare kernels by: those of a release candidate are less."""
    upstream = version.partition("-")[0]
    numbers = tuple(int(part) for part in re.findall(r"\d+", upstream.partition("~")[0]))
    return (*numbers, *([0] * (4 - len(numbers))), -1 if "~" in upstream else 0)


def _archive_of(folder: Path, suite: str, etc: Path) -> AptArchive:
    own = folder / "etc"
    make_folder(own / "sources.list.d")
    source = f"deb [signed-by={_KEYRING}] {_mirror(etc)} {suite} main\n"
    store_bytes(own / "sources.list", source.encode())
    return AptArchive(folder / "apt", etc=own)


def _mirror(etc: Path) -> str:
    """Return the mirror this machine takes Debian from, the usual one if it takes it from none."""
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.is_file() and (found := _MIRROR.search(path.read_text(errors="replace"))):
            return found[0]
    return _USUAL_MIRROR


def _kernel_of(archive: AptArchive) -> PackageVersion | None:
    """Return the package with the kernel that META depends on."""
    if not archive.index_is_fresh:
        archive.update()
    meta = archive.show(META)
    names = () if meta is None else (name for name in meta.depends if name.startswith(IMAGE_PREFIX))
    name = next(iter(names), None)
    return None if name is None else with_kernel(archive.show(name), archive.show)
