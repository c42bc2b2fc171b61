"""Start a program in the guest, carry its bytes, wait for its end: the agent's work for one run.

Why it exists: everything the user sees of a tenant passes here: arguments, environment, stdin, stdout,
stderr, signals, exit status. Binary-clean: pipes, never a terminal in between.

Rules of this file:
- stdout and stderr are read until both have ended or the tenant's first process has, and what is in the
  pipes then is still delivered.
- Nothing of a run is left behind: at its end every process but the agent is killed and reaped.
"""

import errno
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from thinbox.errors import InputError
from thinbox.guest.conversation import CHILD_AREA, Conversation, Park, Work, call, must
from thinbox.guest.setup import DOORBELL_FD, SIGCHLD

O_RDONLY, O_CLOEXEC, O_NONBLOCK = 0, 0o2000000, 0o4000
POLLIN, POLLOUT, POLLERR, POLLHUP = 1, 4, 8, 16
SIGKILL = 9
WNOHANG = 1
READ_BYTES = 512 << 10
WRITE_BYTES = 64 << 10
_BUFFER_AT = 64 << 10
"""Offset in the scratch of the agent's transfer buffer; what is below it holds call arguments."""
_TABLES_AT = 128 << 10
_LAST_SWITCH_TRIES = 1000
_S_IFMT, _S_IFDIR = 0o170000, 0o040000
_STAT_MODE_AT = 24


@dataclass(frozen=True, slots=True)
class TenantOptions:
    """What to start and how: `root` is the folder in the guest that becomes the tenant's `/`."""

    command: tuple[str, ...]
    environment: tuple[str, ...] = (
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "TERM=linux",
        "LANG=C.UTF-8",
    )
    root: str = "/"
    workdir: str = "/"


@dataclass(slots=True)
class TenantIo:
    """The run's ends outside the guest. `take_input` returns bytes, b"" for none yet, None for the end."""

    output: Callable[[int, bytes], None]
    take_input: Callable[[], bytes | None]
    adopt: Callable[[], None]
    has_tasks: Callable[[], bool]
    signals: list[int] = field(default_factory=list)
    wait_status: int | None = None
    input_ended: bool = False


def run_tenant(talk: Conversation, options: TenantOptions, io: TenantIo) -> Work:
    """Run the tenant to its end; the status goes to `io.wait_status`; then park."""
    program = yield from _find_program(talk, options)
    ends = []
    for _ in range(3):
        yield from must("pipe2", talk.area() + _BUFFER_AT, O_CLOEXEC)
        ends.append(struct.unpack("<2i", talk.read(talk.area() + _BUFFER_AT, 8)))
    (stdin_r, stdin_w), (stdout_r, stdout_w), (stderr_r, stderr_w) = ends
    talk.adopt_next_child(_become_tenant(talk, options, program, (stdin_r, stdout_w, stderr_w), io))
    child = yield from must("clone", SIGCHLD, 0, 0, 0, 0)
    handle = yield from must("pidfd_open", child, 0)
    for descriptor in (stdin_r, stdout_w, stderr_w):
        yield from must("close", descriptor)
    yield from must("fcntl", stdin_w, 4, O_NONBLOCK)
    pump = _Pump(talk, io, child, handle, {stdout_r: 1, stderr_r: 2}, stdin_w)
    yield from pump.run()
    yield from _sweep(talk)
    # A reaped task still has its last context switch before it (a preemptible kernel lets us see that).
    for _ in range(_LAST_SWITCH_TRIES):
        if not io.has_tasks():
            break
        yield from call("nanosleep", struct.pack("<qq", 0, 1_000_000), 0)
    yield Park()


def _find_program(talk: Conversation, options: TenantOptions) -> Work:
    """Find what execvp would find, inside the tenant's root; return its path (as a generator's value)."""
    name = options.command[0]
    path = next((e[5:] for e in options.environment if e.startswith("PATH=")), "/bin:/usr/bin")
    names = [name] if "/" in name else [f"{folder}/{name}" for folder in path.split(":")]
    prefix = "" if options.root == "/" else options.root
    reason = "is not in the root file system"
    for candidate in names:
        place = candidate if candidate.startswith("/") else f"{options.workdir.rstrip('/')}/{candidate}"
        result = yield from call("stat", prefix + place, bytes(144))
        if result == -errno.ENOENT and prefix:
            # A link that is absolute inside the root points elsewhere from outside: leave it to execve.
            result = yield from call("lstat", prefix + place, bytes(144))
            if result == 0:
                return candidate
        if result < 0:
            continue
        at = talk.area() + ((len((prefix + place).encode()) + 1 + 15) & ~15)
        (mode,) = struct.unpack("<I", talk.read(at + _STAT_MODE_AT, 4))
        if mode & _S_IFMT == _S_IFDIR:
            reason = "is a directory"
        elif not mode & 0o111:
            reason = "is not executable"
        else:
            return candidate
    raise InputError(f"cannot run {name}: it {reason}; see `thinbox run --help` for --rootfs")


