"""Code of the user's that is named as `module:name`: policies, and a plan's handlers.

Why it exists: it is executed in this process, so where it may come from is one rule, the same for the console script,
for `python -m thinbox`, for policies and for handlers (docs/policies.md, "Where a module is looked for").

Rules of this file:
- First what is installed or in PYTHONPATH: a file of the current folder takes no installed module's place.
- Then the one file `./module.py`, read and executed by its descriptor, if nobody but us and root may write it or the
  folder. The folder is never put on `sys.path`: nothing else in it is imported.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from thinbox.errors import InputError, ThinboxError
from thinbox.host.trust import read_trusted

LARGEST_MODULE_BYTES = 4 << 20
_LOCAL = "thinbox_local_"
"""Begins the names of modules of the current folder: who imports the plain name gets an installed one or none."""


def load_object(spec: str, what: str) -> Any:
    """Return what `module:name` names; `what` begins the messages, as in "policy".

    Raises:
        InputError: there is none, its module cannot be imported, or (TrustError) others may write it.
    """
    module_name, _colon, name = spec.partition(":")
    try:
        module = _load_module(module_name)
        return getattr(module, name)
    except ThinboxError:
        raise
    except (Exception, SystemExit) as error:  # a module may do whatever it likes
        raise InputError(f"cannot load {what} {spec!r}: {_why(error, module_name)}") from error


def _load_module(name: str) -> ModuleType:
    local = Path(f"{name}.py")
    if not name.isidentifier() or _find_spec(name) is not None or not local.exists():
        return importlib.import_module(name)
    known = sys.modules.get(_LOCAL + name)
    if known is not None:
        return known
    code = compile(read_trusted(local, LARGEST_MODULE_BYTES), str(local.absolute()), "exec")
    module = ModuleType(_LOCAL + name)
    module.__file__ = str(local.absolute())
    sys.modules[module.__name__] = module  # where dataclasses look for their module
    try:
        exec(code, vars(module))  # noqa: S102 - what the user asks for
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _has(module: ModuleType) -> str:
    values = vars(module).items()
    own = [name for name, value in values if isinstance(value, type) and value.__module__ == module.__name__]
    return f"; it has {', '.join(own)}" if own else ""


def _find_spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module without a spec, such as __main__
        return None


def _why(error: BaseException, module_name: str) -> str:
    local = sys.modules.get(_LOCAL + module_name)
    if local is not None and isinstance(error, AttributeError) and error.obj is local:
        return f"./{module_name}.py has no {error.name!r}{_has(local)}"
    if isinstance(error, ModuleNotFoundError) and module_name.startswith(str(error.name)):
        return f"{error}; install it, put its folder into PYTHONPATH, or name a file of this folder, ./NAME.py, as NAME"
    said = " ".join(str(error).split()) or type(error).__name__
    shadowed = isinstance(error, AttributeError) and module_name.isidentifier() and Path(f"{module_name}.py").exists()
    hint = f"; ./{module_name}.py is another one, and the installed module goes first: rename the file"
    return said + (hint if shadowed else "")
