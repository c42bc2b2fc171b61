"""A `SeccompProfile` of the Kubernetes Security Profiles Operator, as YAML with the evidence as comments.

Source: kubernetes-sigs/security-profiles-operator, api/seccompprofile/v1beta1 (the fields are those of OCI).
"""

import json
import re

from thinbox.planning.exports.oci import describe_note, seccomp_object
from thinbox.planning.filters import Filter

API = "security-profiles-operator.x-k8s.io/v1beta1"


def render_operator(made: Filter) -> bytes:
    """Return the manifest; names are made fit for Kubernetes (RFC 1123)."""
    profile = seccomp_object(made)
    notes = {note.name: note for note in made.notes}
    name = re.sub(r"[^a-z0-9-]+", "-", made.name.lower()).strip("-")[:63].strip("-") or "workload"
    lines = [f"apiVersion: {API}", "kind: SeccompProfile", "metadata:", f"  name: {json.dumps(name)}", "spec:"]
    lines.append(f"  defaultAction: {profile['defaultAction']}")
    if "defaultErrnoRet" in profile:
        lines.append(f"  defaultErrnoRet: {profile['defaultErrnoRet']}")
    lines.append("  architectures:")
    lines += [f"    - {arch}" for arch in profile["architectures"]]
    lines.append("  syscalls:" if profile["syscalls"] else "  syscalls: []")
    for entry in profile["syscalls"]:
        lines += [f"    - action: {entry['action']}"]
        if "errnoRet" in entry:
            lines.append(f"      errnoRet: {entry['errnoRet']}")
        lines.append("      names:")
        lines += [f"        - {call} # {' '.join(describe_note(notes[call]).split())}" for call in entry["names"]]
        if "args" in entry:
            lines.append("      args:")
            for arg in entry["args"]:
                items = list(arg.items())
                lines.append(f"        - {items[0][0]}: {items[0][1]}")
                lines += [f"          {key}: {value}" for key, value in items[1:]]
    return ("\n".join(lines) + "\n").encode()
