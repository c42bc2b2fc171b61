"""The root file system that an image's layers make, one laid on the other.

Why it exists: an upper layer replaces, hides and removes what lower ones brought. Merging by name first means that only
what remains is copied into the guest, and that its size is known before anything is.

Rules of this file:
- names are resolved as the guest's kernel would after chroot, so nothing leaves the tree;
- a whiteout removes what lower layers brought and never what its own layer brought, whatever their order
  (image-spec, layer.md, "Whiteouts");
- what an entry replaces goes with all below it, only a directory on a directory keeps its content.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from thinbox.address import page_align_up
from thinbox.errors import RootfsError
from thinbox.guest.rootfs_entry import DEEPEST, EntryKind, RootfsEntry, require_device_allowed, show_path
from thinbox.guest.rootfs_tree import normalise_name

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
DEVICES = b"dev/"
_AUFS_OWN = b".wh..wh."
"""Names AUFS kept for itself; images made on it hold them, and every engine leaves them out."""

_MAX_SYMLINK_HOPS = 40
"""MAXSYMLINKS (include/linux/namei.h): more is ELOOP in the guest too."""

_INODE_BYTES = 1 << 10
"""A tmpfs inode and its name in the guest's slabs, rounded up."""


_MAX_STEPS = 1_000_000
"""Members laid on the tree and inodes made for them. A distribution with a desktop has about 300,000."""

_MAX_NAME_BYTES = 256 << 20
"""All paths together. 300,000 paths of an ordinary system are about 25 MB."""


