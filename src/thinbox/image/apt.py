"""The package archive this machine is set up for, asked through apt with a private state.

Why it exists: apt knows the archive's addresses, keys and proxies and checks its signatures; nothing of
that should be done again. With its lists, cache and status under our own folder it needs neither root
nor an earlier `apt-get update`, and changes nothing on the machine.

Rules of this file: only sources of the Debian and Ubuntu archives are asked first, all sources if those
do not have the package, so that a broken third-party source is no obstacle; apt never outlives us.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from thinbox.errors import SourceError
from thinbox.image.cache import make_folder, store_bytes

INDEX_MAX_AGE_S = 7 * 24 * 3600.0
"""How long a package index is believed without asking the archive again."""

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*$")  # Debian policy 5.6.7; also: never an option
_ARCHIVE = re.compile(
    r"debian\.org|ubuntu\.com|(debian|ubuntu)-archive-keyring|/(debian|debian-security|ubuntu)/?(\s|$)"
)
_FAILURE = re.compile(r"^[EW]: .*(Failed to fetch|Some index files failed)", re.MULTILINE)
_GRACE_S = 2.0


class PackageNotFoundError(SourceError):
    """The archive answered, and has no such package."""


@dataclass(frozen=True, slots=True)
class PackageVersion:
    """The newest version of a package in the archive's signed index; `depends` are package names."""

    name: str
    version: str
    sha256: str
    size_bytes: int
    depends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AptArchive:
    """apt with its state in `folder`, for amd64 packages whatever this machine is.

    `etc` is where the machine's sources are; `every_source` lifts the restriction to Debian's and Ubuntu's.
    """

    folder: Path
    etc: Path = Path("/etc/apt")
    every_source: bool = False

    def update(self) -> bool:
        """Fetch the package index, and nothing else; tell whether every source answered.

        Raises:
            SourceError: apt is missing or cannot run.
            CacheError: the folder cannot be written.
        """
        self._prepare()
        code, output = self._run(["apt-get", "update"])
        complete = code == 0 and _FAILURE.search(output) is None
        if complete:
            store_bytes(self._stamp, b"")
        return complete

    @property
    def index_is_fresh(self) -> bool:
        """Whether the last complete update was less than `INDEX_MAX_AGE_S` ago."""
        try:
            return 0 <= time.time() - self._stamp.stat().st_mtime < INDEX_MAX_AGE_S
        except OSError:
            return False

    def show(self, name: str) -> PackageVersion | None:
        """Return the newest version of package `name` in the index, None if it has none."""
        if not _NAME.match(name):
            raise SourceError(f"{name!r} is not a package name; use lower-case letters, digits, + - .")
        if not (self.folder / "state" / "lists").is_dir():
            return None
        self._prepare()
        code, output = self._run(["apt-cache", "show", "--no-all-versions", f"{name}:amd64"])
        return _parse_package(output) if code == 0 else None

    def download(self, package: PackageVersion, into: Path) -> Path | None:
        """Download a package into the empty folder `into`; None if the archive does not hand it out."""
        self._prepare()
        code, _ = self._run(["apt-get", "download", f"{package.name}:amd64={package.version}"], cwd=into)
        found = list(into.glob("*.deb"))
        return found[0] if code == 0 and len(found) == 1 else None

    @property
    def _stamp(self) -> Path:
        return self.folder / "updated"

    def _prepare(self) -> None:
        """Write apt's configuration; the machine's own (proxies, keys) is read first and stays in force."""
        if shutil.which("apt-get") is None:
            raise SourceError("apt-get is not installed, so no package can be fetched; give a file (--kernel FILE)")
        for name in ("state/lists/partial", "cache/archives/partial", "log", "sources.list.d"):
            make_folder(self.folder / name)
        store_bytes(self.folder / "status", b"")
        if not self.every_source:
            _copy_archive_sources(self.etc, self.folder / "sources.list.d")
        store_bytes(self.folder / "apt.conf", self._configuration().encode())

    def _configuration(self) -> str:
        folder = self.folder
        sources = self.etc if self.every_source else folder
        return "\n".join(
            [
                f'Dir::State "{folder}/state";',
                f'Dir::State::lists "{folder}/state/lists";',
                f'Dir::State::status "{folder}/status";',
                f'Dir::Cache "{folder}/cache";',
                f'Dir::Log "{folder}/log";',
                f'Dir::Etc::SourceList "{sources}/sources.list";',
                f'Dir::Etc::SourceParts "{sources}/sources.list.d";',
                "#clear APT::Architectures;",
                'APT::Architecture "amd64";',
                'APT::Architectures { "amd64"; };',
                'APT::Sandbox::User "root";',  # the _apt user could not enter a private folder
                # Hooks of the machine's own apt have no business here.
                "#clear APT::Update::Pre-Invoke;",
                "#clear APT::Update::Post-Invoke;",
                "#clear APT::Update::Post-Invoke-Success;",
                'Acquire::Languages "none";',
                'Acquire::Retries "1";',
                'Acquire::http::Timeout "20";',
                'Acquire::https::Timeout "20";',
                *(f'Acquire::IndexTargets::{target}::DefaultEnabled "false";' for target in self._other_indexes()),
                "",
            ]
        )

    def _other_indexes(self) -> list[str]:
        """Return the indexes this machine would fetch beside the packages: translations, icons, sources."""
        _, output = _run_quietly(["apt-config", "dump"], None, None)
        targets = re.findall(r"^Acquire::IndexTargets::([^:\s]+::[^:\s]+) ", output, re.MULTILINE)
        return [target for target in dict.fromkeys(targets) if target != "deb::Packages"]

    def _run(self, command: list[str], cwd: Path | None = None) -> tuple[int, str]:
        return _run_quietly([command[0], "-q", "-c", str(self.folder / "apt.conf"), *command[1:]], cwd, self.folder)


