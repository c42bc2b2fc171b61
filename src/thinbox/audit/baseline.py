"""The regression gate: what an audit found before, and what is worse now.

Why it exists: a change that kills a call wrongly, or grants a page more, must not pass unseen.

Rules of this file:
- On the very same kernel and initramfs every count must hold; on another build memory lies otherwise, so only kills and
  differences are compared.
- Fewer grants or kills are no failure; they are told apart by updating the baseline.
"""

import json
from typing import Any

from thinbox.errors import InputError
from thinbox.foreign_text import parse_json
from thinbox.records.audit import AuditEntry, AuditRecord

SCHEMA = "thinbox.audit-baseline/1"


def make_baseline(record: AuditRecord) -> str:
    """Return the text of a baseline: one line a case, so that a diff reads well."""
    rows = {
        entry.title: [entry.code_faults, entry.data_faults, _state(entry)]
        for entry in record.entries
        if entry.exercised
    }
    head = {
        "schema": SCHEMA,
        "kernel": record.sha256,
        "initramfs": record.initramfs_sha256,
        "release": record.release,
        "policy": record.policy,
    }
    lines = [f"  {json.dumps(title)}: {json.dumps(row)}" for title, row in rows.items()]
    return json.dumps(head)[:-1] + ', "cases": {\n' + ",\n".join(lines) + "\n}}\n"


def _state(entry: AuditEntry) -> str:
    if entry.killed:
        return "killed"
    return "same" if entry.same else "different"


def compare_with_baseline(record: AuditRecord, text: str | bytes) -> list[str]:
    """Return one line for each thing that is worse than in the baseline; `InputError` if it cannot be compared."""
    stored = parse_json(text.encode() if isinstance(text, str) else text, "the baseline")
    try:
        if stored["schema"] != SCHEMA:
            raise InputError(f"the baseline has schema {stored['schema']!r}, this thinbox reads {SCHEMA!r}")
        cases = {str(title): _row(row) for title, row in stored["cases"].items()}
        policy = stored["policy"]
        same_guest = (stored["kernel"], stored["initramfs"]) == (record.sha256, record.initramfs_sha256)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the baseline is damaged: {error}; make a new one with --update-baseline") from error
    if policy != record.policy:
        raise InputError(f"the baseline is of policy {policy}, the audit of {record.policy}")
    worse = []
    for entry in record.entries:
        before = cases.get(entry.title)
        state = _state(entry)
        if before is None:
            if entry.exercised and state != "same":
                worse.append(f"{entry.title}: new, and {state}: {entry.killed or entry.reason}")
            continue
        if not entry.exercised:
            worse.append(f"{entry.title}: is exercised no longer: {entry.reason}")
        elif state != before[2] and state != "same":
            worse.append(f"{entry.title}: {state}, was {before[2]}: {entry.killed or entry.reason}")
        elif same_guest and state == before[2] == "same":
            worse += _more_grants(entry, before)
    return worse


def _row(row: Any) -> tuple[int, int, str]:
    code, data, state = row
    if type(code) is not int or type(data) is not int or not isinstance(state, str):
        raise TypeError(f"{row!r} is no row of a case")
    return code, data, state


def _more_grants(entry: AuditEntry, before: tuple[int, int, str]) -> list[str]:
    out = []
    for name, now, then in (("code", entry.code_faults, before[0]), ("data", entry.data_faults, before[1])):
        if now > then:
            out.append(f"{entry.title}: {now} {name} pages granted, the baseline has {then}")
    return out
