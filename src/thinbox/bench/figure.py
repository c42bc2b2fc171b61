"""One line of the benchmark's table."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: `value` in `unit`, what the project wants it to be, and how it was made."""

    name: str
    value: float | None
    unit: str
    wanted: str
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
