"""Who is told what becomes of the tenants' calls: coverage, events, whatever a caller adds.

Why it exists: what a run is watched for changes with the command; the enforcer tells, and does not know whom.
"""

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.tasks import TaskState


class CallWatch(Protocol):
    """Is told what becomes of the tenant's calls, by the enforcer."""

    def opened(self, state: "TaskState", call: "OpenCall") -> None:
        """A call begins; if it is isolated, on its table already."""
        ...

    def paused(self, state: "TaskState", call: "OpenCall") -> None:
        """The call's task is switched away from."""
        ...

    def resumed(self, state: "TaskState", call: "OpenCall") -> None:
        """The call's task runs again; it may be killed before its next instruction."""
        ...

    def granted(self, state: "TaskState", call: "OpenCall", rows: np.ndarray) -> None:
        """The call was granted `rows`, in this order: told later, but before it pauses or closes. Of the end of a task
        (`is_exit`) nothing else is told."""
        ...

    def closed(self, state: "TaskState", call: "OpenCall") -> None:
        """The call returned or was killed; unless it was rolled back, its grants are not forgotten yet."""
        ...


class Watches:
    """Tells every watch that was added, in the order they came."""

    def __init__(self) -> None:
        self._watches: list[CallWatch] = []

    def add(self, watch: CallWatch) -> None:
        """Tell `watch` too, from now on."""
        self._watches.append(watch)

    def opened(self, state: "TaskState", call: "OpenCall") -> None:
        """As `CallWatch.opened`."""
        for watch in self._watches:
            watch.opened(state, call)

    def paused(self, state: "TaskState", call: "OpenCall") -> None:
        """As `CallWatch.paused`."""
        for watch in self._watches:
            watch.paused(state, call)

    def resumed(self, state: "TaskState", call: "OpenCall") -> None:
        """As `CallWatch.resumed`."""
        for watch in self._watches:
            watch.resumed(state, call)

    def granted(self, state: "TaskState", call: "OpenCall", rows: np.ndarray) -> None:
        """As `CallWatch.granted`."""
        for watch in self._watches:
            watch.granted(state, call, rows)

    def closed(self, state: "TaskState", call: "OpenCall") -> None:
        """As `CallWatch.closed`."""
        for watch in self._watches:
            watch.closed(state, call)
