"""Start a program in the guest, carry its bytes, wait for its end: the agent's work for one run.

Why it exists: everything the user sees of a tenant passes here: arguments, environment, stdin, stdout,
stderr, signals, exit status. Binary-clean on pipes; on a terminal, if the user wants one, as terminals are.

Rules of this file:
- Nothing of a run is left behind: at its end every process but the agent is killed and reaped.
"""

import errno
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from thinbox.errors import InputError
from thinbox.guest.agent_channel import CHILD_AREA, AgentChannel, GuestScript, Park, call, must
from thinbox.guest.cgroups import Limits, clone_in_cgroup, enable_controllers, in_cgroup, make_cgroup
from thinbox.guest.disks import Disk, give_disk
from thinbox.guest.identity import Identity, find_identity
from thinbox.guest.in_root import O_PATH, open_in_root
from thinbox.guest.pump import BUFFER_AT, Pump, TenantEnds, TenantIo
from thinbox.guest.setup import SIGCHLD, enter_root
from thinbox.guest.terminal import Pty, Terminal, open_pty, take_terminal

O_CLOEXEC, O_NONBLOCK = 0o2000000, 0o4000
SIGKILL = 9
_CLONE_NEWNS = 0x00020000
_LAST_SWITCH_TRIES = 1000
_S_IFMT, _S_IFDIR = 0o170000, 0o040000
_STAT_MODE_AT = 24
_STAT_FILE_BYTES = 16
"""st_dev and st_ino, the first members of struct stat (arch/x86/include/uapi/asm/stat.h)."""
_AGENT, _STAT_BEHIND_NAME = "/init", 16
_O_DIRECTORY = 0o200000
EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127
"""What shells return for a program that cannot be executed, and for one, or its interpreter, that is not there."""
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
    """The cgroup of its own it gets (a tenant with a view or with limits has one)."""
    limits: Limits = field(default_factory=Limits)
    disk: Disk | None = None
    """The disk of its own it finds at /disk."""


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
    is_apart: bool = False
    """It is in namespaces of its own, has its root, and what needs the guest's root has been done for it before."""


def run_tenant(agent: AgentChannel, options: TenantOptions, io: TenantIo) -> GuestScript:
    """Run the tenant to its end; the status goes to `io.wait_status`; then park."""
    options, identity = yield from identify(agent, options)
    program = yield from find_program(agent, options)
    stdio = yield from open_stdio(agent, options.terminal)
    work = become_tenant(agent, Start(options, program, stdio, identity), io)
    if options.cgroup is None:
        if options.disk is not None:
            yield from give_disk(agent, options.disk, options.root)
        agent.adopt_next_child(work)
        child = yield from must("clone", SIGCHLD, 0, 0, 0, 0)
    else:
        yield from enable_controllers()
        yield from make_cgroup(options.cgroup, options.limits)
        if options.disk is not None:
            yield from in_cgroup(options.cgroup, give_disk(agent, options.disk, options.root))
        agent.adopt_next_child(work)
        child = yield from clone_in_cgroup(options.cgroup, SIGCHLD)
    handle = yield from must("pidfd_open", child, 0)
    for descriptor in stdio.child:
        if descriptor >= 0:
            yield from must("close", descriptor)
    master = stdio.terminal.reader if stdio.terminal else -1
    yield from Pump(agent, io, TenantEnds(child, handle, stdio.outputs, stdio.stdin, master)).run()
    yield from end_tenants(agent, io.has_tasks)


def identify(agent: AgentChannel, options: TenantOptions) -> GuestScript:
    """Return the options, HOME set if a user was asked for, and who that is or None (as a generator's value)."""
    if options.user is None:
        return options, None
    identity = yield from find_identity(agent, options.root, options.user)
    if not any(pair.startswith("HOME=") for pair in options.environment):
        options = replace(options, environment=(*options.environment, f"HOME={identity.home}"))
    return options, identity


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
    """Find what execvp would find, inside the tenant's root; return its path (as a generator's value).

    Raises:
        InputError: there is no such program, or no such folder to start it in.
    """
    yield from _require_workdir(options)
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
        file = agent.read(agent.area(), _STAT_FILE_BYTES)
        yield from must("close", handle)
        if mode & _S_IFMT == _S_IFDIR:
            reason = "is a directory"
        elif candidate.endswith(_AGENT) and file == (yield from _agent_file(agent)):
            reason = "is thinbox's own agent in the guest, not a program"
        elif not mode & 0o111:
            reason = "is not executable"
        else:
            return candidate
    raise InputError(f"cannot run {name}: it {reason}; see `thinbox run --help` for --rootfs")


