"""A guest frozen at one moment, and put back there as often as wanted.

Why it exists: a boot takes seconds and a restored session half a second; a trial takes milliseconds. The processes
that make the calls are prepared once and frozen; after a trial only the pages it wrote are dropped.

Rules of this file: what comes back is the same machine state, to the byte. What Python keeps beside the machine
(enforcer, generators) is the runner's business.
"""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinbox.errors import MachineError
from thinbox.guest.agent_channel import GuestScript, call, must
from thinbox.harness.limits import Budget, Limits
from thinbox.machine.machine import Machine
from thinbox.session.opened import RestoredGuest, restore_guest

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest

_MOMENT = struct.pack("<qq", 0, 1000)
"""A microsecond: long enough for the CPU to go to another process."""
_PREPARING = Limits(virtual_ns=30 * 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The frozen machine: a file of its RAM (shared by processes), and the rest of its state. `agent_task` is the
    agent's task_struct, which is not the process the machine stands in."""

    ram: int
    cpu: bytes
    devices: dict[str, Any]
    agent: dict[str, Any]
    agent_task: int


class ParentWait:
    """Lets a child stand ready only when its parent waits for it: what a frozen parent's next result is, is then known.

    Which of the two runs first is the scheduler's: on most kernels the parent, whose clone has returned; on Linux 6.16
    the child.
    """

    def __init__(self) -> None:
        self._is_in_wait = False

    def wait(self, *args: int) -> GuestScript:
        """Make the parent's wait4, its last call."""
        self._is_in_wait = True
        yield from must("wait4", *args)

    def come_to(self) -> GuestScript:
        """Let the child give way until the parent is in its wait."""
        while not self._is_in_wait:
            yield from call("nanosleep", _MOMENT, 0)


def run_to_park(opened: RestoredGuest, script: GuestScript) -> None:
    """Let the agent do `script` until it, or a process it started, parks.

    Raises:
        MachineError: the guest does not come to that.
    """
    budget = Budget(opened.machine, _PREPARING)
    opened.agent.resume(script)
    opened.machine.run(lambda: opened.agent.parked or bool(budget.exceeded()))
    if not opened.agent.parked:
        raise MachineError(f"preparing the guest did not end within {budget.exceeded()}")


def freeze(opened: RestoredGuest, agent_task: int) -> Checkpoint:
    """Freeze the guest as it stands, between two runs of the CPU; `opened` is not to be used any more."""
    machine = opened.machine
    return Checkpoint(
        machine.memory.freeze(), machine.cpu.save(), machine.save_devices(), opened.agent.save(), agent_task
    )


def attach(guest: "ReadyGuest", checkpoint: Checkpoint) -> RestoredGuest:
    """Return a new machine that stands at `checkpoint`, which was made of `guest`."""
    return restore_guest(guest, checkpoint)


def reset(opened: RestoredGuest, checkpoint: Checkpoint) -> None:
    """Put the guest back to the checkpoint it is attached to."""
    _put_back(opened.machine, checkpoint)
    opened.agent.restore(checkpoint.agent, opened.view)


def _put_back(machine: Machine, checkpoint: Checkpoint) -> None:
    machine.memory.clear()
    machine.console.clear()
    machine.cpu.restore(checkpoint.cpu)
    machine.restore_devices(checkpoint.devices)
