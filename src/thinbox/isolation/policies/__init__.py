"""Policies: each decides whether one access of one call is granted. One small pure module each.

A policy is any object with the attributes of `Policy`. Pass it from Python, or by name on the command
line: `--policy sci`, `--policy package.module:Name` (a class without arguments or an object),
`--policy profile:FILE`, and several joined by `+`, of which each must grant: `--policy sci+transfer`.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from thinbox.errors import InputError
from thinbox.isolation.verdict import Access, Verdict

if TYPE_CHECKING:
    from thinbox.isolation.callgraph import CallGraph
    from thinbox.isolation.transfers import Source, Stack


class CodeSymbol(Protocol):
    """A function: `name` covers `start` up to `end_exclusive`."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end_exclusive(self) -> int: ...


class CallView(Protocol):
    """What a policy may know of the call it judges."""

    granted_pages: int
    """Pages granted to this call so far."""
    notes: dict[str, Any]
    """The policy's own memory, empty when the call begins, forgotten when it ends."""
    nr: int
    """The call's number; -1 for a 32-bit call."""
    name: str
    """The call's name."""
    text_start: int
    """Where the kernel's text begins."""
    text_version: int
    """Changes when the kernel patched its own text: whatever was decoded before may be stale."""

    def is_executable(self, vaddr: int) -> bool:
        """Whether the page of `vaddr` is mapped, and executable, in the call's SCI table."""
        ...

    @property
    def source(self) -> "Source | None":
        """Where the fetch came from; None where thinbox itself lets the task go on after it slept."""
        ...

    @property
    def stack(self) -> "Stack":
        """The stack, walked by the kernel's own tables."""
        ...

    @property
    def registers(self) -> Sequence[int]:
        """The general registers in encoding order (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 …)."""
        ...

    @property
    def graph(self) -> "CallGraph":
        """The static call graph; only for a policy with `needs_graph`."""
        ...

    def read_code(self, vaddr: int, size_bytes: int) -> bytes:
        """The live bytes of kernel text."""
        ...

    def read_word(self, vaddr: int) -> int | None:
        """The 8-byte word at a kernel address, None where nothing is mapped."""
        ...

    def symbol_at(self, vaddr: int) -> CodeSymbol | None:
        """The function around an address of kernel text."""
        ...

    def is_fixup(self, vaddr: int) -> bool:
        """Whether the kernel's exception table sends a faulting instruction there."""
        ...


class Policy(Protocol):
    """The protocol: a name, and a judgement. The rest may be left out.

    `judges_stack` (bool): no fetch is granted without asking unless every frame of the stack was under a
    fetch this policy granted before. `needs_graph` (bool): `CallView.graph` is wanted. `guards_end` (bool): it has
    `check_end`, `check_between` and `check_program`, see policy `guard`.
    """

    name: str
    grants_all_data: bool
    """True: every access to kernel data is granted, without asking; such faults take the fast path."""

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        ...


_HERE = "thinbox.isolation.policies."
BUILT_IN = {
    "sci": _HERE + "sci:Sci",
    "patch": _HERE + "patch:Patch",
    "function": _HERE + "function:Function",
    "transfer": _HERE + "transfer:Transfer",
    "live": _HERE + "live:Live",
    "callgraph": _HERE + "callgraph:Callgraph",
    "guard": _HERE + "guard:Guard",
}
_PROFILE = "profile:"
_JOIN = "+"

ReadFile = Callable[[str], bytes]
"""Returns a file's bytes, or raises InputError. This room reads no files itself."""
LoadObject = Callable[[str], Any]
"""Returns what `module:name` names, or raises InputError."""


def load_policy(spec: str, read_file: ReadFile | None = None, load_object: LoadObject | None = None) -> Policy:
    """Return the policy `spec` names: a built-in one, `profile:FILE`, `package.module:Name`, or several joined by `+`.

    Raises:
        InputError: there is none of that name, or it lacks `name` or `check_access`.
    """
    if _JOIN in spec:
        from thinbox.isolation.policies.all_of import AllOf

        return AllOf(tuple(load_policy(part, read_file, load_object) for part in spec.split(_JOIN)))
    if spec.startswith(_PROFILE) and read_file is not None:
        from thinbox.isolation.policies.profile import Profile

        return Profile.from_json(read_file(spec.removeprefix(_PROFILE)))
    return _load_object(spec, load_object or _import_object)


def _import_object(target: str) -> Any:
    module_name, _colon, attribute = target.partition(":")
    return getattr(import_module(module_name), attribute)


def _load_object(spec: str, load_object: LoadObject) -> Policy:
    target = BUILT_IN.get(spec, spec)
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        known = ", ".join(BUILT_IN)
        raise InputError(f"there is no policy {spec!r}; use {known}, profile:FILE, or package.module:Name")
    try:
        found = _import_object(target) if spec in BUILT_IN else load_object(spec)
        policy = found() if isinstance(found, type) else found
    except InputError:
        raise
    except Exception as error:  # a module, and a class of the user's, may do whatever they like
        raise InputError(f"cannot load policy {spec!r}: {error}") from error
    if not callable(getattr(policy, "check_access", None)) or not isinstance(getattr(policy, "name", None), str):
        raise InputError(f"policy {spec!r} lacks a name or check_access(access, call); see docs/policies.md")
    loaded: Policy = policy
    return loaded
