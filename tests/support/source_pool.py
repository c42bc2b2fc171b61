"""Source packages of Debian's archive: what their authors test with is in these, and in no binary package.

Rules of this file: apt's state is thinbox's own, as the package pool's; the lists of sources lie beside it. Nothing is
patched, configured or built.
"""

import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tests.support.package_pool import PackagePool
from thinbox.errors import SourceError
from thinbox.image.cache import cache_dir, lock, make_folder


class SourcePool:
    """Archives of source packages in a folder of the cache."""

    def __init__(self, pool: PackagePool) -> None:
        self.folder = cache_dir() / "source-pool"
        self._pool = pool

    def fetch(self, name: str) -> list[Path]:
        """Return the archives of a source package, the upstream's first; raises SourceError if it cannot be had."""
        place = self.folder / name
        with lock("source-pool"):
            if not (place / "done").exists():
                self._download(name, place)
        return sorted(place.glob("*.tar.*"), key=lambda path: (".orig" not in path.name, path.name))

    def _download(self, name: str, place: Path) -> None:
        make_folder(place)
        if not self._pool.index:  # what writes apt's configuration, and the machine's sources
            raise SourceError("the package archive cannot be reached; connect and try again")
        parts, lists = self.folder / "sources.list.d", self.folder / "lists"
        for folder in (parts, lists / "partial"):
            make_folder(folder)
        for path in (self._pool.configuration.parent / "sources.list.d").iterdir():
            (parts / path.name).write_text(source_entries(path.read_text(encoding="utf-8")), encoding="utf-8")
        if not list(lists.glob("*Sources*")):
            self._apt("update")
        said = self._apt("source", "--download-only", name, cwd=place)
        if not list(place.glob("*.dsc")) or not list(place.glob("*.orig*.tar.*")):
            raise SourceError(
                f"the source of {name} cannot be downloaded: {(said.splitlines() or ['nothing said'])[-1]}"
            )
        (place / "done").touch()

    def _apt(self, *words: str, cwd: Path | None = None) -> str:
        settings = {
            "Dir::State::Lists": self.folder / "lists",
            "Dir::Etc::SourceParts": self.folder / "sources.list.d",
            "Acquire::IndexTargets::deb-src::Sources::DefaultEnabled": "true",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        command = ["apt-get", "-q", "-c", str(self._pool.configuration), *options, *words]
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return done.stderr


def source_entries(text: str) -> str:
    """Return the entries of a file of sources for source packages.

    Those of the security archive are left out: it drops what it replaces sooner than its lists say.
    """
    stanzas = [part for part in re.split(r"\n\s*\n", text) if "security" not in part]
    text = re.sub(r"^Types:.*$", "Types: deb-src", "\n\n".join(stanzas), flags=re.MULTILINE)
    return re.sub(r"^deb ", "deb-src ", text, flags=re.MULTILINE).rstrip("\n") + "\n"


def unpack(archives: Sequence[Path], takes: Sequence[str], target: Path) -> None:
    """Unpack what lies below `takes` of a source package's archives; `.` is all.

    The folder in which upstream has all is left out, Debian's `debian` is not. Raises SourceError if it has nothing there.
    """
    for archive_path in archives:
        with tarfile.open(archive_path) as archive:
            for path, member in _members(archive, strip=".orig" in archive_path.name):
                if any(take == "." or path == take or path.startswith(f"{take}/") for take in takes):
                    _write(archive, member, target / path)
    lacking = [take for take in takes if not (target / take).exists()]
    if lacking:
        raise SourceError(f"{archives[0].name if archives else 'a source'} has no {lacking[0]}")


def _members(archive: tarfile.TarFile, *, strip: bool) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for member in archive:
        parts = PurePosixPath(member.name).parts
        parts = tuple(part for part in parts if part != ".")[1 if strip else 0 :]
        if parts and parts[0] != "/" and ".." not in parts:
            yield "/".join(parts), member


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    """Write a file, a folder or a symlink; nothing else is in a source package that is needed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        place.mkdir(exist_ok=True)
    elif member.issym():
        place.symlink_to(member.linkname)
    elif member.isfile():
        stream = archive.extractfile(member)
        place.write_bytes(stream.read() if stream else b"")
        place.chmod(0o755 if member.mode & 0o111 else 0o644)