def _copy_archive_sources(etc: Path, folder: Path) -> None:
    """Copy the entries of the Debian and Ubuntu archives from the machine's sources, each format to one file."""
    lines: list[str] = []
    stanzas: list[str] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            if path.suffix == ".list":
                lines += [line for line in text.splitlines() if line.startswith("deb ") and _ARCHIVE.search(line)]
            elif path.suffix == ".sources":
                stanzas += [part for part in re.split(r"\n\s*\n", text) if _is_archive_stanza(part)]
    store_bytes(folder / "archive.list", "".join(line + "\n" for line in lines).encode())
    store_bytes(folder / "archive.sources", "\n\n".join(stanzas).encode() + b"\n")


def _is_archive_stanza(stanza: str) -> bool:
    fields = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
    return bool(re.search(r"^Types:.*\bdeb\b", fields, re.MULTILINE | re.IGNORECASE)) and bool(_ARCHIVE.search(fields))


def _parse_package(output: str) -> PackageVersion | None:
    """Parse the first stanza of `apt-cache show`; None if it is not of an archive (no hash)."""
    fields = dict(re.findall(r"^([A-Za-z0-9-]+):[ \t]*(.*)$", output.partition("\n\n")[0], re.MULTILINE))
    try:
        return PackageVersion(
            name=fields["Package"],
            version=fields["Version"],
            sha256=fields["SHA256"].lower(),
            size_bytes=int(fields["Size"]),
            depends=tuple(re.findall(r"(?:^|, )([a-z0-9][a-z0-9+.-]*)", fields.get("Depends", ""))),
        )
    except (KeyError, ValueError):
        return None


def _run_quietly(command: list[str], cwd: Path | None, home: Path | None) -> tuple[int, str]:
    """Run a command and return its exit status and output; it and its children end when we do (Ctrl-C)."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    if home is not None:
        environment["HOME"] = str(home)  # gpgv may not be able to use the real one
    try:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # one group with its transports, and Ctrl-C is ours to handle
        )
    except OSError as error:
        raise SourceError(f"{command[0]} cannot run ({error.strerror}); give a file (--kernel FILE)") from error
    try:
        output, _ = child.communicate()
    except BaseException:
        _end_group(child)
        raise
    return child.returncode, output.decode("utf-8", "replace")


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End apt and its transports: politely, so that it unlocks its lists, then not."""
    for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait_s)
