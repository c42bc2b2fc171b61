"""The guest process a case is written for: what one does in a program, and the measured call.

Why it exists: a case should read like a small C program.

Rules of this file: what the measured call wrote is found by comparing the whole scratch, and what `watch` names.
"""

from typing import TYPE_CHECKING, Self

from thinbox.audit.expect import AT_LEAST_0, NEVER, CaseFailedError, Expect
from thinbox.guest.agent_channel import Syscall
from thinbox.harness.process import Argument, GuestProcess, Steps, result_text

if TYPE_CHECKING:
    from thinbox.audit.measurement import Measurement
    from thinbox.session.opened import RestoredGuest


class Process(GuestProcess):
    """One process (or thread) of a case."""

    def __init__(self, opened: "RestoredGuest", measurement: "Measurement", number: int = 0) -> None:
        super().__init__(opened, number)
        self._measurement = measurement

    def beside(self, number: int) -> Self:
        """Return a process of the same case that uses another part of the scratch."""
        return type(self)(self._guest, self._measurement, number)

    # -- what is compared -----------------------------------------------------------------------------
    def volatile(self, vaddr: int, size: int) -> None:
        """Leave these bytes of the scratch out of the comparison (a time, a random number)."""
        self._measurement.leave_out(vaddr, size)

    def watch(self, vaddr: int, size: int) -> None:
        """Compare these bytes too, as they are now (memory outside the scratch)."""
        self._measurement.note(self.read(vaddr, size))

    def compare(self, value: object) -> None:
        """Compare this value between the two runs."""
        self._measurement.note(repr(value).encode())

    # -- the measured call ----------------------------------------------------------------------------
    def measure(self, *args: Argument, expect: Expect = AT_LEAST_0) -> Steps:
        """Make the measured call; its value is the result. A result that is not expected fails the case."""
        self._measurement.measure_next()
        call = self._measurement.call
        result = yield Syscall(call, args)
        if not expect.accepts(result):
            raise CaseFailedError(f"{call} returned {result_text(result)}, expected {expect.text}")
        return result

    def measure_next(self, *, status: int | None = None) -> None:
        """The next call of the case's number is the measured one, whoever makes it: for calls that the kernel
        restarts, or that another program makes. `status`: the wait status the first process ends with in it."""
        self._measurement.measure_next(ends_with=status)

    def measure_last(self, *args: Argument, status: int = 0) -> Steps:
        """Make the measured call where it never returns (exit, a successful execve); in the first process,
        `status` is the wait status it ends with. A child's end is for its parent to `wait` for."""
        self._measurement.measure_next(ends_with=status if self.number == 0 else None)
        call = self._measurement.call
        result = yield Syscall(call, args)
        raise CaseFailedError(f"{call} returned {result_text(result)}, expected that it {NEVER.text}")

    def needs(self, condition: object, why: str) -> None:
        """Leave the case out, not exercised, unless `condition` holds: this kernel cannot do it, and `why` says why."""
        if not condition:
            self._measurement.lacking = True
            raise CaseFailedError(why)

    def check(self, condition: object, text: str) -> None:
        """Fail the case unless `condition` holds; `text` says what should have been."""
        if not condition:
            raise CaseFailedError(f"after {self._measurement.call}: {text}")
