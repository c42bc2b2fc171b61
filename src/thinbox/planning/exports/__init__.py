"""A filter in the languages that production reads: one module each.

Why it exists: the plan is only worth something where people run containers today.
"""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from thinbox.errors import InputError
from thinbox.planning.exports.bpf import render_bpf
from thinbox.planning.exports.gvisor import render_gvisor
from thinbox.planning.exports.oci import render_docker, render_oci
from thinbox.planning.exports.operator import render_operator
from thinbox.planning.exports.systemd import render_systemd
from thinbox.planning.filters import Filter

EVIDENCE_SCHEMA = "thinbox.filter-evidence/1"
EXPORTS: Mapping[str, Callable[[Filter], bytes]] = MappingProxyType(
    {
        "oci": render_oci,
        "docker": render_docker,
        "systemd": render_systemd,
        "spo": render_operator,
        "bpf": render_bpf,
        "gvisor": render_gvisor,
    }
)
"""By the name `--export` takes: those that come with thinbox."""
_ADDED: dict[str, Callable[[Filter], bytes]] = {}
WITHOUT_COMMENTS = frozenset({"oci", "docker", "bpf"})
"""Formats that have no comments: their evidence goes to a file beside them."""


def add_export(name: str, render: Callable[[Filter], bytes]) -> None:
    """Add a language of the user's own; InputError if the name is taken, or cannot be one."""
    if name in EXPORTS or name in _ADDED or not name or set(name) & set("=:"):
        raise InputError(f"an export cannot be called {name!r}: the name is taken, or has = or : in it")
    _ADDED[name] = render


def find_export(kind: str) -> Callable[[Filter], bytes]:
    """Return what renders `kind`: one that comes with thinbox, one that was added, or `package.module:function`.

    Raises:
        InputError: there is none.
    """
    found = EXPORTS.get(kind) or _ADDED.get(kind)
    if found is not None:
        return found
    module, colon, name = kind.partition(":")
    if not colon:
        known = ", ".join((*EXPORTS, *_ADDED))
        raise InputError(f"there is no export {kind!r}; use {known}, or package.module:function")
    try:
        render = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot load export {kind!r}: {error}") from error
    if not callable(render):
        raise InputError(f"export {kind!r} is no function")
    own: Callable[[Filter], bytes] = render
    return own


def render_evidence(made: Filter) -> bytes:
    """Return the evidence of every entry as JSON."""
    entries: list[dict[str, Any]] = [
        {
            "call": note.name,
            "action": note.action,
            "arguments": note.arguments,
            "reason": note.reason,
            "evidence": dict(note.evidence),
            "source": note.source,
        }
        for note in made.notes
    ]
    return (json.dumps({"schema": EVIDENCE_SCHEMA, "name": made.name, "entries": entries}, indent=1) + "\n").encode()
