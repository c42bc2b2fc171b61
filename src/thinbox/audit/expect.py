"""What a measured call must return, and the failure of a case whose call did not.

Why it exists: the words of a case (`measure(…, expect=ZERO)`) are needed by the process that makes the call and by
the register of cases, which know nothing of each other.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass

from thinbox.harness.process import StepFailedError


class CaseFailedError(StepFailedError):
    """A call did not do what its case says it must."""


@dataclass(frozen=True, slots=True)
class Expect:
    """What a call must return: `accepts(result)` (negative errno included), the same in words, and whether that is
    a failure."""

    accepts: Callable[[int], bool]
    text: str
    is_error: bool = False


def exactly(value: int) -> Expect:
    """Expect this very number."""
    return Expect(lambda result: result == value, str(value))


def fails(*numbers: int) -> Expect:
    """Expect one of these errno values."""
    names = " or ".join(errno.errorcode[number] for number in numbers)
    return Expect(lambda result: -result in numbers, names, is_error=True)


def either(*expects: Expect) -> Expect:
    """Expect what any of these does: for a call that one kernel refuses and another makes. What this kernel does is
    known from the run that is not isolated, and the isolated one must do the same. Whether it is a failure, the first
    says."""
    text = " or ".join(expect.text for expect in expects)
    return Expect(lambda result: any(expect.accepts(result) for expect in expects), text, expects[0].is_error)


ZERO = exactly(0)
AT_LEAST_0 = Expect(lambda result: result >= 0, "no error")
POSITIVE = Expect(lambda result: result > 0, "a positive number")
ADDRESS = Expect(lambda result: result > 0 and result % 4096 == 0, "the address of a page")
NEVER = Expect(lambda _result: False, "never returns")
