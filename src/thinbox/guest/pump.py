"""The pump: moves bytes between the tenant's ends of its pipes or terminal and the user.

Why it exists: one loop of the agent, asleep in `poll`, serves output, input, signals, window sizes and the end
of the first process; the user's side of it is `TenantIo`.

Rules of this file:
- What is in pipes and terminal when the first process has ended is still delivered.
- The agent never blocks but in `poll`: what it writes to does not block, and it reads what is ready. Of several tenants
  it touches no pipe itself (`guest.relay`).
"""

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from thinbox.guest.agent_channel import AgentChannel, GuestScript, call, must
from thinbox.guest.setup import DOORBELL_FD
from thinbox.guest.terminal import END_OF_INPUT, resize

POLLIN, POLLOUT = 1, 4
READ_BYTES = 512 << 10
WRITE_BYTES = 64 << 10
BUFFER_AT = 64 << 10
"""Offset in the scratch of the agent's transfer buffer; what is below it holds call arguments."""
_TABLES_AT = 128 << 10
_LAST_WORDS_MS = 20
"""Virtual time without output after which nothing more is on its way."""


@dataclass(slots=True)
class TenantIo:
    """The run's ends outside the guest. `take_input` returns bytes, b"" for none yet, None for the end.

    `adopt` makes the process that runs the tenant's, just before its `execve`; `disown` takes that back if it failed.

    `window` is the (rows, columns) the terminal is to get next; `input_waits` says that the tenant has not yet
    taken what it was given, so that more is of no use.
    """

    output: Callable[[int, bytes], None]
    take_input: Callable[[], bytes | None]
    adopt: Callable[[], None]
    disown: Callable[[], None]
    has_tasks: Callable[[], bool]
    signals: list[int] = field(default_factory=list)
    leader: int | None = None
    """The process group that signals go to, where it is not the first process's."""
    window: tuple[int, int] | None = None
    wait_status: int | None = None
    not_started: str = ""
    """Why the program could not be executed."""
    input_ended: bool = False
    input_waits: bool = False


@dataclass(frozen=True, slots=True)
class TenantEnds:
    """Descriptors of the agent: `outputs` maps each one read to 1 or 2, `stdin` is written to.

    `handle` is the pidfd of the first process, `child` its pid. `terminal` is the master of its terminal, -1 if
    it has none.
    """

    child: int
    handle: int
    outputs: dict[int, int]
    stdin: int
    terminal: int = -1


