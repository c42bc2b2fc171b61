"""Root file systems made of Debian packages, for tests that run real programs in the guest.

Why it exists: the guest needs sqlite3 or python3 exactly as a distribution ships them, on machines without
debootstrap and without root. Packages are unpacked, their maintainer scripts never run; what a script
would have left behind and programs need (users, an empty /tmp) is made here.

Fetching is `thinbox.image.source.fetch_package` (apt with a private state, cached under $THINBOX_CACHE or
the user's cache folder); unpacking follows the same rules as the guest's own tree (`RootfsTree`).
"""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from debian.debfile import DebFile

from thinbox.errors import SourceError
from thinbox.guest.rootfs import EntryKind
from thinbox.guest.rootfs_tree import RootfsTree, normalise_name
from thinbox.image.cache import cache_dir
from thinbox.image.deb import DebEntry, iter_deb_files
from thinbox.image.source import fetch_package

Fetch = Callable[[str], Path]
"""Returns the .deb of a package; raises SourceError if there is none."""

MERGED = ("bin", "sbin", "lib", "lib64")
"""Top-level names that are symlinks into /usr on every current Debian (usrmerge)."""

UNNEEDED = tuple(f"usr/share/{name}/" for name in ("doc", "man", "info", "locale", "lintian", "bug", "doc-base"))
"""Folders no program needs to run; the guest keeps its files in memory."""

MAINTAINERS = frozenset(
    (
        "adduser",
        "cdebconf",
        "debconf",
        "debconf-2.0",
        "dpkg",
        "init-system-helpers",
        "install-info",
        "lsb-base",
        "media-types",
    )
    + ("passwd", "perl", "perl-base", "perl:any", "sysvinit-utils", "systemd-sysv", "ucf")
)
"""Packages that maintainer scripts need and programs do not. As dependencies they are left out; adduser alone brings
Perl, and CI fetches every package anew."""

_RECORD = "var/lib/thinbox-packages.json"
_FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var", "var/lib", "var/tmp")
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hostname": "guest\n",
}


