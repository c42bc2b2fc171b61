"""The tree an archive builds up, so that each new name can be put where the guest would put it.

Why it exists: an archive is only a list of names. On a merged-/usr system `bin` is a symlink to `usr/bin`,
and packages of both habits end up in one archive; `bin/sh` then means `usr/bin/sh`. Creating it as written
would follow whatever symlink is there, inside the guest or, in a careless consumer, outside it.

Rules of this file:
- names are resolved as the guest's kernel would after chroot: absolute targets start at the root of the
  file system, and `..` at the root stays there, so nothing ever escapes;
- a directory never replaces a file, nor the other way round; a directory entry that names a symlink means
  the directory the symlink leads to (as dpkg and `tar --keep-directory-symlink` have it);
- a symlink that arrives after a directory of its name is refused: entries may already be inside.
"""

from thinbox.errors import RootfsError
from thinbox.guest.rootfs_entry import (
    DEEPEST,
    NAME_MAX_BYTES,
    PATH_MAX_BYTES,
    EntryKind,
    show_path,
)

_MAX_SYMLINK_HOPS = 40
"""MAXSYMLINKS (include/linux/namei.h): more is ELOOP in the guest too."""

_MAX_ENTRIES = 2_000_000
"""An inode and a dentry cost the guest about 1 KiB, so this many would fill 2 GiB before any content."""


def normalise_name(name: bytes) -> bytes:
    """Return an archive's `name` without `.` components and doubled slashes; b"" is the root itself.

    Raises RootfsError for an absolute name, a `..` component, a NUL, or a name too long for Linux.
    """
    if name.startswith(b"/"):
        raise RootfsError(f"{show_path(name)}: absolute name; make the archive with relative names")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise RootfsError(f"{show_path(name)}: name with '..' would leave the root file system")
    if b"\0" in name:
        raise RootfsError(f"{show_path(name)}: name holds a NUL byte")
    path = b"/".join(parts)
    if len(parts) > DEEPEST:
        raise RootfsError(f"{show_path(name)}: more than {DEEPEST} directories deep, which no root file system is")
    if len(path) > PATH_MAX_BYTES or any(len(part) > NAME_MAX_BYTES for part in parts):
        raise RootfsError(f"{show_path(name)}: name is too long (255 bytes a component, 4095 in all)")
    return path


class _Name:
    """A name on the way to a symlink, or a symlink with its target; whatever is not below `_links` leads to none."""

    __slots__ = ("below", "target")

    def __init__(self) -> None:
        self.below: dict[bytes, _Name] = {}
        self.target: bytes | None = None


class RootfsTree:
    """Every path created so far, with its kind and, for symlinks, its target."""

    __slots__ = ("_kinds", "_links")

    def __init__(self) -> None:
        self._kinds: dict[bytes, EntryKind] = {b"": EntryKind.DIRECTORY}
        self._links = _Name()

    def kind(self, path: bytes) -> EntryKind | None:
        """Return the kind of the object at the resolved `path`, None if there is none yet."""
        return self._kinds.get(path)

    def resolve(self, path: bytes, *, follow_last: bool = False) -> bytes:
        """Return where `path` really is: symlinks among its parents (and the last name) are followed.

        Raises RootfsError for a symlink loop or a result too long for Linux.
        """
        todo = path.split(b"/")[::-1]
        done: list[bytes] = []
        trail: list[_Name | None] = [
            self._links
        ]  # of each of `done`, the root before them; None where no symlink is near
        hops = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del done[-1:], trail[max(1, len(trail) - 1) :]
                continue
            here = trail[-1].below.get(name) if trail[-1] is not None else None
            done.append(name)
            trail.append(here)
            if len(done) > DEEPEST:
                raise RootfsError(
                    f"{show_path(path)}: more than {DEEPEST} directories deep once its symlinks are followed"
                )
            target = here.target if here is not None else None
            if target is None or not (todo or follow_last):
                continue
            hops += 1
            if hops > _MAX_SYMLINK_HOPS:
                raise RootfsError(f"{show_path(path)}: too many symlinks on the way (a loop)")
            keep = 0 if target.startswith(b"/") else len(done) - 1
            del done[keep:], trail[keep + 1 :]
            todo += target.split(b"/")[::-1]
        resolved = b"/".join(done)
        if len(resolved) > PATH_MAX_BYTES:
            raise RootfsError(f"{show_path(path)}: too long once its symlinks are followed")
        return resolved

    def add_parents(self, path: bytes) -> list[bytes]:
        """Note the missing parents of the resolved `path` as directories; return them, outermost first.

        Raises RootfsError if a parent exists and is no directory.
        """
        made: list[bytes] = []
        parent = path.rpartition(b"/")[0]
        while parent not in self._kinds:
            made.append(parent)
            parent = parent.rpartition(b"/")[0]
        if self._kinds[parent] is not EntryKind.DIRECTORY:
            raise RootfsError(f"{show_path(path)}: {show_path(parent)} above it is a {self._kinds[parent]}")
        for directory in made:
            self._note(directory, EntryKind.DIRECTORY)
        return made[::-1]

    def add(self, path: bytes, kind: EntryKind, target: bytes | None = None) -> bool:
        """Note an object at the resolved `path`; return whether it replaces an earlier one.

        Preconditions:
        - `add_parents(path)` was called.
        Raises RootfsError if a directory would replace something else or be replaced.
        """
        earlier = self._kinds.get(path)
        if earlier is not None and EntryKind.DIRECTORY in (earlier, kind) and earlier is not kind:
            hint = "; put the symlink first" if kind is EntryKind.SYMLINK else ""
            raise RootfsError(f"{show_path(path)}: is a {earlier} and then a {kind} in one archive{hint}")
        self._note(path, kind)
        if kind is EntryKind.SYMLINK or earlier is EntryKind.SYMLINK:
            self._point(path, target if kind is EntryKind.SYMLINK else None)
        return earlier is not None and kind is not EntryKind.DIRECTORY

    def _point(self, path: bytes, target: bytes | None) -> None:
        """Make the resolved `path` a symlink to `target`, or none."""
        name = self._links
        for part in path.split(b"/"):
            name = name.below.setdefault(part, _Name())
        name.target = target

    def _note(self, path: bytes, kind: EntryKind) -> None:
        self._kinds[path] = kind
        if len(self._kinds) > _MAX_ENTRIES:
            raise RootfsError(f"more than {_MAX_ENTRIES} entries; no guest has memory for that")
