"""Policies: each decides whether one access of one call is granted. One small pure module each.

A policy is any object with the attributes of `Policy`. Pass it from Python, or by name on the command
line: `--policy sci`, `--policy package.module:Name` (a class without arguments or an object),
`--policy profile:FILE`, and several joined by `+`, of which each must grant: `--policy sci+transfer`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from thinbox.errors import InputError, did_you_mean
from thinbox.isolation.policy import CallView, CodeSymbol, Policy

__all__ = ["BUILT_IN", "CallView", "CodeSymbol", "Policy", "ReadFile", "load_policy"]

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
        meant = did_you_mean(spec, BUILT_IN)
        raise InputError(f"there is no policy {spec!r}{meant or ';'} use {known}, profile:FILE, or package.module:Name")
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