def _become_tenant(talk: Conversation, options: TenantOptions, program: str, ends: Sequence[int], io: TenantIo) -> Work:
    yield from must("setsid")
    for number, descriptor in enumerate(ends):
        yield from must("dup3", descriptor, number + 20, 0)
    for number in range(3):
        yield from must("dup2", number + 20, number)
        yield from must("close", number + 20)
    if options.root != "/":
        yield from must("chroot", options.root)
    result = yield from call("chdir", options.workdir)
    if result < 0:
        yield from must("chdir", "/")
    area = talk.area(child=True) + 4096
    at, arrays = area + 32768, []
    for words in (options.command, options.environment):
        places = []
        for word in words:
            data = word.encode("utf-8", "surrogateescape") + b"\0"
            talk.write(at, data)
            places.append(at)
            at += len(data)
        arrays.append(places)
    argv, envp = area + 1024, area + 1024 + 8 * (len(arrays[0]) + 1)
    talk.write(argv, struct.pack(f"<{len(arrays[0]) + 1}Q", *arrays[0], 0))
    talk.write(envp, struct.pack(f"<{len(arrays[1]) + 1}Q", *arrays[1], 0))
    talk.write(area, program.encode("utf-8", "surrogateescape") + b"\0")
    io.adopt()
    result = yield from call("execve", area, argv, envp)
    raise InputError(f"cannot run {program}: {_reason(-result)}")


def _reason(number: int) -> str:
    import os

    if number == errno.ENOEXEC:
        return "it is neither an x86-64 program nor a script with an interpreter line"
    if number == errno.ENOENT:
        return "it, or the interpreter or loader it names, is not in the root file system"
    return os.strerror(number)


class _Pump:
    """Moves bytes between the tenant's pipes and the user until the tenant is done."""

    def __init__(
        self, talk: Conversation, io: TenantIo, child: int, handle: int, outputs: dict[int, int], stdin: int
    ) -> None:
        self._talk, self._io, self._child, self._handle = talk, io, child, handle
        self._outputs, self._stdin = outputs, stdin
        self._waiting_input = b""
        self._stdin_open = True
        self._done = False

    def run(self) -> Work:
        """Poll, move, repeat; ends when the first process has ended and the pipes are empty."""
        while not self._done:
            yield from self._feed()
            ready = yield from self._poll(-1)
            if DOORBELL_FD in ready:
                yield from self._answer_doorbell()
            for descriptor in [d for d in self._outputs if d in ready]:
                yield from self._carry(descriptor)
            if self._handle in ready:
                yield from self._reap()
        while self._outputs:
            ready = yield from self._poll(0)
            found = [d for d in self._outputs if d in ready]
            if not found:
                return
            for descriptor in found:
                yield from self._carry(descriptor)

    def _poll(self, timeout: int) -> Work:
        """Return the set of ready descriptors (as a generator's value)."""
        wanted = [(descriptor, POLLIN) for descriptor in self._outputs]
        if timeout:
            wanted += [(DOORBELL_FD, POLLIN), (self._handle, POLLIN)]
            if self._stdin_open and self._waiting_input:
                wanted.append((self._stdin, POLLOUT))
        table = b"".join(struct.pack("<ihh", descriptor, events, 0) for descriptor, events in wanted)
        place = self._talk.area() + _TABLES_AT
        self._talk.write(place, table)
        yield from must("poll", place, len(wanted), timeout)
        raw = self._talk.read(place, len(table))
        return {descriptor for descriptor, _events, back in struct.iter_unpack("<ihh", raw) if back}

    def _carry(self, descriptor: int) -> Work:
        place = self._talk.area() + _BUFFER_AT + _TABLES_AT
        count = yield from must("read", descriptor, place, READ_BYTES)
        if count == 0:
            yield from must("close", descriptor)
            del self._outputs[descriptor]
            return
        target = self._outputs[descriptor]
        self._io.output(target, self._talk.read(place, count))

    def _feed(self) -> Work:
        """Give the tenant what stdin has; close its pipe at the end."""
        while self._stdin_open:
            if not self._waiting_input and not self._io.input_ended:
                data = self._io.take_input()
                if data is None:
                    self._io.input_ended = True
                else:
                    self._waiting_input = data
            if not self._waiting_input:
                if self._io.input_ended:
                    self._stdin_open = False
                    yield from must("close", self._stdin)
                return
            place = self._talk.area() + _BUFFER_AT + _TABLES_AT
            chunk = self._waiting_input[:WRITE_BYTES]
            self._talk.write(place, chunk)
            count = yield from call("write", self._stdin, place, len(chunk))
            if count == -errno.EAGAIN:
                return
            if count < 0:
                # The tenant closed its stdin (EPIPE): what is left has no reader.
                self._waiting_input, self._io.input_ended = b"", True
                continue
            self._waiting_input = self._waiting_input[count:]

    def _answer_doorbell(self) -> Work:
        place = self._talk.area() + _BUFFER_AT
        yield from call("read", DOORBELL_FD, place, 256)
        while self._io.signals:
            yield from call("kill", -self._child, self._io.signals.pop(0))

    def _reap(self) -> Work:
        place = self._talk.area() + _BUFFER_AT
        yield from must("wait4", self._child, place, 0, 0)
        self._io.wait_status = int.from_bytes(self._talk.read(place, 4), "little")
        self._done = True


def _sweep(talk: Conversation) -> Work:
    """Kill what the tenant left running, and reap it, so that every task's end is seen."""
    yield from call("kill", -1, SIGKILL)
    while True:
        result = yield from call("wait4", -1, talk.area() + _BUFFER_AT, 0x40000000, 0)
        if result < 0:
            return


__all__ = ["CHILD_AREA", "WNOHANG", "TenantIo", "TenantOptions", "run_tenant"]
