"""Reads a root file system out of a tar archive: its members, each put where the guest would put it.

Why it exists: an archive may name things below its own symlinks, leave parents out, and repeat itself; the guest is
filled with entries whose parents exist and whose names are final.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from thinbox.errors import InputError, RootfsError
from thinbox.guest.rootfs_entry import EntryKind, RootfsEntry, show_path
from thinbox.guest.rootfs_tree import RootfsTree, normalise_name
from thinbox.guest.tar_members import ReadLimit, read_members
from thinbox.host.files import open_file

_DEFAULT_DIRECTORY_MODE = 0o755
_MOST_BYTES = 4 << 30
"""Unpacked; no guest has more than 3 GiB of memory."""


def read_archive(path: Path) -> Iterator[RootfsEntry]:
    """Yield the entries of the tar archive `path` (plain, gzip, bzip2, xz or zstd, told by its content).

    Parents that the archive does not name are made, as root's directories of mode 0755. The entry of the
    root itself is left out. A name below a symlink of the archive is moved to where the symlink leads.
    Raises RootfsError as `open_rootfs` describes.
    """
    where = show_path(str(path).encode("utf-8", "surrogateescape"))
    tree = RootfsTree()
    try:
        with open_file(path) as raw:
            for member in read_members(raw, where, limit=ReadLimit(_MOST_BYTES)):
                if member.path:
                    yield from _place(tree, member)
    except RootfsError:
        raise
    except InputError as error:
        raise RootfsError(f"{where}: {error}") from error
    except OSError as error:
        raise RootfsError(f"{where}: cannot be read: {error.strerror or error}") from error


def _place(tree: RootfsTree, member: RootfsEntry) -> Iterator[RootfsEntry]:
    path, kind = member.path, member.kind
    resolved = tree.resolve(path, follow_last=kind is EntryKind.DIRECTORY)
    moved_directory = kind is EntryKind.DIRECTORY and resolved != tree.resolve(path)
    if moved_directory and tree.kind(resolved) is EntryKind.DIRECTORY:
        return
    for parent in tree.add_parents(resolved):
        yield RootfsEntry(parent, EntryKind.DIRECTORY, _DEFAULT_DIRECTORY_MODE, 0, 0, member.mtime_s)
    target = member.link_target
    if kind is EntryKind.HARDLINK:
        target = _link_target(tree, member, resolved)
    replaces = tree.add(resolved, kind, target)
    yield replace(member, path=resolved, link_target=target, replaces=replaces)


def _link_target(tree: RootfsTree, member: RootfsEntry, resolved: bytes) -> bytes:
    target = tree.resolve(normalise_name(member.link_target or b""))
    target_kind = tree.kind(target)
    if target_kind in (None, EntryKind.DIRECTORY) or target == resolved:
        raise RootfsError(f"{show_path(member.path)}: hard link to {show_path(target)}, which is no earlier file")
    return target
