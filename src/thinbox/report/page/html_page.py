"""The page as HTML: one file, nothing loaded from anywhere, nothing executed.

Why it exists: the page travels by mail and holds what strangers wrote. Jinja escapes every value; this module adds what
escaping does not give: a policy (CSP) that forbids all but the page's own style sheet, by its hash, and characters that
cannot hide (`visible`).

Rules of this file:
- No script, no event handler, no style attribute, no address of anything. Identifiers in the page are numbers of ours.
- Same contents, same bytes: no date, no path, no order that depends on a hash.
"""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from thinbox import __version__
from thinbox.report.page.blocks import Advice, Facts, Notes, Table, Tiles
from thinbox.report.page.chart import Bars, Histogram
from thinbox.report.page.contents import Contents
from thinbox.report.page.visible import visible

TEMPLATES = Path(__file__).parent / "templates"
_KINDS = {
    Table: "table", Facts: "facts", Tiles: "tiles", Advice: "advice", Notes: "notes", Bars: "bars",
    Histogram: "histogram",
}  # fmt: skip


def render_html(contents: Contents) -> bytes:
    """Return the page in UTF-8."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=contents,
            # Our own file, and the only text that is not escaped.
            style=Markup(style),  # noqa: S704
            policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            version=__version__,
        )
    )
    return page.encode()


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["kind"] = lambda block: _KINDS[type(block)]
    environment.filters["unit"] = lambda value: f"{value:.1f}".removesuffix(".0")
    return environment


def _finalize(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value
