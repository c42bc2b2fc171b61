"""The neighbour: a second tenant beside the one whose calls are made, with secrets of its own.

Why it exists: whether a view hides anything, and whether it kills wrongly, shows only where there is someone to hide.
The neighbour holds one secret in its memory, one in a file only it may read, one in a pipe, and one on its way
through a pair of sockets of each kind; then it sleeps.

Rules of this file: secrets are random-looking, 32 bytes, and nowhere else in the guest but (for the first and the last)
in pages they were copied through, which the neighbour has overwritten.
"""

import struct

from thinbox.guest.agent_channel import AgentChannel, GuestScript, call, must
from thinbox.guest.cgroups import clone_in_cgroup, enable_controllers, make_cgroup

TENANT, NEIGHBOUR = "tenant", "neighbour"
"""Names of the two tenants of a case runner."""
SECRETS = {
    "memory": b"\x93memory-secret-of-the-neighbour\x17",
    "file": b"\x94file-secret-of-the-neighbour!!\x18",
    "pipe": b"\x95pipe-secret-of-the-neighbour!!\x19",
    "unix": b"\x96unix-secret-of-the-neighbour!!\x1a",
    "tcp": b"\x97tcp-secret-of-the-neighbour!!!\x1b",
    "udp": b"\x98udp-secret-of-the-neighbour!!!\x1c",
}
NEIGHBOUR_FILE = "/tmp/neighbour"
SECRET_OFFSET = 256
"""Where in its page the secret in memory, and the one in the file, lies."""
_PAGE_BYTES = 4096
_O_CREAT_RDWR = 0o102
_AF_UNIX, _AF_INET, _STREAM, _DATAGRAM = 1, 2, 1, 2
_KINDS = {"unix": (_AF_UNIX, _STREAM), "tcp": (_AF_INET, _STREAM), "udp": (_AF_INET, _DATAGRAM)}
_PORT = 7001
_UNIX, _INET = b"", struct.pack("<H", _AF_INET) + struct.pack(">H", _PORT) + bytes((127, 0, 0, 1)) + bytes(8)
_SETTLE = (0).to_bytes(8, "little") + (50_000_000).to_bytes(8, "little")


def start_neighbour(agent: AgentChannel, area: int, flags: int) -> GuestScript:
    """By the agent: make both cgroups, start the neighbour in its own, and let it settle."""
    yield from enable_controllers()
    for name in (TENANT, NEIGHBOUR):
        yield from make_cgroup(name)
    agent.adopt_next_child(_live(agent, area), area)
    pid = yield from clone_in_cgroup(NEIGHBOUR, flags)
    yield from must("nanosleep", _SETTLE, 0)
    return pid


def _live(agent: AgentChannel, area: int) -> GuestScript:
    place, ends = agent.scratch + area + _PAGE_BYTES, agent.scratch + area + 2048
    memory = yield from must("mmap", 0, _PAGE_BYTES, 3, 0x22, -1, 0)
    reader, writer = yield from _make_pipe(agent, ends)
    yield from _send(agent, writer, place, SECRETS["memory"])
    yield from must("read", reader, memory + SECRET_OFFSET, len(SECRETS["memory"]))
    # The pipe keeps the page it was copied through for the next write (fs/pipe.c, tmp_page): this is the next write.
    yield from _send(agent, writer, place, SECRETS["pipe"])
    handle = yield from must("open", NEIGHBOUR_FILE, _O_CREAT_RDWR, 0o600)
    agent.write(place, SECRETS["file"])
    yield from must("pwrite64", handle, place, len(SECRETS["file"]), SECRET_OFFSET)
    for name, address in (("unix", _UNIX), ("tcp", _INET), ("udp", _INET)):
        sender = yield from _connect(agent, ends, _KINDS[name], address)
        yield from _send(agent, sender, place, SECRETS[name])
    agent.write(place, bytes(_PAGE_BYTES))
    while True:
        yield from call("pause")


def _connect(agent: AgentChannel, place: int, kind: tuple[int, int], address: bytes) -> GuestScript:
    """Make two sockets that are connected; return the one to send through (generator's value)."""
    family, what = kind
    if family == _AF_UNIX:
        yield from must("socketpair", family, what, 0, place)
        return int.from_bytes(agent.read(place, 4), "little")
    server = yield from must("socket", family, what, 0)
    yield from must("bind", server, address, len(address))
    if what == _STREAM:
        yield from must("listen", server, 1)
    client = yield from must("socket", family, what, 0)
    yield from must("connect", client, address, len(address))
    return client


def _make_pipe(agent: AgentChannel, ends: int) -> GuestScript:
    yield from must("pipe2", ends, 0)
    return (int.from_bytes(agent.read(ends + at, 4), "little") for at in (0, 4))


def _send(agent: AgentChannel, writer: int, place: int, data: bytes) -> GuestScript:
    agent.write(place, data)
    yield from must("write", writer, place, len(data))
