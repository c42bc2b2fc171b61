"""What coverage found: per call, per name of a call, and for the whole workload; and its JSON.

Why it exists: the schema `thinbox.coverage/1` is promised to readers; it is built here only.

Rules of this file:
- A function is an address; names are for reading. Static functions may share a name, and a list of names then
  has it once for each.
- Nothing here depends on the host: two runs give the same object.
"""

from dataclasses import dataclass
from typing import Any

SCHEMA = "thinbox.coverage/1"


@dataclass(frozen=True, slots=True)
class CallCounts:
    """One call: functions entered, those of them ftrace could see, and 4 KiB pages.

    `data_pages` are pages of kernel data read or written, `written_pages` those of them that were written;
    both are None if the call was not isolated.
    """

    functions: int
    traceable: int
    executed_pages: int
    data_pages: int | None
    written_pages: int | None


@dataclass(frozen=True, slots=True)
class Use:
    """A function or page, and in how many calls it was used. `name` is empty for a page of data."""

    vaddr: int
    name: str
    calls: int


@dataclass(frozen=True, slots=True)
class NameCoverage:
    """All calls of one name together; each tuple is ordered by address."""

    name: str
    calls: int
    isolated: int
    entered: tuple[Use, ...]
    executed: tuple[Use, ...]
    traceable: int
    executed_pages: tuple[Use, ...]
    data_pages: tuple[Use, ...]
    written_pages: tuple[Use, ...]

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the functions entered."""
        return tuple(use.name for use in self.entered)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; pages as integers, data pages null where no call was isolated."""
        known = self.isolated > 0
        return {
            "name": self.name,
            "calls": self.calls,
            "isolated": self.isolated,
            "functions_entered": len(self.entered),
            "functions_traceable": self.traceable,
            "functions_executed": len(self.executed),
            "functions": list(self.functions),
            "executed_pages": [use.vaddr for use in self.executed_pages],
            "data_pages": [use.vaddr for use in self.data_pages] if known else None,
            "written_pages": [use.vaddr for use in self.written_pages] if known else None,
        }


@dataclass(frozen=True, slots=True)
class RunCoverage:
    """A whole workload. `functions` are the names of all functions its calls entered, by address.

    `interrupts` are those entered by interrupts that arrived inside a call; they are in no call's set.
    `lost_blocks` is 0 unless a log was full, and then everything here is a lower bound.
    """

    calls: tuple[NameCoverage, ...]
    entered: tuple[Use, ...]
    executed_functions: int
    executed_pages: int
    traceable: int
    interrupts: tuple[str, ...]
    lost_blocks: int

    @property
    def hap(self) -> int:
        """The horizontal attack profile: distinct kernel functions entered by the workload's calls."""
        return len(self.entered)

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the functions entered."""
        return tuple(use.name for use in self.entered)

    def named(self, name: str) -> NameCoverage:
        """Return the calls called `name`; KeyError if there were none."""
        for entry in self.calls:
            if entry.name == name:
                return entry
        raise KeyError(name)

    @property
    def totals(self) -> dict[str, Any]:
        """The workload's own numbers."""
        return {
            "hap": self.hap,
            "hap_traceable": self.traceable,
            "functions_executed": self.executed_functions,
            "executed_pages": self.executed_pages,
            "interrupt_functions": len(self.interrupts),
            "lost_blocks": self.lost_blocks,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the object of `thinbox run --coverage`."""
        return {
            "schema": SCHEMA,
            "totals": self.totals,
            "functions": list(self.functions),
            "interrupts": list(self.interrupts),
            "calls": [entry.to_json() for entry in self.calls],
        }
