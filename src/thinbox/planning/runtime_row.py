"""One row of a comparison: a runtime, and what the workload did in it."""

from dataclasses import dataclass
from typing import Any

from thinbox.planning.host_calls import HostCalls

HOST, EMULATED = "host", "emulated"
NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Row:
    """One runtime. `reaching` calls ran in the shared kernel, `unisolated` of them as they are; None: not known.

    `host_calls` are different calls the sandbox allows itself, `host_made` those it made; `wall_s` is by `clock`.
    """

    runtime: str
    clock: str
    exit_code: int | None = None
    calls: int | None = None
    reaching: int | None = None
    unisolated: int | None = None
    functions: int | None = None
    host_calls: int | None = None
    host_made: int | None = None
    ratio: float | None = None
    wall_s: float | None = None
    note: str = ""
    host: HostCalls | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object of `thinbox compare --json`."""
        row = {name: getattr(self, name) for name in self.__slots__}
        row["host"] = self.host.to_json() if self.host else None
        return row


def absent(runtime: str, note: str) -> Row:
    """Return the row of a runtime that could not be entered."""
    return Row(runtime, HOST, note=note)
