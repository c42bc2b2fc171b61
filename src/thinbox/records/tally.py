"""Sums over calls, added up as they end: of all, and of each name.

Why it exists: totals and the summary's table are exact whatever number of calls a record keeps.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from thinbox.records.call import CallRecord

MOST_NAMES = 4096
"""Names of one tally. Numbers without a call are named `#NNN` and `i386#NNN` and chosen freely, so those past this many
count together; the others are the 370 or so of the kernel's table."""


@dataclass(slots=True)
class NameTally:
    """The calls of one name. `slowest_ns` is virtual, entry to return."""

    times: int = 0
    isolated: int = 0
    code_faults: int = 0
    data_faults: int = 0
    most_faults: int = 0
    slowest_ns: int = 0

    @property
    def faults(self) -> int:
        """Pages granted to all of them, code and data."""
        return self.code_faults + self.data_faults

    def add(self, call: CallRecord) -> None:
        """Count a call."""
        self.times += 1
        self.isolated += call.isolated
        self.code_faults += call.code_faults
        self.data_faults += call.data_faults
        self.most_faults = max(self.most_faults, call.code_faults + call.data_faults)
        self.slowest_ns = max(self.slowest_ns, call.virtual_ns)

    def merge(self, other: "NameTally") -> None:
        """Count all that `other` counted."""
        self.times += other.times
        self.isolated += other.isolated
        self.code_faults += other.code_faults
        self.data_faults += other.data_faults
        self.most_faults = max(self.most_faults, other.most_faults)
        self.slowest_ns = max(self.slowest_ns, other.slowest_ns)


@dataclass(slots=True)
class Tally:
    """The sums of many calls; `all_calls` are those of every name together."""

    all_calls: NameTally = field(default_factory=NameTally)
    names: dict[str, NameTally] = field(default_factory=dict)
    reaching_kernel: int = 0
    reaching_unisolated: int = 0
    prefaulted: int = 0

    def add(self, call: CallRecord) -> None:
        """Count a call."""
        self.all_calls.add(call)
        self._named(call.name).add(call)
        self.prefaulted += call.prefaulted
        if call.reaches_kernel:
            self.reaching_kernel += 1
            self.reaching_unisolated += not call.isolated

    def plus(self, calls: Iterable[CallRecord]) -> "Tally":
        """Return a tally of these calls too; this one stays as it is."""
        out = Tally()
        out.merge(self)
        for call in calls:
            out.add(call)
        return out

    def merge(self, other: "Tally") -> None:
        """Count all that `other` counted."""
        self.all_calls.merge(other.all_calls)
        for name, part in other.names.items():
            self._named(name).merge(part)
        self.reaching_kernel += other.reaching_kernel
        self.reaching_unisolated += other.reaching_unisolated
        self.prefaulted += other.prefaulted

    def _named(self, name: str) -> NameTally:
        found = self.names.get(name)
        if found is None:
            head, mark, _number = name.partition("#")
            if mark and len(self.names) >= MOST_NAMES:
                name = f"{head}#…"
            found = self.names.setdefault(name, NameTally())
        return found
