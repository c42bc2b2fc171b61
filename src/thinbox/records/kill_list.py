"""The violations of a run: all counted, the first ones kept.

Why it exists: a tenant's child may be killed, and the next, for as long as the run lasts.

Rules of this file: `len` counts every one there was; iterating gives those kept. The first that was not undone is
always kept, for it says that the guest is wounded (`enforcement.hang_detector`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from thinbox.isolation.verdict import Violation
from thinbox.records.row_store import holds_the_same

MOST_KEPT = 4096
"""Violations kept: some 2 MB, and more than a person reads."""


class KillList(Sequence[Violation]):
    """Violations in the order they came."""

    def __init__(self, kills: Iterable[Violation] = (), most: int = MOST_KEPT) -> None:
        self._most, self._count = most, 0
        self._kept: list[Violation] = []
        self._wounded = False
        for kill in kills:
            self.append(kill)

    def append(self, kill: Violation) -> None:
        """Count a violation, and keep it if there is room."""
        self._count += 1
        if len(self._kept) < self._most or not (self._wounded or kill.undone):
            self._kept.append(kill)
        self._wounded |= not kill.undone

    @property
    def left_out(self) -> int:
        """Violations that are only counted."""
        return self._count - len(self._kept)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Violation]:
        return iter(self._kept)

    @overload
    def __getitem__(self, index: int) -> Violation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Violation]: ...
    def __getitem__(self, index: int | slice) -> Violation | list[Violation]:
        """Return one of those kept, or several."""
        return self._kept[index]

    def __eq__(self, other: object) -> bool:
        return holds_the_same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"KillList({self._kept!r}, left out {self.left_out})"
