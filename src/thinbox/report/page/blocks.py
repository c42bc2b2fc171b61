"""What a page is made of: sections of facts, tiles, tables, charts and notes, all text already.

Why it exists: every kind of record becomes these few blocks, so one template draws each of them, and one place escapes.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from thinbox.report.page.chart import Bars, Histogram

Tone = Literal["", "good", "warn", "bad", "plain"]
"""How a verdict or a cell is marked; always beside words that say the same."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table. `code`: addresses, commands, names of functions."""

    text: str
    tone: Tone = ""
    code: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; numbers stand right."""

    title: str
    number: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; the first cell of a row is its heading. `note` stands below."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """A term and what is known of it. `long`: text of several lines, in its own box."""

    term: str
    text: str
    code: bool = False
    long: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a record, in order."""

    entries: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that is read first: its name, the figure, what it is out of."""

    name: str
    figure: str
    detail: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Figures side by side."""

    entries: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What a refusal means and what to do about it."""

    title: str
    meaning: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Notes:
    """Sentences, as a list if there are several."""

    entries: tuple[str, ...]


Block = Table | Facts | Tiles | Advice | Notes | Bars | Histogram


@dataclass(frozen=True, slots=True)
class Headline:
    """The verdict in plain words."""

    tone: Tone
    text: str


@dataclass(frozen=True, slots=True)
class Part:
    """A titled piece of a section."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One record: `source` is the file's name, `kind` what it is, `what` which workload."""

    kind: str
    source: str
    what: str
    headline: Headline
    blocks: tuple[Block, ...]
    parts: tuple[Part, ...] = field(default=())


def without_empty(table: Table) -> Table:
    """Return the table without columns in which no row says anything."""
    kept = [at for at in range(len(table.columns)) if at == 0 or any(row[at].text for row in table.rows)]
    rows = tuple(tuple(row[at] for at in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[at] for at in kept), rows=rows)


def columns(*titles: str) -> tuple[Column, ...]:
    """Return columns; a title that begins with `#` is one of numbers."""
    return tuple(Column(title.removeprefix("#"), title.startswith("#")) for title in titles)


def cells(*values: "str | int | Cell | None") -> tuple[Cell, ...]:
    """Return a row; a number gets its separators, None is an empty cell."""
    return tuple(value if isinstance(value, Cell) else Cell(number(value)) for value in values)


def number(value: "str | int | None") -> str:
    """Return a count with separators, text as it is, nothing for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:,}"


def share(part: float, whole: float) -> str:
    """Return a percentage; small ones with two digits."""
    if not whole:
        return ""
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def count(amount: int, one: str, many: str = "") -> str:
    """Return `1 call`, `2 calls`."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def virtual(nanoseconds: int) -> str:
    """Return virtual time with a unit that suits it; the word virtual stands in heading or label."""
    for limit, unit, digits in ((1_000_000_000, "s", 2), (1_000_000, "ms", 2), (1_000, "µs", 1)):
        if nanoseconds >= limit:
            return f"{nanoseconds / limit:,.{digits}f} {unit}"
    return f"{nanoseconds:,} ns"
