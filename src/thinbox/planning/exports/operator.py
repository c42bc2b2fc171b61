"""A `SeccompProfile` of the Kubernetes Security Profiles Operator, as YAML with the evidence as comments.

Source: kubernetes-sigs/security-profiles-operator, api/seccompprofile/v1beta1 and deploy/base-crds (August 2026). The
fields are OCI's, but for two things:

- There is no `defaultErrnoRet`, and a server refuses fields it does not know. An errno other than EPERM is said call
  by call; forms of a call that is allowed in other forms get EPERM.
- `value` and `valueTwo` are signed, at least 0: nothing with bit 63 can be said. Where a comparison pins that bit to 0
  ("no bits but these"), the values it lets through are listed one by one.
"""

import json
import re
from collections.abc import Sequence
from itertools import product

from thinbox.errors import InputError
from thinbox.planning.exports.oci import compare_object, describe_note, has_unsaid_errno, other_calls, seccomp_object
from thinbox.planning.filters import Compare, Filter, FilterRule
from thinbox.sandbox.arguments import WORD

API = "security-profiles-operator.x-k8s.io/v1beta1"
MOST_ENTRIES = 512
"""Entries one rule may become. The kernel takes a program of 4096 instructions, and libseccomp makes four to six of an
entry with two comparisons."""
_WIDTH = 110


def render_operator(made: Filter) -> bytes:
    """Return the manifest; names are made fit for Kubernetes (RFC 1123).

    Raises:
        InputError: a comparison that signed numbers cannot say.
    """
    plain = [rule for rule in made.rules if not rule.compares]
    profile = seccomp_object(Filter(made.name, made.default, made.default_errno, made.compat, tuple(plain), made.notes))
    notes = {note.name: " ".join(describe_note(note).split()) for note in made.notes}
    name = re.sub(r"[^a-z0-9-]+", "-", made.name.lower()).strip("-")[:63].strip("-") or "workload"
    lines = [f"apiVersion: {API}", "kind: SeccompProfile", "metadata:", f"  name: {json.dumps(name)}", "spec:"]
    lines.append(f"  defaultAction: {profile['defaultAction']}")
    lines.append("  architectures:")
    lines += [f"    - {arch}" for arch in profile["architectures"]]
    entries = []
    for entry in profile["syscalls"]:
        entries += _head(entry["action"], entry.get("errnoRet"))
        entries += ["      names:", *(f"        - {call} # {notes[call]}" for call in entry["names"])]
    for rule in made.rules:
        if rule.compares:
            entries += _compared(rule, notes[rule.name])
    if has_unsaid_errno(made):
        entries += ["    # The default once more, call by call: without this it would be EPERM."]
        entries += _head("SCMP_ACT_ERRNO", made.default_errno)
        entries += ["      names:", *_wrapped(other_calls(made))]
    lines.append("  syscalls:" if any("action:" in line for line in entries) else "  syscalls: []")
    return ("\n".join(lines + entries) + "\n").encode()


def _head(action: str, errno: int | None) -> list[str]:
    return [f"    - action: {action}", *([] if errno is None else [f"      errnoRet: {errno}"])]


def _wrapped(names: Sequence[str]) -> list[str]:
    lines, line = [], "        ["
    for index, name in enumerate(names):
        word = f"{name}{']' if index == len(names) - 1 else ','}"
        if len(line) + len(word) > _WIDTH:
            lines.append(line.rstrip())
            line = "         "
        line += f"{word} "
    return [*lines, line.rstrip()]


def _compared(rule: FilterRule, note: str) -> list[str]:
    """Return the entries of one rule with comparisons."""
    choices = [_signed(rule, compare) for compare in rule.compares]
    if any(not choice for choice in choices):
        if rule.action == "allow":
            raise InputError(
                f"{rule.name} compares more than 63 bits with a value, which the operator's signed numbers cannot say; "
                "write the plan's condition with a mask of 63 bits at most, or use --export oci"
            )
        return [f"    # {rule.name}: refused by the default; signed numbers cannot say this form ({note})"]
    lines = []
    single = FilterRule(rule.name, rule.nr, rule.action, rule.errno)
    errno = single.errno if single.action == "errno" else None
    action = {"allow": "SCMP_ACT_ALLOW", "errno": "SCMP_ACT_ERRNO", "kill": "SCMP_ACT_KILL_PROCESS"}[single.action]
    for combination in product(*choices):
        lines += _head(action, errno)
        lines += ["      names:", f"        - {rule.name} # {note}", "      args:"]
        for compare in combination:
            items = list(compare_object(compare).items())
            lines.append(f"        - {items[0][0]}: {items[0][1]}")
            lines += [f"          {key}: {value}" for key, value in items[1:]]
    return lines


def _signed(rule: FilterRule, compare: Compare) -> list[Compare]:
    """Return comparisons of signed numbers of which one holds exactly where this one does; none if there are none."""
    if compare.value >> 63:
        return []
    if compare.exact or not compare.mask >> 63:
        return [compare]
    free = [1 << bit for bit in range(63) if not compare.mask >> bit & 1]
    if 1 << len(free) > MOST_ENTRIES:
        return []
    sums = (sum(bit for index, bit in enumerate(free) if chosen >> index & 1) for chosen in range(1 << len(free)))
    return [Compare(compare.index, WORD, compare.value | extra) for extra in sums]
