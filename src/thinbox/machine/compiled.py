"""Compiling the pure functions of `paging` and `isolation` without their knowing of Numba.

Why it exists: the same source must run interpreted (tests, tools) and compiled (hooks). Numba resolves
a called function through the caller's globals, where it would find the plain one; here each function is
rebuilt with globals in which every thinbox function it calls is the compiled one.
"""

from types import FunctionType
from typing import Any

import numba

_made: dict[Any, Any] = {}


def compiled(function: Any) -> Any:
    """Return `function` compiled by Numba, together with every plain thinbox function it calls."""
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
    _made[function] = numba.njit(error_model="numpy")(rebuilt)
    return _made[function]
