"""The scenario: the guest with an attacker and a victim in it, frozen before anything happens.

Why it exists: preparing two processes takes as long as twenty tries.

Rules of this file: secrets leave no copy in the scratch, which all processes share.
"""

import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinbox.attacks.leak import Leak
from thinbox.attacks.payload import ExploitFailedError, LiveText
from thinbox.attacks.read_run import COPIED_BYTES, READS, ReadRun, ReadWatch
from thinbox.errors import MachineError
from thinbox.guest.agent_channel import SCRATCH_BYTES, AgentChannel, GuestScript, Park, call, must
from thinbox.guest.cgroups import clone_in_cgroup, enable_controllers, make_cgroup
from thinbox.guest.charged_sockets import ChargedSockets
from thinbox.harness.checkpoint import Checkpoint, ParentWait, freeze, run_to_park
from thinbox.harness.process import AREA_BYTES, SIGCHLD, Steps
from thinbox.session.opened import RestoredGuest, restore_guest

if TYPE_CHECKING:
    from thinbox.boot.ready import ReadyGuest
    from thinbox.guest.kernel_view import KernelView
    from thinbox.machine.machine import Machine

VICTIM_AREA, ATTACKER_AREA = AREA_BYTES, 2 * AREA_BYTES
FOLDER, HOME, SHARED, PRIVATE_FILE = "/tmp/arena", "/tmp/arena/home", "/tmp/arena/shared", "/tmp/arena/private"
_MOMENT, _INTERRUPTIBLE = struct.pack("<qq", 0, 1_000_000), 1
"""A struct timespec; TASK_INTERRUPTIBLE (include/linux/sched.h), the state of a reader of an empty pipe."""
COMMON_FILE, OPEN_FILE = "/tmp/arena/common", "/tmp/arena/open"
"""Of root, and charged to no tenant. All may read them; nobody may write the first, whose line the victim trusts, and
everybody the second."""
ATTACKER, VICTIM = "attacker", "victim"
"""Names of the two tenants, and of their cgroups."""
ATTACKER_ID, VICTIM_ID = 1000, 2000
MEMORY_SECRET = b"secret-of-the-victim-in-memory-1"
FILE_SECRET = b"secret-of-the-victim-in-a-file-2"
PIPE_SECRET = b"secret-of-the-victim-in-a-pipe-3"
SOCKET_SECRET = b"secret-of-victim-in-tcp-socket-4"
COMMON_TEXT = b"a line that both tenants may read"[:32]
SECRET_BYTES = 32
READY, GO, DONE = (20, 21), (22, 23), (24, 25)
"""Handles of three pipes: victim to agent, attacker to victim, victim to attacker."""
SECRET_VADDR = 0x7000_0000
_PROT_RW, _PRIVATE_ANON_FIXED, _SHARED_POPULATE = 3, 0x32, 0x8001
_O_CREAT_RDWR = 0o102
_AF_INET, _STREAM, _PORT = 2, 1, 7001
_ADDRESS = struct.pack("<H", _AF_INET) + struct.pack(">H", _PORT) + bytes((127, 0, 0, 1)) + bytes(8)


@dataclass(frozen=True, slots=True)
class Victim:
    """The other tenant; the paddr are where its secrets lie, `pipe` its pipe with one in it, and one waits in a TCP
    connection that it has with itself."""

    task: int
    memory_paddr: int
    file_paddr: int
    pipe_paddr: int
    socket_paddr: int
    pipe: tuple[int, int]
    file: int
    common: int
    memory_secret: bytes = MEMORY_SECRET
    file_secret: bytes = FILE_SECRET
    pipe_secret: bytes = PIPE_SECRET
    socket_secret: bytes = SOCKET_SECRET


@dataclass(frozen=True, slots=True)
class Scenario:
    """The frozen machine, which stands in the attacker's process; the victim, the kernel's text, and what a read of a
    pipe runs of it (or why that is not known)."""

    checkpoint: Checkpoint
    attacker_task: int
    victim: Victim
    text: LiveText
    read_run: ReadRun | ExploitFailedError
    candidates: dict[str, object] = field(default_factory=dict)
    """By exploit, what its payload is made of, once that was tried; None if nothing did."""


