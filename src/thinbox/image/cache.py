"""The user's cache folder: kernels, packages, and what was worked out from them.

Why it exists: parsing a kernel takes seconds, loading what was parsed takes milliseconds. Everything here
can be deleted at any time; a file is either complete or absent, and two thinbox processes may share it.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from thinbox.errors import CacheError

CACHE_VARIABLE = "THINBOX_CACHE"
"""Environment variable that names another cache folder."""

_LOCK_WAIT_S = 600.0  # longer than the slowest thing done under a lock, a package over a slow line
_COPY_BYTES = 1 << 20
_SEAL_BYTES = 32


def cache_dir() -> Path:
    """Return the cache folder, which may not exist yet: $THINBOX_CACHE, or the platform's place for caches."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).absolute()
    import platformdirs  # late: not needed when the variable is set

    return Path(platformdirs.user_cache_dir("thinbox")).absolute()


def make_folder(path: Path) -> Path:
    """Create a folder of the cache and return it.

    Raises:
        CacheError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def store_bytes(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `path` so that other processes see the old file or the whole new one, never a part.

    The data is not forced to disk: after a power cut a file may be damaged, so readers check their files.

    Raises:
        CacheError: the disk is full, read-only, or not ours; nothing is left behind.
    """
    make_folder(path.parent)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(descriptor, "wb") as stream:
            stream.writelines([data] if isinstance(data, bytes) else data)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def store_sealed(path: Path, data: bytes) -> None:
    """Write `data` behind its hash, for `read_sealed`; raises as `store_bytes`."""
    store_bytes(path, [hashlib.sha256(data).digest(), data])


def read_sealed(path: Path) -> bytes | None:
    """Return what `store_sealed` wrote, None if there is no such file or it is damaged."""
    try:
        raw = path.read_bytes()
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
    holder = filelock.FileLock(path, timeout=_LOCK_WAIT_S)
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
    """Return the SHA-256 of a file as hex; raises OSError as reading does."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_COPY_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _cannot_write(path: Path, error: Exception) -> CacheError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CacheError(f"cannot write the cache file {path}: {reason}; free space or set {CACHE_VARIABLE}=FOLDER")
