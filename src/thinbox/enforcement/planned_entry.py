"""What a plan decided of a call that has entered the kernel.

Why it exists: the plan decides in `session`, the enforcer acts; this is what goes from one to the other.
"""

from dataclasses import dataclass

from thinbox.isolation.verdict import Violation


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """A plan's decision on a call that has entered the kernel: isolated or not; with `death`, killed there; with a
    `result`, answered there."""

    isolated: bool
    disposition: str
    line: int
    death: Violation | None = None
    result: int | None = None
    """What the call is answered with, instead of being dispatched (signed)."""