class _Builder:
    """Prepares the processes; keeps what is learned on the way."""

    def __init__(self, opened: RestoredGuest) -> None:
        self.machine, self.view, self.agent = opened.machine, opened.view, opened.agent
        self.victim: Victim | None = None
        self.text: LiveText | None = None
        self.read_run: ReadRun | ExploitFailedError = ExploitFailedError("no read was looked at")
        self.agent_task, self.parent = opened.view.current, ParentWait()

    def agent_script(self) -> GuestScript:
        """Run by process 1."""
        agent = self.agent
        yield from enable_controllers()
        for name in (ATTACKER, VICTIM):
            yield from make_cgroup(name)
        yield from must("mkdir", FOLDER, 0o755)
        yield from must("mkdir", HOME, 0o755)
        yield from must("mkdir", SHARED, 0o755)
        yield from must("chmod", SHARED, 0o1777)
        yield from must("chown", HOME, ATTACKER_ID, ATTACKER_ID)
        place = agent.scratch + 64
        for ends in (READY, GO, DONE):
            yield from must("pipe", place)
            made = self._ints(place, 2)
            for now, wanted in zip(made, ends, strict=True):
                yield from must("dup2", now, wanted)
                yield from must("close", now)
        handle = yield from must("open", PRIVATE_FILE, _O_CREAT_RDWR, 0o640)
        yield from must("close", handle)
        yield from must("chown", PRIVATE_FILE, VICTIM_ID, VICTIM_ID)
        for name, mode in ((COMMON_FILE, 0o644), (OPEN_FILE, 0o666)):
            handle = yield from must("open", name, _O_CREAT_RDWR, mode)
            yield from must("write", handle, COMMON_TEXT, len(COMMON_TEXT))
            yield from must("close", handle)
            yield from must("chmod", name, mode)
        agent.adopt_next_child(self.victim_work(), VICTIM_AREA)
        yield from clone_in_cgroup(VICTIM, SIGCHLD)
        yield from must("read", READY[0], place, 1)
        # That it is ready it says before it waits: a kernel may let its reader run first (kernel/sched/fair.c).
        while not self._victim_waits():
            yield from call("nanosleep", _MOMENT, 0)
        agent.adopt_next_child(self.attacker_work(), ATTACKER_AREA)
        child = yield from clone_in_cgroup(ATTACKER, SIGCHLD)
        yield from self.parent.wait(child, place, 0, 0)

    def _victim_waits(self) -> bool:
        assert self.victim is not None
        state = self.view.read_u32(self.victim.task + self.view.state_offset, self.view.kernel_root)
        return bool(state & _INTERRUPTIBLE)

    def _ints(self, place: int, count: int) -> tuple[int, ...]:
        data = self.agent.read(place, 4 * count)
        return tuple(int.from_bytes(data[at : at + 4], "little") for at in range(0, 4 * count, 4))

    def _leak(self) -> Leak:
        return Leak(self.machine.memory, self.view, self.view.kernel_root)

    def victim_work(self) -> GuestScript:
        """Put the secrets where they belong, then wait."""
        agent, place = self.agent, self.agent.scratch + VICTIM_AREA + (32 << 10)
        yield from must("setresgid", VICTIM_ID, VICTIM_ID, VICTIM_ID)
        yield from must("setresuid", VICTIM_ID, VICTIM_ID, VICTIM_ID)
        yield from must("mmap", SECRET_VADDR, 4096, _PROT_RW, _PRIVATE_ANON_FIXED, -1, 0)
        yield from must("pipe", place)
        pipe = self._ints(place, 2)
        yield from must("write", pipe[1], MEMORY_SECRET, SECRET_BYTES)
        yield from must("read", pipe[0], SECRET_VADDR, SECRET_BYTES)
        memory_paddr = self._leak().paddr_of(SECRET_VADDR)
        file = yield from must("open", PRIVATE_FILE, 2, 0)
        yield from must("write", file, FILE_SECRET, SECRET_BYTES)
        mapped = yield from must("mmap", 0, 4096, _PROT_RW, _SHARED_POPULATE, file, 0)
        file_paddr = self._leak().paddr_of(mapped)
        yield from must("munmap", mapped, 4096)
        yield from must("write", pipe[1], PIPE_SECRET, SECRET_BYTES)
        pipe_paddr = self._leak().pipe_page(self.view.current, pipe[0])
        server, client = yield from _connect(place)
        yield from must("write", client, SOCKET_SECRET, SECRET_BYTES)
        socket_paddr = self._leak().socket_data(self.view.current, server)
        places = (memory_paddr, file_paddr, pipe_paddr, socket_paddr)
        common = yield from must("open", COMMON_FILE, 0, 0)
        self.victim = Victim(self.view.current, *places, (pipe[0], pipe[1]), file, common)
        agent.write(agent.scratch + VICTIM_AREA, bytes(AREA_BYTES))
        yield from must("write", READY[1], b"r", 1)
        yield from must("read", GO[0], place, 1)

    def attacker_work(self) -> GuestScript:
        """Become nobody, and stand ready."""
        yield from must("setresgid", ATTACKER_ID, ATTACKER_ID, ATTACKER_ID)
        yield from must("setresuid", ATTACKER_ID, ATTACKER_ID, ATTACKER_ID)
        yield from must("chdir", HOME)
        yield from self.parent.come_to()
        yield from call("getpid")
        self.text = _live_text(self.machine, self.view)
        yield from self.learn_read()
        self.agent.write(self.agent.scratch, bytes(SCRATCH_BYTES))
        yield Park()

    def learn_read(self) -> GuestScript:
        """Read a pipe, and find out what that runs."""
        assert self.text is not None
        place = self.agent.scratch + ATTACKER_AREA + (32 << 10)
        yield from must("pipe", place)
        reading, writing = self._ints(place, 2)
        yield from must("write", writing, place, READS * COPIED_BYTES)
        try:
            watch = ReadWatch(self.machine, self.view, self.text)
            for _ in range(READS):
                yield from must("read", reading, place, COPIED_BYTES)
            self.read_run = watch.found
        except ExploitFailedError as error:
            self.read_run = error
        for handle in (reading, writing):
            yield from must("close", handle)


