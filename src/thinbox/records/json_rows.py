"""A long list in a JSON object, made row by row as it is written.

Why it exists: the calls of a run, all at once as dictionaries, take a hundred times the room of the record they are of.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class JsonRows:
    """Rows of plain values; each iteration makes them anew."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())
