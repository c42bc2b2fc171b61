"""From the agent's process to the tenant's program: watches the `execve` that makes the one the other.

Why it exists: a program that cannot be executed leaves the process the agent's, which must go on being answered, or
it asks for ever. One that can be is a stranger's from its first instruction, and gets no answer, whatever it asks.

Rules of this file: only the kernel says which it was, by the result of the call, before user code runs again.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from thinbox.enforcement.open_call import OpenCall
    from thinbox.enforcement.tasks import TaskState
    from thinbox.guest.agent_channel import AgentChannel


class ProgramStarts:
    """Told by the enforcer what becomes of calls; `expect` names a process whose next one is the agent's `execve`."""

    def __init__(self, agent: "AgentChannel") -> None:
        self._agent, self._expected = agent, set[int]()

    def expect(self, task: int) -> None:
        """The next call of `task` is to make it the tenant's program."""
        self._expected.add(task)

    def failed(self, task: int) -> None:
        """It did not, and `task` knows."""
        self._expected.discard(task)

    def born(self, task: int) -> None:
        """A tenant's new task has this address; if a process died there in its `execve`, it is not that one."""
        if task in self._expected:
            self._expected.discard(task)
            self._agent.forget(task)

    def opened(self, _state: "TaskState", _call: "OpenCall") -> None:
        """Nothing is known yet."""

    def paused(self, _state: "TaskState", _call: "OpenCall") -> None:
        """Nothing is known yet."""

    def resumed(self, _state: "TaskState", _call: "OpenCall") -> None:
        """Nothing is known yet."""

    def granted(self, _state: "TaskState", _call: "OpenCall", _rows: "np.ndarray") -> None:
        """Nothing is known yet."""

    def closed(self, state: "TaskState", call: "OpenCall") -> None:
        """The call returned: 0 where the program runs. Whatever was killed in it is never answered either."""
        if state.task in self._expected and (call.record.ret == 0 or state.killed):
            self._expected.discard(state.task)
            self._agent.forget(state.task)


__all__ = ["ProgramStarts"]
