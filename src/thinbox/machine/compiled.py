"""Compiling the pure functions of `paging` and `isolation` without their knowing of Numba.

Why it exists: the same source must run interpreted (tests, tools) and compiled (hooks). Numba resolves
a called function through the caller's globals, where it would find the plain one; here each function is
rebuilt with globals in which every thinbox function it calls is the compiled one.
"""

import hashlib
import os
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numba

from thinbox.errors import CacheError
from thinbox.image.cache import cache_dir, make_folder, require_unseen

_ROOM_BYTES = 16 << 20
"""What is cached takes less than 1 MiB; a disk with less room than this is left alone."""

_made: dict[Any, Any] = {}


def compiled(function: Any, *, cached: bool = False) -> Any:
    """Return `function` compiled by Numba, together with every plain thinbox function it calls.

    `cached` keeps the machine code on disk: for functions that Python itself calls, on which it would wait. Hooks are
    kept by `native`.
    """
    if function in _made:
        return _made[function]
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        value = names.get(name)
        if isinstance(value, FunctionType) and value.__module__.startswith("thinbox."):
            names[name] = compiled(value)
    rebuilt = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    rebuilt.__module__ = function.__module__
    rebuilt.__qualname__ = function.__qualname__
    _made[function] = numba.njit(error_model="numpy", nogil=cached, cache=cached and _choose_cache())(rebuilt)
    return _made[function]


@cache
def _choose_cache() -> bool:
    """Tell Numba where to keep what it compiles; False where that cannot be written.

    The folder is named after all source of the package: Numba itself notices only a change of the file a function
    stands in, not of what it calls or takes constants from. What Numba keeps in it is machine code and pickles, opened
    by name and with the user's umask, so nobody else may as much as enter it.

    Raises:
        TrustError: others may enter it.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    folder = cache_dir() / "numba" / digest.hexdigest()[:16]
    try:
        require_unseen(make_folder(folder))
        room = os.statvfs(folder)
    except (CacheError, OSError):
        return False
    numba.config.CACHE_DIR = str(folder)
    return os.access(folder, os.W_OK) and room.f_bavail * room.f_frsize > _ROOM_BYTES