class Pump:
    """Serves one tenant until it is done."""

    def __init__(self, agent: AgentChannel, io: TenantIo, ends: TenantEnds) -> None:
        self._agent, self._io, self._ends = agent, io, ends
        self._outputs = dict(ends.outputs)
        self._waiting_input = b""
        self._last_input = b"\n"
        self._stdin_open = True
        self._done = False

    def run(self) -> GuestScript:
        """Poll, move, repeat; ends when the first process has ended and the pipes are empty."""
        yield from run_pumps(self._agent, [self])

    @property
    def is_done(self) -> bool:
        """Whether the first process has ended."""
        return self._done

    def outputs(self) -> list[tuple[int, int]]:
        """Return the descriptors that may have output, with what `poll` is to watch for."""
        return [(descriptor, POLLIN) for descriptor in self._outputs]

    def others(self) -> list[tuple[int, int]]:
        """Return what else to poll while the first process lives."""
        if self._done:
            return []
        writable = [(self._ends.stdin, POLLOUT)] if self._stdin_open and self._waiting_input else []
        return [(self._ends.handle, POLLIN), *writable]

    def serve(self, ready: set[int]) -> GuestScript:
        """Carry what is ready, and reap the first process if it has ended."""
        yield from self.carry_all(ready)
        if not self._done and self._ends.handle in ready:
            yield from self._reap()

    def carry_all(self, ready: set[int]) -> GuestScript:
        """Carry the output that is ready; return whether there was any (as a generator's value)."""
        found = [descriptor for descriptor in self._outputs if descriptor in ready]
        for descriptor in found:
            yield from self._carry(descriptor)
        return bool(found)

    def _carry(self, descriptor: int) -> GuestScript:
        place = self._agent.area() + BUFFER_AT + _TABLES_AT
        count = yield from must("read", descriptor, place, READ_BYTES)
        if count == 0:
            yield from must("close", descriptor)
            del self._outputs[descriptor]
            return
        target = self._outputs[descriptor]
        self._io.output(target, self._agent.read(place, count))

    def feed(self) -> GuestScript:
        """Give the tenant what stdin has; at the end close its pipe, or type Ctrl-D on its terminal."""
        while self._stdin_open and not self._done:
            self._take()
            self._io.input_waits = bool(self._waiting_input)
            if not self._waiting_input:
                if self._io.input_ended:
                    self._stdin_open = False
                    yield from must("close", self._ends.stdin)
                return
            place = self._agent.area() + BUFFER_AT + _TABLES_AT
            chunk = self._waiting_input[:WRITE_BYTES]
            self._agent.write(place, chunk)
            count = yield from call("write", self._ends.stdin, place, len(chunk))
            if count == -errno.EAGAIN:
                return
            if count < 0:
                # The tenant closed its stdin (EPIPE): what is left has no reader.
                self._waiting_input, self._io.input_ended = b"", True
                continue
            self._waiting_input = self._waiting_input[count:]

    def _take(self) -> None:
        if self._waiting_input or self._io.input_ended:
            return
        data = self._io.take_input()
        if data is None:
            self._io.input_ended = True
            if self._ends.terminal >= 0:
                # In the middle of a line the first Ctrl-D only hands that line over.
                self._waiting_input = END_OF_INPUT * (1 if self._last_input == b"\n" else 2)
        elif data:
            self._waiting_input, self._last_input = data, data[-1:]

    def answer_doorbell(self) -> GuestScript:
        """Do what the user asked for by the doorbell: another size of the terminal, signals."""
        if self._io.window and self._ends.terminal >= 0:
            (rows, columns), self._io.window = self._io.window, None
            yield from resize(self._ends.terminal, rows, columns)
        while self._io.signals:
            yield from call("kill", -(self._io.leader or self._ends.child), self._io.signals.pop(0))

    def _reap(self) -> GuestScript:
        place = self._agent.area() + BUFFER_AT
        yield from must("wait4", self._ends.child, place, 0, 0)
        self._io.wait_status = int.from_bytes(self._agent.read(place, 4), "little")
        self._done = True


def run_pumps(agent: AgentChannel, pumps: list[Pump]) -> GuestScript:
    """Serve every pump until all first processes have ended and their pipes are empty."""
    while not all(pump.is_done for pump in pumps):
        for pump in pumps:
            yield from pump.feed()
        outputs = [entry for pump in pumps for entry in pump.outputs()]
        others = [entry for pump in pumps for entry in pump.others()]
        ready = yield from _poll(agent, [*outputs, (DOORBELL_FD, POLLIN), *others], -1)
        if DOORBELL_FD in ready:
            yield from call("read", DOORBELL_FD, agent.area() + BUFFER_AT, 256)
            for pump in pumps:
                yield from pump.answer_doorbell()
        for pump in pumps:
            yield from pump.serve(ready)
    while left := [entry for pump in pumps for entry in pump.outputs()]:
        # A relay may still carry what the tenant wrote last.
        ready = yield from _poll(agent, left, _LAST_WORDS_MS)
        carried = False
        for pump in pumps:
            carried |= yield from pump.carry_all(ready)
        if not carried:
            return


def _poll(agent: AgentChannel, wanted: list[tuple[int, int]], timeout: int) -> GuestScript:
    """Return the set of ready descriptors (as a generator's value)."""
    table = b"".join(struct.pack("<ihh", descriptor, events, 0) for descriptor, events in wanted)
    place = agent.area() + _TABLES_AT
    agent.write(place, table)
    yield from must("poll", place, len(wanted), timeout)
    raw = agent.read(place, len(table))
    return {descriptor for descriptor, _events, back in struct.iter_unpack("<ihh", raw) if back}


__all__ = ["Pump", "TenantEnds", "TenantIo", "run_pumps"]