def _require_workdir(options: TenantOptions) -> GuestScript:
    if options.workdir == "/":
        return
    handle = yield from open_in_root(options.root, options.workdir, O_PATH | _O_DIRECTORY)
    if handle < 0:
        raise InputError(
            f"cannot start in {options.workdir}: {os.strerror(-handle).lower()} in the root file system; "
            "give another --workdir"
        )
    yield from must("close", handle)


def _agent_file(agent: AgentChannel) -> GuestScript:
    """Return device and inode of the agent's own program, which would ask thinbox for work for ever."""
    yield from must("stat", _AGENT, bytes(144))
    # The name stands before the buffer in the scratch.
    return agent.read(agent.area() + _STAT_BEHIND_NAME, _STAT_FILE_BYTES)


def become_tenant(agent: AgentChannel, start: Start, io: TenantIo) -> GuestScript:
    """In the new process: take root, folder, stdio and identity, become the program."""
    options, program = start.options, start.program
    yield from must("setsid")
    if options.root != "/" and not start.is_apart:
        yield from must("unshare", _CLONE_NEWNS)
        yield from enter_root(options.root)
    yield from must("chdir", options.workdir)
    yield from _take_stdio(start.stdio)
    if start.identity is not None:
        yield from _take_identity(start.identity, is_apart=start.is_apart)
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
    # Only a call that failed comes back here: behind one that did not, nobody answers this process any more.
    io.not_started = f"cannot run {program}: {_reason(-result)}"
    io.disown()
    yield from leave(agent, EXIT_NOT_FOUND if result == -errno.ENOENT else EXIT_NOT_EXECUTABLE)


def leave(agent: AgentChannel, status: int) -> GuestScript:
    """End the process. It is forgotten at once: another may have its task_struct soon."""
    agent.forget(agent.require_view().current)
    yield from call("exit_group", status)


def _take_stdio(stdio: Stdio) -> GuestScript:
    """In the child: make the three descriptors 0, 1 and 2. They may be among those already: by way of unused ones."""
    # Behind `enter_root`, so that the name the kernel knows the terminal by is the tenant's own.
    slave = -1 if stdio.terminal is None else (yield from take_terminal(stdio.terminal.path))
    wanted = [slave if descriptor < 0 else descriptor for descriptor in stdio.child]
    aside: list[int] = []
    for descriptor in wanted:
        unused = yield from must("fcntl", descriptor, _F_DUPFD, _FIRST_ASIDE)
        aside.append(unused)
    for number, descriptor in enumerate(aside):
        yield from must("dup2", descriptor, number)
        yield from must("close", descriptor)


def own_stdio(identity: Identity, descriptors: Iterable[int], first_id: int = 0) -> GuestScript:
    """As runc: a program that opens /dev/stdout by name must be allowed to."""
    for descriptor in descriptors:
        yield from call("fchown", descriptor, first_id + identity.uid, -1)


def limit_open_files(process: int) -> GuestScript:
    """Give `process` (0: the caller) the limits of open files that containers have."""
    yield from must("prlimit64", process, _RLIMIT_NOFILE, struct.pack("<QQ", *_OPEN_FILES), 0)


def _take_identity(identity: Identity, *, is_apart: bool) -> GuestScript:
    """In the child: become that user. Groups go first, for setting them needs root; the last step gives that up."""
    if not is_apart:
        yield from own_stdio(identity, range(3))
        yield from limit_open_files(0)
    groups = struct.pack(f"<{len(identity.groups)}I", *identity.groups)
    yield from must("setgroups", len(identity.groups), groups)
    yield from must("setgid", identity.gid)
    yield from must("setuid", identity.uid)


def _reason(number: int) -> str:
    if number == errno.ENOEXEC:
        return "it is neither an x86-64 program nor a script with an interpreter line"
    if number == errno.ENOENT:
        return "it, or the interpreter or loader it names, is not in the root file system"
    return os.strerror(number).lower()


def _sweep(agent: AgentChannel) -> GuestScript:
    """Kill what the tenant left running, and reap it, so that every task's end is seen."""
    yield from call("kill", -1, SIGKILL)
    while True:
        result = yield from call("wait4", -1, agent.area() + BUFFER_AT, 0x40000000, 0)
        if result < 0:
            return


__all__ = ["CHILD_AREA", "Limits", "TenantIo", "TenantOptions", "run_tenant"]
