"""A call that has not returned: where it stands, what it was granted, and how it goes on.

Why it exists: which table the CPU must be on follows from the state of the running task's call, and from nothing else.
The states and what leads from one to another are a table, from which docs/calls.md draws its picture.

Rules of this file:
- A state changes by `OpenCall.on` only; an event that the table does not know is a `MachineError`.
- A call is asleep on top of what it was doing; waking up puts it back there.
"""

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from thinbox.errors import MachineError

if TYPE_CHECKING:
    from thinbox.isolation.policies.guard import ProtectedObject
    from thinbox.records.run import CallRecord


class CallState(enum.Enum):
    """What a call is doing. Only a `RUNNING` isolated call is on its SCI table."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    IN_DEFERRED_WORK = "in deferred work"
    SLEEPING = "sleeping"
    RETURNED = "returned"
    UNDONE = "undone"
    DEAD = "dead"


class CallEvent(enum.Enum):
    """What happens to a call."""

    INTERRUPT = "interrupt or exception"
    IRETQ = "iretq"
    DEFERRED_WORK = "deferred work begins"
    DEFERRED_WORK_DONE = "deferred work ends"
    SWITCH_OUT = "the task leaves the CPU"
    SWITCH_IN = "the task runs again"
    RETURN = "the call returns"
    UNDO = "violation, undone"
    KILL = "violation, or the task ends"


_R, _I, _W, _S = CallState.RUNNING, CallState.INTERRUPTED, CallState.IN_DEFERRED_WORK, CallState.SLEEPING
_E = CallEvent
BENEATH = None
"""In `TRANSITIONS`: the state the call was in when it fell asleep."""
TRANSITIONS: dict[tuple[CallState, CallEvent], CallState | None] = {
    (_R, _E.INTERRUPT): _I,
    (_I, _E.IRETQ): _R,
    (_R, _E.DEFERRED_WORK): _W,
    (_W, _E.DEFERRED_WORK_DONE): _R,
    (_R, _E.SWITCH_OUT): _S,
    (_I, _E.SWITCH_OUT): _S,
    (_W, _E.SWITCH_OUT): _S,
    (_S, _E.SWITCH_IN): BENEATH,
    # An exception's handler may return from the call itself (a signal's delivery, exit work).
    (_R, _E.RETURN): CallState.RETURNED,
    (_I, _E.RETURN): CallState.RETURNED,
    (_W, _E.RETURN): CallState.RETURNED,
    (_R, _E.UNDO): CallState.UNDONE,
    (_I, _E.UNDO): CallState.UNDONE,
    (_W, _E.UNDO): CallState.UNDONE,
    (_R, _E.KILL): CallState.DEAD,
    (_I, _E.KILL): CallState.DEAD,
    (_W, _E.KILL): CallState.DEAD,
    (_S, _E.KILL): CallState.DEAD,
}
"""From state and event to state. What stands in no row does not happen."""


@dataclass(slots=True)
class OpenCall:
    """A call that has not returned. `rows` are its grants (arrays with the columns of `isolation.fault`)."""

    record: "CallRecord"
    regs_paddr: int
    entered_ns: int
    entered_host_s: float
    isolated: bool
    user_ip: int = 0
    rows: list[np.ndarray] = field(default_factory=list)
    granted_pages: int = 0
    resume_rsp: int = 0
    resume_rip: int = 0
    resume_block: tuple[int, int] = (0, 0)
    slept: bool = False
    deferred_rsp: int = 0
    """While the call is in deferred work (`enforcement.deferred_work`), RSP behind it, signed; else 0."""
    protected: "tuple[ProtectedObject, ...]" = ()
    """What was protected when the call began (policy `guard`)."""
    notes: dict[str, Any] = field(default_factory=dict)
    is_exit: bool = False
    """Not a system call: the end of a task, judged as one (`enforcement.enforcer`)."""
    is_traced: bool = False
    """A tracer or a filter may be putting another call in its place."""
    is_dispatched: bool = False
    """The function of its number was about to be called (seen only where `Dispatch.switches` are)."""
    is_answered: bool = False
    """A plan answered it at its entry: nothing is to be dispatched for it."""
    state: CallState = CallState.RUNNING
    _beneath: CallState = CallState.RUNNING

    def on(self, event: CallEvent) -> CallState:
        """Go on to the next state and return it.

        Raises:
            MachineError: nothing of the kind happens in this state.
        """
        try:
            following = TRANSITIONS[self.state, event]
        except KeyError:
            message = f"{self.record.name}: {event.value!r} happened to a call that is {self.state.value}"
            raise MachineError(message) from None
        if event is CallEvent.SWITCH_OUT:
            self._beneath = self.state
        self.state = self._beneath if following is BENEATH else following
        return self.state

    def note_interruption(self, resume_rsp: int) -> None:
        """Follow the compiled hooks, which take interrupts without asking: `resume_rsp` is where the `iretq` that goes
        back into the call will find its frame, 0 if none is awaited."""
        if resume_rsp and self.state is CallState.RUNNING:
            self.on(CallEvent.INTERRUPT)
        elif not resume_rsp and self.state is CallState.INTERRUPTED:
            self.on(CallEvent.IRETQ)


def render_transitions() -> str:
    """Return the table as a Mermaid state diagram (docs/calls.md)."""
    names = {state: state.name.lower() for state in CallState}
    lines = ["stateDiagram-v2", f"    [*] --> {names[_R]}: do_syscall_64"]
    lines += [f"    {names[state]}: {state.value}" for state in CallState if state.value != names[state]]
    for (state, event), following in TRANSITIONS.items():
        targets = (_R, _I, _W) if following is BENEATH else (following,)
        for target in targets:
            said = event.value if following is not BENEATH else f"{event.value} (as it was)"
            lines.append(f"    {names[state]} --> {names[target]}: {said}")
    lines += [f"    {names[end]} --> [*]" for end in (CallState.RETURNED, CallState.UNDONE, CallState.DEAD)]
    return "\n".join(lines) + "\n"
