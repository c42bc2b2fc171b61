"""What a guest may use up before it is taken not to end.

Why it exists: virtual time alone is no limit. A guest that spins on a lock a killed or crashed task left, or one that
makes calls or takes faults all the while, needs the host for minutes or hours to get through a minute of it.

Rules of this file: counted is what the guest did, never the host's time, so that it ends at the same place on every
host.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.machine.machine import Machine

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a trial may use up. All of it is the guest's own: virtual time, slept included; bytes of code executed;
    calls that enter the kernel, by every process; exceptions and interrupts delivered.

    The defaults are fifty times and more what any case of the audit uses on Debian's 6.1: 20 MB of code, 563 calls,
    518 exceptions.
    """

    virtual_ns: int
    executed_bytes: int = 1_000_000_000
    syscalls: int = 100_000
    exceptions: int = 100_000


class Budget:
    """What is left of a trial's limits."""

    def __init__(self, machine: "Machine", limits: Limits) -> None:
        self._machine, self._limits = machine, limits
        self._began = self._used()

    def _used(self) -> tuple[int, int, int, int]:
        slot = self._machine.slot
        executed = slot[slots.CLOCK] - slot[slots.SLEPT]
        return slot[slots.CLOCK], executed, slot[slots.COUNT_SYSCALLS], slot[slots.COUNT_DELIVERED]

    def exceeded(self) -> str:
        """Return the limit that is exceeded, in words; empty while none is."""
        limits = self._limits
        virtual_ns, executed, syscalls, exceptions = (
            now - began for now, began in zip(self._used(), self._began, strict=True)
        )
        if virtual_ns > limits.virtual_ns:
            return f"{limits.virtual_ns // _NS} s of virtual time"
        if executed > limits.executed_bytes:
            return f"{limits.executed_bytes} bytes of executed code"
        if syscalls > limits.syscalls:
            return f"{limits.syscalls} system calls"
        return f"{limits.exceptions} exceptions" if exceptions > limits.exceptions else ""