def build_rootfs(
    packages: Sequence[str], target: Path, fetch: Fetch = fetch_package, without: frozenset[str] = MAINTAINERS
) -> Path:
    """Make `target` a root file system with `packages` and all they depend on, but for `without`; return `target`.

    Done already for the same packages: returns at once. Otherwise `target` is replaced as a whole, after
    everything was unpacked. Raises SourceError if a package cannot be had, KernelImageError if one is
    damaged, RootfsError if two of them do not fit together.
    """
    requested = sorted(set(packages))
    if _is_built(target, requested):
        return target
    debs = resolve_closure(requested, fetch, without)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _unpack_all(debs, building)
        record = {"requested": requested, "files": [deb.name for deb in debs.values()]}
        (building / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        building.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def resolve_closure(
    packages: Sequence[str], fetch: Fetch = fetch_package, without: frozenset[str] = MAINTAINERS
) -> dict[str, Path]:
    """Return the .deb of every package in the Depends and Pre-Depends closure, by name, in order met.

    Of alternatives (`a | b`) one that is in already counts, else the first that can be fetched. What is `without` is
    left out as a dependency, and there if it is one of `packages`.
    """
    debs: dict[str, Path] = {}
    provided: set[str] = set()
    asked = frozenset(packages)
    todo = [[name] for name in packages]
    while todo:
        alternatives = todo.pop(0)
        is_unwanted = not without.isdisjoint(alternatives) and asked.isdisjoint(alternatives)
        if not provided.isdisjoint(alternatives) or is_unwanted:
            continue
        name, deb = _fetch_first(alternatives, fetch)
        fields = DebFile(str(deb)).debcontrol()
        debs[name] = deb
        provided |= {name, *_names(fields.get("Provides", ""))}
        for field in ("Pre-Depends", "Depends"):
            todo += [_names(group.replace("|", ",")) for group in fields.get(field, "").split(",") if group.strip()]
    return debs


def _names(text: str) -> list[str]:
    """Return the bare package names of a dependency field: no versions, architectures or build profiles."""
    parts = (part.split("(")[0].split("[")[0].split(":")[0].strip() for part in text.split(","))
    return [part for part in parts if part]


def _fetch_first(alternatives: Sequence[str], fetch: Fetch) -> tuple[str, Path]:
    failure: SourceError | None = None
    for name in alternatives:
        try:
            return name, fetch(name)
        except SourceError as error:
            failure = failure or error
    raise failure or SourceError("a dependency names no package")


def _is_built(target: Path, requested: list[str]) -> bool:
    try:
        record = json.loads((target / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record.get("requested") == requested)


def _unpack_all(debs: dict[str, Path], root: Path) -> None:
    tree = RootfsTree()
    for name in _FOLDERS:
        (root / name).mkdir(exist_ok=True)
        tree.add(name.encode(), EntryKind.DIRECTORY)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    for name in MERGED:
        # The symlinks come first, so that every package's /bin, /lib and so on lands below /usr.
        (root / "usr" / name).mkdir()
        tree.add(f"usr/{name}".encode(), EntryKind.DIRECTORY)
        (root / name).symlink_to(f"usr/{name}")
        tree.add(name.encode(), EntryKind.SYMLINK, f"usr/{name}".encode())
    for deb in debs.values():
        for entry in iter_deb_files(deb):
            if not f"{entry.path}/".startswith(UNNEEDED):
                _unpack(entry, root, tree)
    for name, text in _FILES.items():
        if not (root / name).exists():
            (root / name).write_text(text, encoding="ascii")
    if not (root / "usr/bin/sh").exists() and (root / "usr/bin/dash").exists():
        (root / "usr/bin/sh").symlink_to("dash")


def _unpack(entry: DebEntry, root: Path, tree: RootfsTree) -> None:
    path = normalise_name(os.fsencode(entry.path))
    kind = _kind(entry)
    if not path:
        return
    place = tree.resolve(path, follow_last=kind is EntryKind.DIRECTORY)
    if kind is EntryKind.DIRECTORY and tree.kind(place) is EntryKind.DIRECTORY:
        return
    for parent in tree.add_parents(place):
        (root / os.fsdecode(parent)).mkdir()
    on_disk = root / os.fsdecode(place)
    if tree.add(place, kind, os.fsencode(entry.link_target)):
        on_disk.unlink()
    if kind is EntryKind.DIRECTORY:
        on_disk.mkdir()
    elif kind is EntryKind.SYMLINK:
        on_disk.symlink_to(entry.link_target)
    elif kind is EntryKind.HARDLINK:
        earlier = tree.resolve(normalise_name(os.fsencode(entry.link_target)))
        on_disk.hardlink_to(root / os.fsdecode(earlier))
    else:
        on_disk.write_bytes(entry.data)
    if kind in (EntryKind.DIRECTORY, EntryKind.FILE):
        # Folders must stay writable for us while we fill them without being root.
        on_disk.chmod(stat.S_IMODE(entry.mode) | (0o700 if kind is EntryKind.DIRECTORY else 0o400))
    if kind is EntryKind.FILE:
        # Interpreters compare the times of a source and of what was compiled of it.
        os.utime(on_disk, (entry.mtime_s, entry.mtime_s))


def _kind(entry: DebEntry) -> EntryKind:
    if entry.is_hard_link:
        return EntryKind.HARDLINK
    kinds = {
        stat.S_IFDIR: EntryKind.DIRECTORY,
        stat.S_IFLNK: EntryKind.SYMLINK,
        stat.S_IFREG: EntryKind.FILE,
    }
    return kinds[stat.S_IFMT(entry.mode)]


def rootfs_folder(*packages: str) -> Path:
    """Return the root file system with `packages`, built below the cache folder and kept there."""
    return build_rootfs(packages, cache_dir() / "test-rootfs" / "+".join(sorted(packages)))
