"""A drop-in for a systemd service: `SystemCallFilter=`, allow list, evidence as comments.

Source: systemd.exec(5); src/core/load-fragment.c, config_parse_syscall_filter. Tried with systemd 252.

Rules of this file:
- Lists of a unit and its drop-ins are added up, so each is emptied first.
- The first line that allows brings `@default` with it, some fifty calls that grow from release to release; they are
  taken away again, and the plan says what is allowed. Nothing but `execve` is needed to start the program.
- It filters by name only. Limits on arguments are said in comments and not enforced, but for two that have settings of
  their own: families of sockets, and no new namespaces.
"""

import errno
from collections.abc import Sequence

from thinbox.planning.exports.oci import describe_note
from thinbox.planning.filters import Filter, FilterRule
from thinbox.sandbox.arguments import HALF, value_names

_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: what RestrictNamespaces= knows."""


def render_systemd(made: Filter) -> bytes:
    """Return the drop-in, to be put under /etc/systemd/system/NAME.service.d/."""
    notes = {note.name: " ".join(describe_note(note).split()).rstrip("\\") for note in made.notes}
    allowed = made.allowed()
    lines = [
        f"# {' '.join(made.name.split())}: made by thinbox plan. systemd limits no arguments; where a plan does, the",
        "# comment says it.",
        "[Service]",
        "SystemCallArchitectures=",
        f"SystemCallArchitectures={'native x86' if made.compat else 'native'}",
        f"SystemCallErrorNumber={_error(made.default, made.default_errno)}",
        "# An allow list of nothing: the first line that allows brings @default with it.",
        "SystemCallFilter=",
        "SystemCallFilter=execve",
        "SystemCallFilter=~@default execve",
    ]
    for name in allowed:
        lines += [f"# {name}: {notes[name]}", f"SystemCallFilter={name}"]
    for rule in made.rules:
        if rule.action == "allow" or rule.name in allowed:
            continue
        lines.append(f"# {rule.name}: refused ({notes[rule.name]})")
        if not rule.compares:
            lines.append(f"SystemCallFilter=~{rule.name}:{_error(rule.action, rule.errno)}")
    families = _families(made.rules)
    if families is not None:
        lines += ["# socket: limited to these families", "RestrictAddressFamilies=none"]
        lines += [f"RestrictAddressFamilies={family}" for family in families]
    if _makes_no_namespaces(made.rules):
        lines += ["# clone and unshare: never with a flag of a namespace", "RestrictNamespaces=yes"]
    return ("\n".join(lines) + "\n").encode()


def _error(action: str, number: int) -> str:
    return "kill" if action == "kill" else errno.errorcode.get(number, str(number))


def _allowing(rules: Sequence[FilterRule], name: str) -> list[FilterRule]:
    return [rule for rule in rules if rule.name == name and rule.action == "allow"]


def _families(rules: Sequence[FilterRule]) -> tuple[str, ...] | None:
    """Return the families that `socket` is limited to; None if it is not, or to one without a name here."""
    names = {value: name for name, value in value_names("socket", 0).items()}
    found = set()
    for rule in _allowing(rules, "socket"):
        values = [c.value & HALF for c in rule.compares if c.index == 0 and c.mask & HALF == HALF]
        if not values or values[0] not in names:
            return None
        found.add(names[values[0]])
    return tuple(sorted(found - {"AF_UNSPEC"})) if found else None


def _makes_no_namespaces(rules: Sequence[FilterRule]) -> bool:
    """Whether the plan lets `clone` or `unshare` through, but never for a namespace.

    The setting refuses clone3, whose flags no filter sees, and setns altogether; a plan with those is left alone.
    """
    if _allowing(rules, "clone3") or _allowing(rules, "setns"):
        return False
    callers = [*_allowing(rules, "clone"), *_allowing(rules, "unshare")]
    return bool(callers) and all(
        any(
            c.index == 0 and c.mask & _NEW_NAMESPACES == _NEW_NAMESPACES and not c.value & _NEW_NAMESPACES
            for c in rule.compares
        )
        for rule in callers
    )
