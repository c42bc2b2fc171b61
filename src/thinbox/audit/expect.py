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


ZERO = exactly(0)
AT_LEAST_0 = Expect(lambda result: result >= 0, "no error")
POSITIVE = Expect(lambda result: result > 0, "a positive number")
ADDRESS = Expect(lambda result: result > 0 and result % 4096 == 0, "the address of a page")
NEVER = Expect(lambda _result: False, "never returns")
