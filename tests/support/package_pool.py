"""Many packages of Debian's archive at once: what depends on what is read in apt's index, one command downloads them all.

Why it exists: `thinbox.image.source.fetch_package` asks apt three times for each package, which is right for a kernel
and too slow for the hundreds of packages that a corpus of programs is made of.

Rules of this file: apt's state is thinbox's own (`AptArchive`), and apt checks the signatures of the index and the hashes
of what it downloads.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from thinbox.errors import SourceError
from thinbox.image.apt import AptArchive
from thinbox.image.cache import cache_dir, lock, make_folder

_FIELDS = ("Package", "Version", "Depends", "Pre-Depends", "Provides")
_FIELD = re.compile(rf"^({'|'.join(_FIELDS)}): (.*)$", re.MULTILINE)
_AT_ONCE = 100
"""Packages of one command: its line stays short, and what is interrupted is not lost whole."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A package as the archive's index has it. `depends` are groups of alternatives."""

    name: str
    version: str
    depends: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]

    @property
    def file(self) -> str:
        """The name of its file in the pool."""
        return f"{self.name}_{self.version.replace(':', '%3a')}.deb"


class PackagePool:
    """Packages in a folder of the cache; `fetch` is what `debian_rootfs` takes."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "package-pool"
        self._archive = AptArchive(cache_dir() / "apt")

    @cached_property
    def index(self) -> dict[str, Listed]:
        """Every package of the archive by name, the newest version of each.

        Raises:
            SourceError: the archive cannot be reached, and was not lately.
        """
        with lock("package-pool"):
            # Always: it writes apt's configuration, too; apt asks only whether there is anything new.
            if not self._archive.index_is_fresh or not self.configuration.exists():
                self._archive.update()
            found = parse_index(self._apt("apt-cache", "dumpavail"))
        if not found:
            raise SourceError("the package archive cannot be reached; connect and try again")
        return found

    @cached_property
    def _providers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for package in self.index.values():
            for name in package.provides:
                found.setdefault(name, []).append(package.name)
        return found

    def prepare(self, packages: Iterable[str], without: frozenset[str]) -> None:
        """Download what `packages` need, but for `without`, as far as it is not there; `fetch` then waits for nothing."""
        wanted, todo = {}, [(name,) for name in packages]
        asked = {name for (name,) in todo}
        while todo:
            group = todo.pop()
            if without.isdisjoint(group) or not asked.isdisjoint(group):
                package = next(filter(None, map(self._find, group)), None)
                if package is not None and package.name not in wanted:
                    wanted[package.name] = package
                    todo += package.depends
        self._download(list(wanted.values()))

    def fetch(self, name: str) -> Path:
        """Return the .deb of a package, or of the first that provides it; raises SourceError if there is none."""
        package = self._find(name)
        if package is None:
            raise SourceError(f"the package archive has no {name} for amd64")
        self._download([package])
        return self.folder / package.file

    def _find(self, name: str) -> Listed | None:
        return self.index.get(name) or next((self.index[one] for one in self._providers.get(name, ())), None)

    def _download(self, packages: list[Listed]) -> None:
        make_folder(self.folder)
        missing = [package for package in packages if not (self.folder / package.file).exists()]
        for at in range(0, len(missing), _AT_ONCE):
            some = missing[at : at + _AT_ONCE]
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=self.folder) as place:
                words = [f"{package.name}:amd64={package.version}" for package in some]
                self._apt("apt-get", "download", *words, cwd=Path(place))
                for deb in Path(place).glob("*.deb"):
                    name, version, _rest = deb.name.split("_")
                    deb.replace(self.folder / f"{name}_{version}.deb")
            lost = [package.name for package in some if not (self.folder / package.file).exists()]
            if lost:
                raise SourceError(f"{', '.join(lost)} cannot be downloaded; connect and try again")

    @property
    def configuration(self) -> Path:
        """apt's configuration, which reading the index writes."""
        return self._archive.folder / "apt.conf"

    def _apt(self, program: str, *words: str, cwd: Path | None = None) -> str:
        command = [program, "-q", "-c", str(self.configuration), *words]
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return done.stdout


def parse_index(text: str) -> dict[str, Listed]:
    """Return the packages of `apt-cache dumpavail` by name; of several versions the first, which is the newest."""
    found: dict[str, Listed] = {}
    for stanza in text.split("\n\n"):
        fields = dict(_FIELD.findall(stanza))
        if fields.get("Package") and fields["Package"] not in found:
            groups = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}".split(",")
            depends = tuple(bare_names(group, "|") for group in groups if group.strip())
            provides = bare_names(fields.get("Provides", ""), ",")
            found[fields["Package"]] = Listed(fields["Package"], fields.get("Version", ""), depends, provides)
    return found


def bare_names(text: str, separator: str) -> tuple[str, ...]:
    """Return the names of a dependency field: no versions, no architectures."""
    parts = (part.split("(")[0].split("[")[0].split(":")[0].strip() for part in text.split(separator))
    return tuple(part for part in parts if part)
