"""Charts as geometry: where each bar of an inline SVG lies. The template writes them; nothing is drawn elsewhere.

Why it exists: two kinds of chart need no plotting library in the base install, and an SVG written by the template is
escaped as everything else is.

Rules of this file: units are those of the viewBox. A bar that stands for something is at least one unit wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 680
_LABEL = 150
_ROOM_FOR_VALUE = 110
_ROW, _BAR = 24, 16
_LONGEST_LABEL = 20
_PLOT_HEIGHT, _ABOVE, _BELOW, _LEFT = 150, 22, 58, 8
_LEAST = 1.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle. `series` is 1 or 2, for its colour."""

    x: float
    y: float
    width: float
    height: float
    series: int


@dataclass(frozen=True, slots=True)
class Label:
    """Text at a place. `anchor` is start, middle or end."""

    x: float
    y: float
    text: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars of two stacked series. `description` says in words what it shows."""

    title: str
    description: str
    legend: tuple[str, ...]
    width: int
    height: int
    pieces: tuple[Piece, ...]
    labels: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Histogram(Bars):
    """Vertical bars, one for each range of values, above a line."""

    baseline: float


def stacked_bars(title: str, description: str, legend: tuple[str, str], rows: Sequence[tuple[str, int, int]]) -> Bars:
    """Return one bar a row: its label and the values of two series."""
    most = max((first + second for _label, first, second in rows), default=0) or 1
    scale = (WIDTH - _LABEL - _ROOM_FOR_VALUE) / most
    pieces, labels = [], []
    for at, (label, first, second) in enumerate(rows):
        top, x = at * _ROW + (_ROW - _BAR) / 2, float(_LABEL)
        for series, value in ((1, first), (2, second)):
            if value:
                width = max(_LEAST, value * scale)
                pieces.append(Piece(x, top, width, _BAR, series))
                x += width
        middle = top + _BAR - 4
        labels.append(Label(_LABEL - 8, middle, _fit(label), "end"))
        labels.append(Label(x + 6, middle, f"{first + second:,}", "start"))
    return Bars(title, description, legend, WIDTH, max(1, len(rows)) * _ROW, tuple(pieces), tuple(labels))


def histogram(title: str, values: Sequence[int], unit: str) -> Histogram:
    """Return how many of `values` lie in each range; ranges double: 0, 1, 2 to 3, 4 to 7 and so on."""
    bins = [0] * (max(values, default=0).bit_length() + 1)
    for value in values:
        bins[value.bit_length()] += 1
    first = next((at for at, held in enumerate(bins) if held), 0)
    shown = list(enumerate(bins))[first:]
    step = (WIDTH - 2 * _LEFT) / max(8, len(shown))
    scale = _PLOT_HEIGHT / (max(bins) or 1)
    base = _ABOVE + _PLOT_HEIGHT
    pieces, labels, words = [], [], []
    for at, (bits, held) in enumerate(shown):
        centre = _LEFT + (at + 0.5) * step
        low, _to, high = _range(bits).partition(" to ")
        labels.append(Label(centre, base + 16, f"{low} to" if high else low, "middle"))
        if high:
            labels.append(Label(centre, base + 30, high, "middle"))
        if held:
            height = max(_LEAST, held * scale)
            pieces.append(Piece(centre - 0.4 * step, base - height, 0.8 * step, height, 1))
            labels.append(Label(centre, base - height - 6, f"{held:,}", "middle"))
            words.append(f"{held:,} with {_range(bits)}")
    labels.append(Label(_LEFT, base + 50, unit, "start"))
    return Histogram(
        title, "; ".join(words), (), WIDTH, _ABOVE + _PLOT_HEIGHT + _BELOW, tuple(pieces), tuple(labels), float(base)
    )


def _range(bits: int) -> str:
    if bits < 2:
        return str(bits)
    return f"{1 << (bits - 1):,} to {(1 << bits) - 1:,}"


def _fit(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
