"""One run of a case: which call is the measured one, what it came to, and what of the memory is compared.

Why it exists: a case runs twice, and what it says and does in one run must not reach the other. So each run has one of
these, made for it.
"""

import hashlib
import struct
from typing import TYPE_CHECKING

from thinbox.audit.expect import CaseFailedError
from thinbox.harness.process import AREA_BYTES
from thinbox.syscalls.table import call_number

if TYPE_CHECKING:
    from thinbox.guest.agent_channel import AgentChannel
    from thinbox.records.run import CallRecord, RunRecord

_AREAS = 8
"""Parts of the scratch that are compared: all of it."""


class Measurement:
    """A run of a case of `call`, whose measured call is isolated or not; `record` gets the calls as they are made."""

    def __init__(self, call: str, record: "RunRecord", agent: "AgentChannel", *, isolated: bool) -> None:
        self.call, self.is_isolated, self.is_finished = call, isolated, False
        self.measured: CallRecord | None = None
        self.lacking = False
        """The case says that this kernel cannot do it."""
        self.expected_status = -1
        """The wait status the first process ends with in its measured call; negative if it is to go on."""
        self._nr, self._record, self._agent = call_number(call), record, agent
        self._is_next = False
        self._left_out: list[tuple[int, int]] = []
        self._noted = hashlib.sha256()

    def isolates(self, nr: int) -> bool:
        """Asked at every call of the case's tasks: only the measured one is."""
        if not self._is_next or nr != self._nr:
            return False
        self._is_next = False
        self.measured = self._record.calls[-1]
        return self.is_isolated

    # -- what a case says ---------------------------------------------------------------------------
    def measure_next(self, ends_with: int | None = None) -> None:
        """The next call of this number is the measured one; `ends_with`: the first process ends in it."""
        if self.measured is not None:
            raise CaseFailedError("a case has exactly one measured call")
        self._is_next = True
        if ends_with is not None:
            self.expected_status = ends_with

    def leave_out(self, vaddr: int, size: int) -> None:
        """Leave a part of the scratch out of the comparison."""
        self._left_out.append((vaddr - self._agent.scratch, size))

    def note(self, data: bytes) -> None:
        """Compare these bytes, too."""
        self._noted.update(struct.pack("<Q", len(data)) + data)

    def memory_hash(self) -> str:
        """Return a hash of what is compared, as it is now."""
        scratch = bytearray(self._agent.read(self._agent.scratch, _AREAS * AREA_BYTES))
        for at, size in self._left_out:
            scratch[at : at + size] = bytes(size)
        found = self._noted.copy()
        found.update(scratch)
        return found.hexdigest()
