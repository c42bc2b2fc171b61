"""A drop-in for a systemd service: `SystemCallFilter=`, allow list, evidence as comments.

Source: systemd.exec(5). It filters by name only: limits on arguments are said in comments, and are not enforced.
"""

import errno

from thinbox.planning.exports.oci import describe_note
from thinbox.planning.filters import Filter


def render_systemd(made: Filter) -> bytes:
    """Return the drop-in, to be put under /etc/systemd/system/NAME.service.d/."""
    lines = [
        f"# {made.name}: made by thinbox plan. systemd limits no arguments; where a plan does, the comment says it.",
        "[Service]",
    ]
    lines.append(f"SystemCallArchitectures={'native x86' if made.compat else 'native'}")
    if made.default == "errno":
        lines.append(f"SystemCallErrorNumber={errno.errorcode.get(made.default_errno, made.default_errno)}")
    notes = {note.name: note for note in made.notes}
    allowed = made.allowed()
    for name in allowed:
        lines += [f"# {name}: {_one_line(describe_note(notes[name]))}", f"SystemCallFilter={name}"]
    for rule in made.rules:
        if rule.action != "allow" and rule.name not in allowed:
            lines.append(f"# {rule.name}: refused by not being listed ({_one_line(describe_note(notes[rule.name]))})")
    if not allowed:
        lines.append("SystemCallFilter=")
    return ("\n".join(lines) + "\n").encode()


def _one_line(text: str) -> str:
    # A backslash at a line's end would go on in the next one.
    return " ".join(text.split()).rstrip("\\")
