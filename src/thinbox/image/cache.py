"""The user's cache folder: kernels, packages, and what was worked out from them.

Why it exists: parsing a kernel takes seconds, loading what was parsed takes milliseconds. Everything here
can be deleted at any time; a file is either complete or absent, and two thinbox processes may share it.

What is read from it is executed or believed, so a cache is used only if nobody but its user and root may write it
(`host.trust`); its files and folders are made for its user alone. Under `sudo` root refuses a user's cache.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from thinbox.errors import CacheError, TrustError
from thinbox.host.files import open_file
from thinbox.host.trust import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    open_private_file,
    open_private_folder,
    require_private_file,
)

CACHE_VARIABLE = "THINBOX_CACHE"
"""Environment variable that names another cache folder."""

_LOCK_WAIT_S = 600.0  # longer than the slowest thing done under a lock, a package over a slow line
_COPY_BYTES = 1 << 20
_SEAL_BYTES = 32
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ADVICE = f"set {CACHE_VARIABLE}=FOLDER to a cache of your own"


def cache_dir() -> Path:
    """Return the cache folder, which may not exist yet: $THINBOX_CACHE, or the platform's place for caches."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).absolute()
    import platformdirs  # late: not needed when the variable is set

    return Path(platformdirs.user_cache_dir("thinbox")).absolute()


def make_folder(path: Path) -> Path:
    """Create a folder of the cache, for us alone, and return it.

    Raises:
        CacheError: it cannot be created.
        TrustError: others may write it, or the way to it (`host.trust`).
    """
    try:
        os.close(_open_folder(path, make=True))
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from error
    return path


def require_unseen(path: Path) -> None:
    """Raise unless the folder of the cache is ours and closed to all others: what is in it may be open.

    Raises:
        CacheError: it is root's, so we could not write it.
        TrustError: others may enter it.
    """
    folder = _open_folder(path)
    try:
        status = os.fstat(folder)
    finally:
        os.close(folder)
    if status.st_uid != os.geteuid():
        raise CacheError(f"{path} belongs to root; {_ADVICE}")
    if status.st_mode & ~PRIVATE_FOLDER & 0o777:
        raise TrustError(f"{path} is open to others, and what lies in it is executed; remove it, or {_ADVICE}")


def open_cached(path: Path) -> BinaryIO:
    """Return a file of the cache, open for reading; what is read is the file that was judged.

    Raises:
        OSError: it is not there, or cannot be read.
        TrustError: others may write it, or the way to it, or it is a link.
    """
    folder = _open_folder(path.parent)
    try:
        return open_private_file(folder, path, _ADVICE)
    finally:
        os.close(folder)


def read_cached(path: Path) -> bytes:
    """Return the bytes of a file of the cache; raises as `open_cached`."""
    with open_cached(path) as file:
        return file.read()


def create_cached(path: Path) -> TextIO:
    """Return a file of the cache, empty and open for writing text, that others may see grow.

    Raises:
        CacheError: it cannot be created.
        TrustError: it is in the hands of others, or the way to it.
    """
    try:
        folder = _open_folder(path.parent, make=True)
        try:
            handle = os.open(path.name, _CREATE, PRIVATE_FILE, dir_fd=folder)
        finally:
            os.close(folder)
        stream = open(handle, "w", encoding="utf-8")
        require_private_file(os.fstat(handle), path, _ADVICE)
        stream.truncate(0)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from error
    return stream


def store_bytes(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `path` so that other processes see the old file or the whole new one, never a part.

    The data is not forced to disk: after a power cut a file may be damaged, so readers check their files.

    Raises:
        CacheError: the disk is full, read-only, or not ours; nothing is left behind.
        TrustError: others may write the folder, or the way to it.
    """
    try:
        folder = _open_folder(path.parent, make=True)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from error
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    try:
        handle = os.open(temporary, _CREATE | os.O_EXCL, PRIVATE_FILE, dir_fd=folder)
        try:
            with open(handle, "wb") as stream:
                stream.writelines([data] if isinstance(data, bytes) else data)
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        os.close(folder)


def store_sealed(path: Path, data: bytes) -> None:
    """Write `data` behind its hash, for `read_sealed`; raises as `store_bytes`."""
    store_bytes(path, [hashlib.sha256(data).digest(), data])


def read_sealed(path: Path) -> bytes | None:
    """Return what `store_sealed` wrote, None if there is no such file or it is damaged."""
    try:
        raw = read_cached(path)
    except OSError:
        return None
    data = raw[_SEAL_BYTES:]
    return data if hashlib.sha256(data).digest() == raw[:_SEAL_BYTES] else None


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock called `name` (a plain word) against other processes that use this cache.

    Raises:
        CacheError: the lock file cannot be written, or another process keeps it for ten minutes.
    """
    import filelock  # late: only writers take locks

    path = make_folder(cache_dir() / "locks") / f"{name}.lock"
    holder = filelock.FileLock(path, timeout=_LOCK_WAIT_S, mode=PRIVATE_FILE)
    try:
        holder.acquire()
    except filelock.Timeout as error:
        raise CacheError(f"another process has held {path} for ten minutes; end it and try again") from error
    except (OSError, NotImplementedError) as error:
        raise _cannot_write(path, error) from error
    try:
        yield
    finally:
        holder.release()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a regular file anywhere as hex; raises InputError if it cannot be read."""
    with open_file(path) as stream:
        return _sha256(stream)


def sha256_of_cached(path: Path) -> str:
    """Return the SHA-256 of a file of the cache as hex; raises as `open_cached`."""
    with open_cached(path) as stream:
        return _sha256(stream)


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_COPY_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _open_folder(path: Path, *, make: bool = False) -> int:
    """Return a descriptor of a folder of the cache; what is stored elsewhere (by tests) has a root of its own."""
    root = cache_dir()
    return open_private_folder(path, root if path.is_relative_to(root) else path, _ADVICE, make=make)


def _cannot_write(path: Path, error: Exception) -> CacheError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CacheError(f"cannot write the cache file {path}: {reason}; free space or set {CACHE_VARIABLE}=FOLDER")
