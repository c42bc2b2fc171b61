"""A user's root file system, as the stream of objects to create in the guest.

Why it exists: the guest has no disk; what programs see as `/` is filled in from a directory or an archive
of the user's. Neither is trusted: a downloaded archive may be cut off, or made to write elsewhere.

Rules of this module and the ones it draws from (`rootfs_archive`, `rootfs_directory`, `rootfs_tree`):
- parents come before children, a hard link after the file it names;
- content is read lazily, in constant memory;
- whatever is wrong with the input is a RootfsError of one line that names the entry.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from thinbox.address import page_align_up
from thinbox.errors import RootfsError
from thinbox.guest.rootfs_archive import read_archive
from thinbox.guest.rootfs_directory import read_directory
from thinbox.guest.rootfs_entry import EntryKind, RootfsEntry, show_path

__all__ = ["EntryKind", "RootfsEntry", "open_rootfs", "rootfs_bytes"]


def open_rootfs(path: Path) -> Iterator[RootfsEntry]:
    """Yield the entries of the root file system at `path`, a directory or a tar archive.

    An archive may be plain or compressed with gzip, bzip2, xz or zstd; its content tells, not its name.
    Names below a symlink of the archive are moved to where it leads, as the guest's kernel would resolve
    them (`bin/sh` is `usr/bin/sh` if `bin -> usr/bin` came first); nothing leads out of the tree.

    Raises RootfsError at once if `path` is missing or neither; while iterating, for input that is broken,
    truncated or unreadable, absolute names and names with `..`, directories that are also something else,
    device nodes other than the standard ones, and types of entry that a guest cannot hold.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "no such file or directory" if missing else _reason(error)
        raise RootfsError(f"{_show(path)}: {reason}; give a directory or a tar archive") from error
    if stat.S_ISDIR(mode):
        return read_directory(path)
    if stat.S_ISREG(mode):
        return read_archive(path)
    raise RootfsError(f"{_show(path)}: neither a directory nor a file; give a directory or a tar archive")


def rootfs_bytes(path: Path, *, limit_bytes: int | None = None) -> int:
    """Return the guest memory the contents of `path` need: every file's size in whole 4 KiB pages.

    The guest keeps files in its page cache; inodes and names (about 1 KiB an entry) come on top. Reads
    through an archive once, without keeping anything. With `limit_bytes`, returns as soon as the sum is
    larger than that, before a decompression bomb is unpacked. Raises RootfsError as `open_rootfs` does.
    """
    total_bytes = 0
    for entry in open_rootfs(path):
        total_bytes += page_align_up(entry.size_bytes)
        if limit_bytes is not None and total_bytes > limit_bytes:
            break
    return total_bytes


def _show(path: Path) -> str:
    return show_path(str(path).encode("utf-8", "surrogateescape"))


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return os.strerror(errno.EINVAL).lower()