def _live_text(machine: "Machine", view: "KernelView") -> LiveText:
    symbols = view.symbols
    code = machine.memory.read_virtual(view.kernel_root, symbols.text_start, symbols.text_end - symbols.text_start)
    return LiveText(code, symbols)


def _connect(place: int) -> GuestScript:
    """Make a TCP connection over loopback; its value is (server's end, client's end)."""
    listener = yield from must("socket", _AF_INET, _STREAM, 0)
    yield from must("bind", listener, _ADDRESS, len(_ADDRESS))
    yield from must("listen", listener, 1)
    client = yield from must("socket", _AF_INET, _STREAM, 0)
    yield from must("connect", client, _ADDRESS, len(_ADDRESS))
    server = yield from must("accept", listener, 0, 0)
    return server, client


def make_scenario(guest: "ReadyGuest") -> Scenario:
    """Restore `guest`, prepare victim and attacker, and freeze."""
    opened = restore_guest(guest)
    machine, view = opened.machine, opened.view
    with suppress(MachineError):
        # On a kernel whose sockets cannot be charged, attacks are tried without views.
        ChargedSockets(machine, view)
    builder = _Builder(opened)
    run_to_park(opened, builder.agent_script())
    assert builder.victim is not None
    assert builder.text is not None
    checkpoint = freeze(opened, builder.agent_task)
    return Scenario(checkpoint, view.current, builder.victim, builder.text, builder.read_run)


def check_victim(agent: AgentChannel, victim: Victim, seen: dict[str, bytes]) -> Steps:
    """What the victim does when it is told to go on: look at what is its own, put that into `seen`, and say that it
    did."""
    place = agent.scratch + VICTIM_AREA + (32 << 10)
    yield  # the read it waits in
    while True:
        agent.write(place, bytes(5 * SECRET_BYTES))
        yield from must("pread64", victim.file, place, SECRET_BYTES, 0)
        yield from must("read", victim.pipe[0], place + SECRET_BYTES, SECRET_BYTES)
        yield from must("write", victim.pipe[1], SECRET_VADDR, SECRET_BYTES)
        yield from must("read", victim.pipe[0], place + 2 * SECRET_BYTES, SECRET_BYTES)
        yield from must("pread64", victim.common, place + 3 * SECRET_BYTES, SECRET_BYTES, 0)
        data = agent.read(place, 4 * SECRET_BYTES)
        for number, name in enumerate(("file", "pipe", "memory", "common")):
            seen[name] = data[number * SECRET_BYTES : (number + 1) * SECRET_BYTES]
        yield from must("write", DONE[1], b"d", 1)
        yield from must("read", GO[0], place, 1)
