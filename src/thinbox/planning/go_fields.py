"""Objects of JSON as a Go program reads them into a structure.

Why it exists: seccomp profiles are written for programs in Go. encoding/json finds keys without regard to case, takes
null for an absent value, and refuses a value of another type; so does this, with one line that says where.

Source: Go, encoding/json, `Unmarshal`.
"""

from typing import Any

from thinbox.errors import InputError

_SHOWN = 60


class Fields:
    """One object; `place` names it in messages."""

    __slots__ = ("_values", "place")

    def __init__(self, value: Any, place: str) -> None:
        """Raises InputError for anything else than an object, or one with a key twice but for its case."""
        self.place = place
        if not isinstance(value, dict):
            raise InputError(f"{place} is no object")
        self._values: dict[str, Any] = {}
        for key, inner in value.items():
            folded = key.casefold()
            if folded in self._values:
                raise InputError(f"{place} has the key {_show(key)} twice")
            self._values[folded] = inner

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing."""
        return not self._values

    def has(self, key: str) -> bool:
        """Whether there is such a key, with whatever value."""
        return key.casefold() in self._values

    def get(self, key: str) -> Any:
        """Return the value as it is, None if there is none."""
        return self._values.get(key.casefold())

    def text(self, key: str) -> str:
        """Return a string, empty if there is none."""
        value = self.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InputError(f"{self.place}.{key} is no word: {_show(value)}")
        return value

    def number(self, key: str) -> int | None:
        """Return an unsigned number of 64 bits, None if there is none."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
            raise InputError(f"{self.place}.{key} is no number from 0 to 2^64 - 1: {_show(value)}")
        return value

    def words(self, key: str) -> list[str]:
        """Return a list of strings."""
        found = self._list(key)
        for index, word in enumerate(found):
            if not isinstance(word, str):
                raise InputError(f"{self.place}.{key}[{index}] is no word: {_show(word)}")
        return found

    def objects(self, key: str) -> list["Fields"]:
        """Return a list of objects."""
        return [Fields(value, f"{self.place}.{key}[{index}]") for index, value in enumerate(self._list(key))]

    def object(self, key: str) -> "Fields":
        """Return an object, an empty one if there is none."""
        value = self.get(key)
        return Fields({} if value is None else value, f"{self.place}.{key}")

    def _list(self, key: str) -> list[Any]:
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise InputError(f"{self.place}.{key} is no list: {_show(value)}")
        return value


def _show(value: Any) -> str:
    """Return a value in a few printable characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
