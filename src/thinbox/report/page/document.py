"""A file given to `thinbox report`: read, recognised by its schema, and checked before anything is shown.

Why it exists: records travel. One that is damaged, cut, edited, or of a version this thinbox does not know must end in
one line that says so, not in a page that is half right.

Rules of this file:
- Only the named file is read; what a record names (a trace, a plan's files) is not opened.
- Whatever the bytes are, the result is a `Document` or an `InputError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from thinbox.errors import InputError
from thinbox.foreign_text import MAX_JSON_BYTES, parse_json
from thinbox.host.files import read_file
from thinbox.report.page.attack_file import AttackFile
from thinbox.report.page.audit_file import AuditFile
from thinbox.report.page.compare_file import CallCostsFile, CompareFile
from thinbox.report.page.cost_file import CostFile
from thinbox.report.page.coverage_file import CoverageFile
from thinbox.report.page.run_file import RunFile, TenantsFile
from thinbox.report.page.visible import shorten, visible
from thinbox.sandbox.plan import Plan
from thinbox.sandbox.plan_file import SCHEMA as PLAN_SCHEMA
from thinbox.sandbox.plan_file import parse_plan

Body = RunFile | TenantsFile | AuditFile | AttackFile | CompareFile | CallCostsFile | CoverageFile | CostFile | Plan

WRITERS: dict[str, tuple[type[Any], str]] = {
    "thinbox.run/1": (RunFile, "thinbox run --json"),
    "thinbox.tenants/1": (TenantsFile, "thinbox run --tenant … --json"),
    "thinbox.audit/1": (AuditFile, "thinbox audit --json"),
    "thinbox.attack/1": (AttackFile, "thinbox attack --json"),
    "thinbox.compare/1": (CompareFile, "thinbox compare --json"),
    "thinbox.compare/2": (CompareFile, "thinbox compare --json"),
    "thinbox.compare-calls/1": (CallCostsFile, "thinbox compare --calls --json"),
    "thinbox.coverage/1": (CoverageFile, "thinbox run --coverage"),
    "thinbox.cost/1": (CostFile, "thinbox cost --json"),
}
"""Each JSON schema the page shows: its type, and who writes it. Plans (`thinbox.plan/1`) are TOML."""

_LONGEST_SCHEMA = 60
_LONGEST_ERROR = 200


@dataclass(frozen=True, slots=True)
class Document:
    """One input; `name` is what the page calls it, `raw` the JSON object it was (empty for a plan)."""

    name: str
    body: Body
    raw: dict[str, Any]


def load_documents(paths: Sequence[Path]) -> list[Document]:
    """Read all; files of one name are called by their paths.

    Raises:
        InputError: one of them cannot be read, or is not what the page shows; the line names it.
    """
    names = [path.name for path in paths]
    documents = []
    for path in paths:
        data = read_file(path, MAX_JSON_BYTES)
        name = path.name if names.count(path.name) == 1 else str(path)
        documents.append(parse_document(data, name, plan=path.suffix == ".toml"))
    return documents


def parse_document(data: bytes, name: str, *, plan: bool = False) -> Document:
    """Return the document in `data`; `plan` says that it is TOML.

    Raises:
        InputError: anything else than a whole object of a known schema.
    """
    if plan:
        # Nothing is read from the host for it, and no handler is imported.
        return Document(name, parse_plan(data, name, lambda _path: b""), {})
    return check_record(parse_json(data, name), name)


def check_record(raw: Any, name: str) -> Document:
    """Return the document that the JSON value `raw` is; InputError as `parse_document`."""
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(schema, str) or schema not in WRITERS:
        said = "no schema" if schema is None else f"schema {_one_line(schema, _LONGEST_SCHEMA)!r}"
        known = ", ".join([*WRITERS, f"{PLAN_SCHEMA} (.toml)"])
        raise InputError(f"{name} has {said}, which this thinbox does not show; it shows {known}")
    kind, writer = WRITERS[schema]
    try:
        return Document(name, msgspec.convert(raw, kind), raw)
    except ValueError as error:  # msgspec.ValidationError; UnicodeEncodeError, for a surrogate where it wants a word
        message = f"{name} is not a whole {schema} ({_one_line(error)}); write it again with `{writer}`"
        raise InputError(message) from error


def _one_line(what: object, longest: int = _LONGEST_ERROR) -> str:
    return shorten(visible(str(what)).replace("\n", " "), longest)
