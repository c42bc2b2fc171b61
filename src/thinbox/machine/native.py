"""The compiled hooks as one object file: made once with Numba, loaded from the cache without it.

Why it exists: to import Numba and to load its own cache of a dozen functions took 0.35 s of every command;
this takes 0.03 s. LLVM (llvmlite), of which Numba is a user, loads what LLVM made.

Rules of this file:
- The file is named after all that shapes its contents: the source, Numba, LLVM, the host's CPU and its features.
- A file that is damaged is the same as none; where none can be kept, the hooks are compiled in every process.
- Numba is imported only to compile. Compiled hooks cannot raise; code that Numba adds in case they could ends
  in `abort`.
"""

import ctypes
import hashlib
import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from thinbox.errors import CacheError, MachineError
from thinbox.image.cache import cache_dir, read_sealed, store_sealed

_HOOK_MODULES = (
    "thinbox.machine.hooks",
    "thinbox.machine.coherence",
    "thinbox.machine.coverage_hooks",
    "thinbox.machine.view_hooks",
    "thinbox.machine.tracing_hooks",
    "thinbox.machine.watch_hooks",
)
_NEVER_CALLED = (
    "NRT_Free",
    "numba_do_raise",
    "numba_gil_ensure",
    "numba_gil_release",
    "numba_runtime_build_excinfo_struct",
    "numba_unpickle",
)
"""What the code for an exception would call in Numba."""

_addresses: dict[str, int] = {}
_engines: list[Any] = []
"""What was linked lives as long as its engine."""


def hook_address(name: str) -> int:
    """Return the host address of the compiled hook `name` (of a module of `_HOOK_MODULES`), compiling if need be."""
    if not _addresses:
        _load_hooks()
    return _addresses[name]


def _load_hooks() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    path = cache_dir() / "native" / f"{_key()}.o"
    found = _read(path)
    if found is None:
        found = _compile_hooks()
        _store(path, *found)
    _link(*found)


def _key() -> str:
    """Return a name for all that shapes the compiled code."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    rooms = [*sorted((package / "isolation").glob("*.py")), *sorted((package / "machine").glob("*.py"))]
    for path in (package / "paging.py", *rooms):
        digest.update(path.read_bytes())
    host = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    digest.update("\0".join((llvmlite.__version__, *host)).encode())
    digest.update(_numba_version())
    return digest.hexdigest()[:32]


def _numba_version() -> bytes:
    """Return the file that tells Numba's version: to import it, or `importlib.metadata`, takes longer than all else."""
    spec = find_spec("numba")
    if spec is None or spec.origin is None:
        raise MachineError("Numba is not installed; pip install thinbox again")
    return Path(spec.origin).with_name("_version.py").read_bytes()


def _read(path: Path) -> tuple[dict[str, str], bytes] | None:
    """Return symbol names and object file, None if there is no undamaged file."""
    body = read_sealed(path)
    if body is None:
        return None
    header, _, code = body.partition(b"\n")
    return json.loads(header), code


def _store(path: Path, symbols: dict[str, str], code: bytes) -> None:
    # If it cannot be kept, the next process compiles again.
    with suppress(CacheError):
        store_sealed(path, json.dumps(symbols).encode() + b"\n" + code)


def _compile_hooks() -> tuple[dict[str, str], bytes]:
    """Compile every hook; return the symbol of each, and all of them in one object file."""
    from importlib import import_module

    from numba.core.ccallback import CFunc

    made = [vars(import_module(name)).items() for name in _HOOK_MODULES]
    hooks = {name: value for items in made for name, value in items if isinstance(value, CFunc)}
    whole = llvm.parse_assembly("")
    for hook in hooks.values():
        whole.link_in(llvm.parse_assembly(hook.inspect_llvm()))
    return {name: hook.native_name for name, hook in hooks.items()}, _target().emit_object(whole)


def _target() -> Any:
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )


def _link(symbols: dict[str, str], code: bytes) -> None:
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value or 0
    for name in _NEVER_CALLED:
        if not llvm.address_of_symbol(name):
            llvm.add_symbol(name, abort)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    for name, symbol in symbols.items():
        address = engine.get_function_address(symbol)
        if not address:
            raise MachineError(f"the compiled hook {name} cannot be loaded; remove {cache_dir() / 'native'}")
        _addresses[name] = address
