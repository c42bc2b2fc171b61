"""A filter in the languages that production reads: one module each.

Why it exists: the plan is only worth something where people run containers today.
"""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

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
"""By the name `--export` takes."""
WITHOUT_COMMENTS = frozenset({"oci", "docker", "bpf"})
"""Formats that have no comments: their evidence goes to a file beside them."""


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
