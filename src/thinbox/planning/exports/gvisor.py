"""A host-call allow list in the way of gVisor's: Go source for `seccomp.SyscallRules`, evidence as comments.

Source: google/gvisor, runsc/boot/filter/config/config_main.go and pkg/seccomp (2024): `MakeSyscallRules`, `MatchAll`,
`PerArg`, `EqualTo`, `MaskedEqual`, `Or`.
"""

import re
from collections.abc import Sequence

from thinbox.planning.exports.oci import describe_note
from thinbox.planning.filters import Compare, Filter, FilterRule


def render_gvisor(made: Filter) -> bytes:
    """Return a Go file with one variable; what it does not allow is the user's default."""
    title = "".join(part.title() for part in re.split(r"\W+|_", made.name)) or "Workload"
    notes = {note.name: note for note in made.notes}
    lines = [
        f"// Package filter holds the calls of {' '.join(made.name.split())}, made by thinbox plan.",
        "package filter",
        "",
        'import (\n\t"golang.org/x/sys/unix"\n\t"gvisor.dev/gvisor/pkg/seccomp"\n)',
        "",
        f"// Allowed{title} are the calls it may make.",
        f"var Allowed{title} = seccomp.MakeSyscallRules(map[uintptr]seccomp.SyscallRule{{",
    ]
    for name in made.allowed():
        rules = [rule for rule in made.rules if rule.name == name and rule.action == "allow"]
        lines.append(f"\t// {' '.join(describe_note(notes[name]).split())}")
        lines.append(f"\tunix.SYS_{name.upper()}: {_rule(rules)},")
    lines.append("})")
    return ("\n".join(lines) + "\n").encode()


def _rule(rules: Sequence[FilterRule]) -> str:
    if any(not rule.compares for rule in rules):
        return "seccomp.MatchAll{}"
    shown = [_per_arg(rule.compares) for rule in rules]
    return shown[0] if len(shown) == 1 else f"seccomp.Or{{{', '.join(shown)}}}"


def _per_arg(compares: Sequence[Compare]) -> str:
    by_index = {compare.index: compare for compare in compares}
    values = []
    for index in range(max(by_index) + 1):
        compare = by_index.get(index)
        if compare is None:
            values.append("seccomp.AnyValue{}")
        elif compare.exact:
            values.append(f"seccomp.EqualTo({compare.value:#x})")
        else:
            values.append(f"seccomp.MaskedEqual({compare.mask:#x}, {compare.value:#x})")
    return f"seccomp.PerArg{{{', '.join(values)}}}"
