"""Start a program in the guest, carry its bytes, wait for its end: the agent's work for one run.

Why it exists: everything the user sees of a tenant passes here: arguments, environment, stdin, stdout,
stderr, signals, exit status. Binary-clean on pipes; on a terminal, if the user wants one, as terminals are.

Rules of this file:
- Nothing of a run is left behind: at its end every process but the agent is killed and reaped.
"""

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from thinbox.errors import InputError
from thinbox.guest.agent_channel import CHILD_AREA, AgentChannel, GuestScript, Park, call, must
from thinbox.guest.cgroups import clone_in_cgroup, make_cgroup, mount_cgroups
from thinbox.guest.identity import Identity, find_identity
from thinbox.guest.in_root import O_PATH, open_in_root
from thinbox.guest.pump import BUFFER_AT, Pump, TenantEnds, TenantIo
from thinbox.guest.setup import SIGCHLD
from thinbox.guest.terminal import Pty, Terminal, open_pty, take_terminal

O_CLOEXEC, O_NONBLOCK = 0o2000000, 0o4000
SIGKILL = 9
_LAST_SWITCH_TRIES = 1000
_S_IFMT, _S_IFDIR = 0o170000, 0o040000
_STAT_MODE_AT = 24
_F_DUPFD, _FIRST_ASIDE = 0, 20
"""The first unused descriptor from there on: with several tenants the agent has many, and needs all of them."""
_RLIMIT_NOFILE = 7
_OPEN_FILES = (1024, 524_288)
"""Soft and hard limit of open files that systemd and moby 29 give a container."""


@dataclass(frozen=True, slots=True)
class TenantOptions:
    """What to start and how: `root` is the folder in the guest that becomes the tenant's `/`.

    With a `terminal` the tenant's stdio is a terminal of that size, without one it is pipes. `user` is looked up in
    the root's files; None leaves the tenant root, without asking them. HOME is the user's if it is not set.
    """

    command: tuple[str, ...]
    environment: tuple[str, ...] = (
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "TERM=linux",
        "LANG=C.UTF-8",
    )
    root: str = "/"
    workdir: str = "/"
    terminal: Terminal | None = None
    user: str | None = None
    cgroup: str | None = None
    """The cgroup of its own it gets (a tenant with a view has one)."""


@dataclass(frozen=True, slots=True)
class Stdio:
    """The child's three descriptors, -1 for its terminal; its terminal; and what the agent keeps of them."""

    child: tuple[int, int, int]
    terminal: Pty | None
    outputs: dict[int, int]
    stdin: int


@dataclass(frozen=True, slots=True)
class Start:
    """What the child needs to become the tenant."""

    options: TenantOptions
    program: str
    stdio: Stdio
    identity: Identity | None = None


def run_tenant(agent: AgentChannel, options: TenantOptions, io: TenantIo) -> GuestScript:
    """Run the tenant to its end; the status goes to `io.wait_status`; then park."""
    identity = None
    if options.user is not None:
        identity = yield from find_identity(agent, options.root, options.user)
        if not any(pair.startswith("HOME=") for pair in options.environment):
            options = replace(options, environment=(*options.environment, f"HOME={identity.home}"))
    program = yield from find_program(agent, options)
    stdio = yield from open_stdio(agent, options.terminal)
    agent.adopt_next_child(become_tenant(agent, Start(options, program, stdio, identity), io))
    if options.cgroup is None:
        child = yield from must("clone", SIGCHLD, 0, 0, 0, 0)
    else:
        yield from mount_cgroups()
        yield from make_cgroup(options.cgroup)
        child = yield from clone_in_cgroup(options.cgroup, SIGCHLD)
    handle = yield from must("pidfd_open", child, 0)
    for descriptor in stdio.child:
        if descriptor >= 0:
            yield from must("close", descriptor)
    master = stdio.terminal.reader if stdio.terminal else -1
    yield from Pump(agent, io, TenantEnds(child, handle, stdio.outputs, stdio.stdin, master)).run()
    yield from end_tenants(agent, io.has_tasks)


def end_tenants(agent: AgentChannel, has_tasks: Callable[[], bool]) -> GuestScript:
    """Kill and reap what is left of all tenants, then park."""
    yield from _sweep(agent)
    # A reaped task still has its last context switch before it (a preemptible kernel lets us see that).
    for _ in range(_LAST_SWITCH_TRIES):
        if not has_tasks():
            break
        yield from call("nanosleep", struct.pack("<qq", 0, 1_000_000), 0)
    yield Park()


def open_stdio(agent: AgentChannel, terminal: Terminal | None) -> GuestScript:
    """Make pipes, or a terminal, for the tenant's stdio; return `Stdio` (as a generator's value)."""
    if terminal is None:
        (stdin_r, stdin_w) = yield from open_pipe(agent)
        (stdout_r, stdout_w) = yield from open_pipe(agent)
        (stderr_r, stderr_w) = yield from open_pipe(agent)
        yield from must("fcntl", stdin_w, 4, O_NONBLOCK)
        return Stdio((stdin_r, stdout_w, stderr_w), None, {stdout_r: 1, stderr_r: 2}, stdin_w)
    pty = yield from open_pty(agent, terminal)
    if terminal.stderr:
        return Stdio((-1, -1, -1), pty, {pty.reader: 1}, pty.writer)
    (stderr_r, stderr_w) = yield from open_pipe(agent)
    return Stdio((-1, -1, stderr_w), pty, {pty.reader: 1, stderr_r: 2}, pty.writer)


