"""Results as tables of other libraries, and as HTML for notebooks.

Why it exists: DuckDB, polars and pandas read Arrow; none of them is needed to run anything.
"""

import importlib
from collections.abc import Sequence
from html import escape
from typing import Any

from thinbox.errors import InputError

Rows = Sequence[dict[str, Any]]


def to_arrow(rows: Rows) -> Any:
    """Return a `pyarrow.Table`; InputError where pyarrow is not installed."""
    return _library("pyarrow", "pip install 'thinbox[record]'").Table.from_pylist(_plain(rows))


def to_polars(rows: Rows) -> Any:
    """Return a `polars.DataFrame`; InputError where polars is not installed."""
    return _library("polars", "pip install polars").DataFrame(_plain(rows), infer_schema_length=None)


def _library(name: str, how: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} is not installed; {how}") from error


def _plain(rows: Rows) -> list[dict[str, Any]]:
    """Addresses and arguments are unsigned 64-bit numbers, which these libraries would guess to be signed: as text."""
    return [{key: _value(key, value) for key, value in row.items()} for row in rows]


def _value(key: str, value: Any) -> Any:
    if key == "args":
        return [f"{word:#x}" for word in value]
    return f"{value:#x}" if key in ("vaddr", "rip") and value is not None else value


def render_html(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a small table; every cell is escaped, for a tenant chooses some of the words."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<p>{escape(title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


__all__ = ["render_html", "to_arrow", "to_polars"]
