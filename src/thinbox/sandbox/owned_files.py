"""The files a sandbox owns, and each process's descriptors of them.

Why it exists: configuration and data that a tenant only reads need no kernel file system. Their descriptors begin
at 2^30: the kernel hands none out there (its tables end at `fs.nr_open`, 2^20, and a table of 2^30 entries would take
8 GiB), so the two kinds cannot collide.

Rules of this file: offsets are shared by `dup`-less copies as the kernel's are: a fork shares the open file, not the
table.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from thinbox.sandbox.call_error import CallError, NotOursError
from thinbox.sandbox.plan import OwnedFile

FIRST_DESCRIPTOR = 1 << 30
MOST_DESCRIPTORS = 1024
"""Per process; EMFILE past them."""


@dataclass(slots=True)
class OpenFile:
    """An open file description."""

    file: OwnedFile
    inode: int
    offset: int = 0


@dataclass(slots=True)
class Descriptor:
    """One process's descriptor of an open file."""

    open: OpenFile
    close_on_exec: bool


class Files:
    """The owned files and each process's descriptors of them, by thread group."""

    def __init__(self, files: Sequence[OwnedFile]) -> None:
        self._files = {file.path.encode(): (file, 1000 + number) for number, file in enumerate(files)}
        self._tables: dict[int, dict[int, Descriptor]] = {}

    def reset(self) -> None:
        """Forget every descriptor."""
        self._tables.clear()

    def forked(self, parent: int, child: int) -> None:
        """A new process has copies of its parent's descriptors."""
        if child == parent:
            return
        # Whoever had its number before is gone.
        self._tables.pop(child, None)
        table = self._tables.get(parent)
        if table:
            self._tables[child] = {n: Descriptor(d.open, d.close_on_exec) for n, d in table.items()}

    def executed(self, process: int) -> None:
        """A process runs a new program: descriptors marked so are closed."""
        table = self._tables.get(process, {})
        for number in [n for n, descriptor in table.items() if descriptor.close_on_exec]:
            del table[number]

    def ended(self, process: int) -> None:
        """The last task of a process is gone."""
        self._tables.pop(process, None)

    def named(self, path: bytes) -> tuple[OwnedFile, int] | None:
        """Return the file at `path` and its inode number, None if it is not ours."""
        return self._files.get(path)

    def add(self, process: int, opened: OpenFile, *, close_on_exec: bool) -> int:
        """Return a new descriptor, the lowest free one; EMFILE if there are too many."""
        table = self._tables.setdefault(process, {})
        for number in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + MOST_DESCRIPTORS):
            if number not in table:
                table[number] = Descriptor(opened, close_on_exec)
                return number
        raise CallError(errno.EMFILE)

    def find(self, process: int, number: int) -> Descriptor:
        """Return a descriptor of ours; NotOursError below the first, EBADF above if it is not open."""
        if number < FIRST_DESCRIPTOR:
            raise NotOursError
        descriptor = self._tables.get(process, {}).get(number)
        if descriptor is None:
            raise CallError(errno.EBADF)
        return descriptor

    def close(self, process: int, number: int) -> None:
        """Close a descriptor of ours."""
        self.find(process, number)
        del self._tables[process][number]