def open_pipe(agent: AgentChannel) -> GuestScript:
    """Return a pipe's two ends (as a generator's value)."""
    yield from must("pipe2", agent.area() + BUFFER_AT, O_CLOEXEC)
    return struct.unpack("<2i", agent.read(agent.area() + BUFFER_AT, 8))


def find_program(agent: AgentChannel, options: TenantOptions) -> GuestScript:
    """Find what execvp would find, inside the tenant's root; return its path (as a generator's value)."""
    name = options.command[0]
    path = next((e[5:] for e in options.environment if e.startswith("PATH=")), "/bin:/usr/bin")
    names = [name] if "/" in name else [f"{folder}/{name}" for folder in path.split(":")]
    reason = "is not in the root file system"
    for candidate in names:
        place = candidate if candidate.startswith("/") else f"{options.workdir.rstrip('/')}/{candidate}"
        handle = yield from open_in_root(options.root, place, O_PATH)
        if handle < 0:
            continue
        yield from must("fstat", handle, bytes(144))
        (mode,) = struct.unpack("<I", agent.read(agent.area() + _STAT_MODE_AT, 4))
        yield from must("close", handle)
        if mode & _S_IFMT == _S_IFDIR:
            reason = "is a directory"
        elif not mode & 0o111:
            reason = "is not executable"
        else:
            return candidate
    raise InputError(f"cannot run {name}: it {reason}; see `thinbox run --help` for --rootfs")


def become_tenant(agent: AgentChannel, start: Start, io: TenantIo) -> GuestScript:
    """In the new process: take root, folder, stdio and identity, become the program."""
    options, program = start.options, start.program
    yield from must("setsid")
    if options.root != "/":
        yield from must("chroot", options.root)
    result = yield from call("chdir", options.workdir)
    if result < 0:
        yield from must("chdir", "/")
    yield from _take_stdio(start.stdio)
    if start.identity is not None:
        yield from _take_identity(start.identity)
    area = agent.area(child=True) + 4096
    at, arrays = area + 32768, []
    for words in (options.command, options.environment):
        places = []
        for word in words:
            data = word.encode("utf-8", "surrogateescape") + b"\0"
            agent.write(at, data)
            places.append(at)
            at += len(data)
        arrays.append(places)
    argv, envp = area + 1024, area + 1024 + 8 * (len(arrays[0]) + 1)
    agent.write(argv, struct.pack(f"<{len(arrays[0]) + 1}Q", *arrays[0], 0))
    agent.write(envp, struct.pack(f"<{len(arrays[1]) + 1}Q", *arrays[1], 0))
    agent.write(area, program.encode("utf-8", "surrogateescape") + b"\0")
    io.adopt()
    result = yield from call("execve", area, argv, envp)
    raise InputError(f"cannot run {program}: {_reason(-result)}")


def _take_stdio(stdio: Stdio) -> GuestScript:
    """In the child: make the three descriptors 0, 1 and 2. They may be among those already: by way of unused ones."""
    # Behind chroot, so that the name the kernel knows the terminal by is the tenant's own.
    slave = -1 if stdio.terminal is None else (yield from take_terminal(stdio.terminal.path))
    wanted = [slave if descriptor < 0 else descriptor for descriptor in stdio.child]
    aside: list[int] = []
    for descriptor in wanted:
        unused = yield from must("fcntl", descriptor, _F_DUPFD, _FIRST_ASIDE)
        aside.append(unused)
    for number, descriptor in enumerate(aside):
        yield from must("dup2", descriptor, number)
        yield from must("close", descriptor)


def _take_identity(identity: Identity) -> GuestScript:
    """In the child: become that user. Groups go first, for setting them needs root; the last step gives that up."""
    for descriptor in range(3):
        # As runc: a program that opens /dev/stdout by name must be allowed to.
        yield from call("fchown", descriptor, identity.uid, -1)
    yield from must("prlimit64", 0, _RLIMIT_NOFILE, struct.pack("<QQ", *_OPEN_FILES), 0)
    groups = struct.pack(f"<{len(identity.groups)}I", *identity.groups)
    yield from must("setgroups", len(identity.groups), groups)
    yield from must("setgid", identity.gid)
    yield from must("setuid", identity.uid)


def _reason(number: int) -> str:
    import os

    if number == errno.ENOEXEC:
        return "it is neither an x86-64 program nor a script with an interpreter line"
    if number == errno.ENOENT:
        return "it, or the interpreter or loader it names, is not in the root file system"
    return os.strerror(number)


def _sweep(agent: AgentChannel) -> GuestScript:
    """Kill what the tenant left running, and reap it, so that every task's end is seen."""
    yield from call("kill", -1, SIGKILL)
    while True:
        result = yield from call("wait4", -1, agent.area() + BUFFER_AT, 0x40000000, 0)
        if result < 0:
            return


__all__ = ["CHILD_AREA", "TenantIo", "TenantOptions", "run_tenant"]