class _Node:
    """One inode: a hard link is the same node under a second name."""

    __slots__ = ("children", "entry", "layer", "number")

    def __init__(self, entry: RootfsEntry, layer: int, number: int) -> None:
        self.entry = entry
        self.layer = layer
        self.number = number
        self.children: dict[bytes, _Node] | None = {} if entry.kind is EntryKind.DIRECTORY else None


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file of the merged tree: its entry under its first name; content is member `number` of `layer`."""

    layer: int
    number: int
    entry: RootfsEntry


@dataclass(frozen=True, slots=True)
class Placement:
    """What to create, in this order: `directories` and other nodes, then `files`, then hard `links`."""

    nodes: tuple[RootfsEntry, ...]
    files: tuple[PlacedFile, ...]
    links: tuple[RootfsEntry, ...]
    need_bytes: int


class LayerTree:
    """Every path of the layers applied so far."""

    def __init__(self) -> None:
        self._root = _Node(_directory(b"", 0), -1, -1)
        self._layer = 0
        self._steps = 0
        self._linked: set[tuple[int, bytes]] = set()  # hard links of this layer, by directory and name

    def begin_layer(self, layer: int) -> None:
        """Count what is applied from now on as layer number `layer`."""
        self._layer = layer
        self._linked.clear()

    def apply(self, member: RootfsEntry, number: int) -> None:
        """Lay `member`, the layer's member `number` (normalised, unresolved path), on the tree.

        Raises RootfsError if it cannot be placed: a parent that is no directory, a loop of symlinks, a hard link to
        nothing, a whiteout of no name.
        """
        self._count_step()
        folder, _slash, name = member.path.rpartition(b"/")
        if not name:
            return
        if name.startswith(_AUFS_OWN) and name != OPAQUE:
            return
        if name.startswith(WHITEOUT):
            self._apply_whiteout(member.path, folder, name)
            return
        children = self._open_directory(folder, member.path)
        earlier = children.get(name)
        if member.kind is EntryKind.HARDLINK:
            children[name] = self._link_target(member)
            self._linked.add((id(children), name))
        elif member.kind is EntryKind.DIRECTORY and earlier is not None and earlier.children is not None:
            earlier.entry, earlier.layer = _without_content(member), self._layer
        else:
            children[name] = self._make(_without_content(member), number)

    def add_directory(self, path: bytes, mode: int = 0o755) -> None:
        """Make the directory `path` and its parents where they are missing; symlinks on the way are followed.

        Raises RootfsError if something else is there.
        """
        folder, _slash, name = path.rpartition(b"/")
        if not name:
            return
        children = self._open_directory(folder, path)
        node = children.get(name)
        if node is None:
            children[name] = self._make(_directory(path, mode), -1)
        elif node.entry.kind is EntryKind.SYMLINK:
            self._open_directory(path, path)
        elif node.children is None:
            raise RootfsError(f"{show_path(path)}: is a {node.entry.kind} where a directory has to be")

    def require_plain_directory(self, path: bytes) -> None:
        """Make the directory `path` below the root if it is missing; something is to be mounted there.

        Raises RootfsError if it is anything else, a symlink too: the mount would go to where that leads.
        """
        node = self._children_of_root().get(path)
        if node is not None and node.children is None:
            raise RootfsError(f"{show_path(path)}: is a {node.entry.kind}, and must be a directory to mount on")
        if node is None:
            self._children_of_root()[path] = self._make(_directory(path, 0o755), -1)

    def add(self, entry: RootfsEntry, *, keep: bool = False) -> None:
        """Put an entry with its own content at its path in place of what is there; with `keep` only if nothing is."""
        folder, _slash, name = entry.path.rpartition(b"/")
        children = self._open_directory(folder, entry.path)
        if not (keep and name in children):
            children[name] = self._make(entry, -1)

    def _make(self, entry: RootfsEntry, number: int) -> _Node:
        self._count_step()
        return _Node(entry, self._layer, number)

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise RootfsError(f"more than {_MAX_STEPS} files and directories; no guest has memory for that")

    def place(self) -> Placement:
        """Return everything in the tree, sorted by path, parents before children.

        Device nodes below /dev are left out: the guest's own devices are mounted over them, as engines do. Raises
        RootfsError for any other that no tenant has business with.
        """
        nodes: list[RootfsEntry] = []
        files: list[PlacedFile] = []
        links: list[RootfsEntry] = []
        first: dict[int, bytes] = {}
        need_bytes = name_bytes = 0
        for path, node in self._walk():
            name_bytes += len(path)
            if name_bytes > _MAX_NAME_BYTES:
                raise RootfsError(f"its names are longer than {_MAX_NAME_BYTES >> 20} MiB together")
            device = node.entry.device
            if device is not None:
                if path.startswith(DEVICES):
                    continue
                require_device_allowed(path, node.entry.kind, device)
            earlier = first.setdefault(id(node), path) if node.children is None else path
            if earlier != path:
                links.append(replace(node.entry, path=path, kind=EntryKind.HARDLINK, link_target=earlier, size_bytes=0))
                continue
            entry = replace(node.entry, path=path)
            need_bytes += _INODE_BYTES + page_align_up(entry.size_bytes)
            if entry.kind is EntryKind.FILE:
                files.append(PlacedFile(node.layer, node.number, entry))
            else:
                nodes.append(entry)
        return Placement(tuple(nodes), tuple(files), tuple(links), need_bytes)

    def _walk(self) -> Iterator[tuple[bytes, _Node]]:
        todo = [(name, node) for name, node in sorted(self._children_of_root().items(), reverse=True)]
        while todo:
            path, node = todo.pop()
            yield path, node
            if node.children:
                todo += [(path + b"/" + name, child) for name, child in sorted(node.children.items(), reverse=True)]

    def _children_of_root(self) -> "dict[bytes, _Node]":
        return _children(self._root)

    # -- names ------------------------------------------------------------------------------------------
    def _open_directory(self, path: bytes, why: bytes, *, make: bool = True) -> "dict[bytes, _Node]":
        """Return the content of the directory `path`, symlinks followed; missing ones are made if `make`.

        Raises RootfsError; `why` is the entry it is opened for.
        """
        todo = path.split(b"/")[::-1]
        trail = [self._root]
        hops = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del trail[max(1, len(trail) - 1) :]
                continue
            children = trail[-1].children
            node = children.get(name) if children is not None else None
            if children is not None and node is None and make:
                node = children[name] = self._make(_implied(name, trail[-1].entry), -1)
            if node is None:
                raise _MissingError
            if node.entry.kind is EntryKind.SYMLINK:
                hops += 1
                if hops > _MAX_SYMLINK_HOPS:
                    raise RootfsError(f"{show_path(why)}: too many symlinks on the way (a loop)")
                target = node.entry.link_target or b""
                if target.startswith(b"/"):
                    trail = [self._root]
                todo += target.split(b"/")[::-1]
                continue
            if node.children is None:
                raise _NoDirectoryError(f"{show_path(why)}: {show_path(name)} above it is a {node.entry.kind}")
            trail.append(node)
            if len(trail) > DEEPEST:
                raise RootfsError(f"{show_path(why)}: more than {DEEPEST} directories deep, which no image is")
        return _children(trail[-1])

    def _link_target(self, member: RootfsEntry) -> _Node:
        target = normalise_name((member.link_target or b"").lstrip(b"/"))
        folder, _slash, name = target.rpartition(b"/")
        try:
            node = self._open_directory(folder, member.path, make=False).get(name)
        except _MissingError:
            node = None
        if node is None or node.children is not None:
            raise RootfsError(f"{show_path(member.path)}: hard link to {show_path(target)}, which is no earlier file")
        return node

    # -- whiteouts --------------------------------------------------------------------------------------
    def _apply_whiteout(self, path: bytes, folder: bytes, name: bytes) -> None:
        hidden = name.removeprefix(WHITEOUT)
        if name != OPAQUE and hidden in (b"", b".", b".."):
            raise RootfsError(f"{show_path(path)}: whiteout of no name")
        try:
            children = self._open_directory(folder, path)  # engines make what is missing above a whiteout, too
        except _NoDirectoryError:
            return  # below a file there is nothing to hide
        if name == OPAQUE:
            self._remove_lower(children)
        elif hidden in children:
            below = children[hidden].children
            if below is not None:
                self._remove_lower(below)
            if self._is_lower(children, hidden):
                del children[hidden]

    def _remove_lower(self, children: "dict[bytes, _Node]") -> None:
        """Remove what lower layers brought from `children` and all below, keeping parents of what stays."""
        folders = [children]
        for folder in folders:  # grows while it is walked: parents come before children
            folders += [node.children for node in folder.values() if node.children is not None]
        for folder in reversed(folders):
            for name in [name for name in folder if self._is_lower(folder, name)]:
                del folder[name]

    def _is_lower(self, children: "dict[bytes, _Node]", name: bytes) -> bool:
        node = children[name]
        return node.layer < self._layer and not node.children and (id(children), name) not in self._linked


class _MissingError(Exception):
    """A directory is not there."""


class _NoDirectoryError(RootfsError):
    """Something else is where a directory has to be, which a whiteout may ignore."""


def _children(node: _Node) -> "dict[bytes, _Node]":
    return node.children if node.children is not None else {}


def _directory(path: bytes, mode: int) -> RootfsEntry:
    return RootfsEntry(path, EntryKind.DIRECTORY, mode, 0, 0, 0)


def _implied(name: bytes, parent: RootfsEntry) -> RootfsEntry:
    """Return a directory that no layer names, as mkdir(2) makes it: below one with S_ISGID it has its group and bit.

    Source: Linux fs/inode.c, `inode_init_owner`.
    """
    made = _directory(name, 0o755)
    return replace(made, mode=0o2755, gid=parent.gid) if parent.mode & 0o2000 else made


def _without_content(member: RootfsEntry) -> RootfsEntry:
    """Return the entry without the archive it came from, which would be kept in memory for each."""
    return RootfsEntry(
        member.path, member.kind, member.mode, member.uid, member.gid, member.mtime_s, member.size_bytes,
        link_target=member.link_target, device=member.device, capability=member.capability,
    )  # fmt: skip
