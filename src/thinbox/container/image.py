"""A container image, ready for the guest: docker-archive, OCI archive or layout, `dir:`, or a plain root file system.

Why it exists: it is where file, documents, layers and merged tree meet; commands and the Python API start here.
An image is read twice: once for names, sizes and hashes, once for the content of what is left.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from thinbox.container.config import ImageConfig, Launch, Overrides, plan_launch
from thinbox.container.manifest import LayerFile, read_parts
from thinbox.container.platform import PLAIN_LEVEL
from thinbox.container.store import (
    MARKS,
    MAX_UNPACKED_BYTES,
    ROOT_NAMES,
    ArchiveStore,
    FolderStore,
    archive_is_image,
    open_archive,
)
from thinbox.container.tree import LayerTree, Placement
from thinbox.errors import InputError, RootfsError
from thinbox.guest.rootfs_directory import read_directory
from thinbox.guest.rootfs_entry import EntryKind, RootfsEntry, show_path
from thinbox.guest.tar_members import ReadLimit, read_members
from thinbox.host.files import open_file

MOUNT_POINTS = (b"proc", b"sys", b"dev")
"""What is mounted in the root, as container engines do; `guest.engine_mounts` has the rest."""

_ENGINE_FILES = {
    b"etc/hostname": b"thinbox\n",
    b"etc/hosts": b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\tthinbox\n",
    b"etc/resolv.conf": b"# The guest has no network but loopback.\n",
}

Members = Callable[[ReadLimit | None], Iterator[RootfsEntry]]
"""Reads one layer from its beginning; with a limit, also checks its hash."""


@dataclass(frozen=True, slots=True)
class ContainerImage:
    """What an image holds: how it is to be run, and its merged files. `name` is what the user gave, made printable."""

    name: str
    config: ImageConfig
    placement: Placement
    layers: tuple[Members, ...]

    @property
    def need_bytes(self) -> int:
        """Guest memory its files need: contents in whole 4 KiB pages, and 1 KiB for each inode."""
        return self.placement.need_bytes

    def launch(self, arguments: tuple[str, ...] = (), overrides: Overrides | None = None) -> Launch:
        """Return what to start; raises RootfsError if the image names no program and neither does the caller."""
        return plan_launch(self.config, arguments, overrides or Overrides())

    def entries(self) -> Iterator[RootfsEntry]:
        """Yield everything to create, parents first; contents must be read before the next entry is taken.

        Raises RootfsError if the image changed since it was loaded.
        """
        yield from self.placement.nodes
        wanted = {(file.layer, file.number): file.entry for file in self.placement.files if file.number >= 0}
        yield from (file.entry for file in self.placement.files if file.number < 0)
        for layer, members in enumerate(self.layers):
            left = sum(place[0] == layer for place in wanted)
            if not left:
                continue
            for number, member in enumerate(members(None)):
                entry = wanted.get((layer, number))
                if entry is None:
                    continue
                if member.size_bytes != entry.size_bytes:
                    raise RootfsError(f"{show_path(entry.path)}: the image changed while it was read")
                yield replace(entry, chunk_source=member.chunk_source)
                left -= 1
                if not left:
                    break
            if left:
                raise RootfsError(f"{self.name}: the image changed while it was read")
        yield from self.placement.links


def load_image(spec: str, workdir: str | None = None, *, level: int = PLAIN_LEVEL) -> ContainerImage:
    """Return the image `spec` names: a file or folder, or one of several images in it as `PATH:NAME`.

    Of the variants for levels of x86-64 (amd64/v2, v3 …) it is the strongest that a CPU of `level` runs.

    All of it is read and checked; nothing is written but the temporary copy of a compressed archive. `workdir` is
    the user's choice of a working directory, made if it is missing. Raises RootfsError, always of one line, for what is
    missing, damaged, for another platform, hostile or too large.
    """
    path, reference = _split(spec)
    name = show_path(spec.encode("utf-8", "surrogateescape"))
    where = show_path(str(path).encode("utf-8", "surrogateescape"))
    try:
        config, layers = _open(path, where, (reference, level))
        tree = LayerTree()
        limit = ReadLimit(MAX_UNPACKED_BYTES)
        for number, members in enumerate(layers):
            tree.begin_layer(number)
            for member_number, member in enumerate(members(limit)):
                tree.apply(member, member_number)
        _add_what_engines_add(tree, config, workdir)
        return ContainerImage(name, config, tree.place(), layers)
    except OSError as error:
        raise RootfsError(f"{where}: cannot be read: {error.strerror or error}") from error
    except RootfsError as error:
        text = str(error)
        raise (error if text.startswith(where) else RootfsError(f"{where}: {text}")) from error.__cause__


def _split(spec: str) -> tuple[Path, str | None]:
    """Take `PATH:NAME` apart where a file called PATH exists; a path that exists is taken whole."""
    path = Path(spec)
    try:
        if path.exists():
            return path, None
        for at in (at for at, char in enumerate(spec) if char == ":" and at):
            if Path(spec[:at]).exists():
                return Path(spec[:at]), spec[at + 1 :]
    except (OSError, ValueError) as error:
        raise RootfsError(f"{spec[:200]!a}: no usable name of a file") from error
    shown = show_path(spec.encode("utf-8", "surrogateescape"))
    hint = "give an archive (docker save, skopeo copy … oci-archive:…), an OCI layout, or a root file system"
    raise RootfsError(f"{shown}: no such file or folder; {hint}")


def _open(path: Path, where: str, wanted: tuple[str | None, int]) -> tuple[ImageConfig, tuple[Members, ...]]:
    store: ArchiveStore | FolderStore
    if path.is_dir():
        if not any((path / mark).is_file() for mark in MARKS) or any((path / name).is_dir() for name in ROOT_NAMES):
            return ImageConfig(), (lambda _limit: read_directory(path, any_device=True),)
        store = FolderStore(path)
    elif not path.is_file():
        raise RootfsError("neither a file nor a folder")
    elif archive_is_image(path, where):
        store = open_archive(path, where)
    else:
        return ImageConfig(), (_plain_archive(path, where),)
    parts = read_parts(store, *wanted)
    return parts.config, tuple(_layer(store, layer, number) for number, layer in enumerate(parts.layers))


def _plain_archive(path: Path, where: str) -> Members:
    def members(limit: ReadLimit | None) -> Iterator[RootfsEntry]:
        try:
            raw = open_file(path)
        except InputError as error:
            raise RootfsError(f"{where}: {error}") from error
        with raw:
            yield from read_members(raw, where, limit=limit, any_device=True)

    return members


def _layer(store: "ArchiveStore | FolderStore", layer: LayerFile, number: int) -> Members:
    def members(limit: ReadLimit | None) -> Iterator[RootfsEntry]:
        with store.open(layer.name) as raw:
            digest = layer.diff_digest if limit is not None else None
            yield from read_members(raw, f"layer {number + 1}", digest=digest, limit=limit, any_device=True)

    return members


def _add_what_engines_add(tree: LayerTree, config: ImageConfig, workdir: str | None) -> None:
    """Add files of the engine's, mount points, volumes and the working directory."""
    for path in MOUNT_POINTS:
        tree.require_plain_directory(path)
    tree.add_directory(b"tmp", 0o1777)
    for path, content in _ENGINE_FILES.items():
        tree.add(_file(path, content))
    tree.add(RootfsEntry(b"etc/mtab", EntryKind.SYMLINK, 0o777, 0, 0, 0, link_target=b"/proc/mounts"), keep=True)
    for folder in (*config.volumes, workdir or config.workdir):
        parts = [part for part in folder.encode("utf-8", "surrogateescape").split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise RootfsError(f"{folder!r}: a volume or working directory has no '..'")
        tree.add_directory(b"/".join(parts))


def _file(path: bytes, content: bytes) -> RootfsEntry:
    def chunks(_chunk_bytes: int) -> Iterator[bytes]:
        yield content

    return RootfsEntry(path, EntryKind.FILE, 0o644, 0, 0, 0, size_bytes=len(content), chunk_source=chunks)
