"""Policies: each decides whether one access of one call is granted. One small pure module each.

A policy is any object with the attributes of `Policy`. Pass it from Python, or by name on the command
line: `--policy sci`, `--policy patch`, `--policy package.module:Name` (a class without arguments or an object).
"""

from importlib import import_module
from typing import Any, Protocol

from thinbox.errors import InputError
from thinbox.isolation.verdict import Access, Verdict


class CallView(Protocol):
    """What a policy may know of the call it judges."""

    granted_pages: int
    """Pages granted to this call so far."""
    notes: dict[str, Any]
    """The policy's own memory, empty when the call begins, forgotten when it ends."""

    def is_executable(self, vaddr: int) -> bool:
        """Whether the page of `vaddr` is mapped, and executable, in the call's SCI table."""
        ...


class Policy(Protocol):
    """The protocol: a name, and a judgement."""

    name: str
    grants_all_data: bool
    """True: every access to kernel data is granted, without asking; such faults take the fast path."""

    def check_access(self, access: Access, call: CallView) -> Verdict:
        """Judge one access."""
        ...


BUILT_IN = {"sci": "thinbox.isolation.policies.sci:Sci", "patch": "thinbox.isolation.policies.patch:Patch"}


def load_policy(spec: str) -> Policy:
    """Return the policy `spec` names: a built-in one, or `package.module:Name`.

    Raises:
        InputError: there is none of that name, or it lacks `name` or `check_access`.
    """
    target = BUILT_IN.get(spec, spec)
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        known = ", ".join(BUILT_IN)
        raise InputError(f"there is no policy {spec!r}; use {known}, or package.module:Name")
    try:
        found = getattr(import_module(module_name), attribute)
        policy = found() if isinstance(found, type) else found
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(f"cannot load policy {spec!r}: {error}") from error
    if not callable(getattr(policy, "check_access", None)) or not isinstance(getattr(policy, "name", None), str):
        raise InputError(f"policy {spec!r} lacks a name or check_access(access, call); see docs/policies.md")
    loaded: Policy = policy
    return loaded
