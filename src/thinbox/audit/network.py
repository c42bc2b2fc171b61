"""Sockets for cases: of every family this kernel talks to itself with, ready or connected.

Why it exists: most calls on sockets are tried on the same few pairs of ends.
"""

import socket
from dataclasses import dataclass

from thinbox.audit import abi
from thinbox.audit.case_process import Process
from thinbox.harness.process import Steps

PORT = 4321
STREAM, DGRAM, RAW, SEQPACKET = 1, 2, 3, 5
NONBLOCK, CLOEXEC = 0o4000, 0o2000000
MSG_PEEK, MSG_TRUNC, MSG_DONTWAIT, MSG_WAITALL, MSG_NOSIGNAL, MSG_OOB, MSG_MORE = (
    2,
    0x20,
    0x40,
    0x100,
    0x4000,
    1,
    0x8000,
)


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of sockets. `server` and `client` are addresses its ends can be bound to."""

    name: str
    family: int
    kind: int
    server: bytes
    client: bytes

    @property
    def listens(self) -> bool:
        """Whether ends are made by listen and accept."""
        return self.kind in (STREAM, SEQPACKET)


def _unix(name: str, kind: int) -> Family:
    return Family(name, socket.AF_UNIX, kind, abi.sockaddr_un(b"server\0"), abi.sockaddr_un(b"client\0"))


UNIX_STREAM, UNIX_DGRAM = _unix("unix stream", STREAM), _unix("unix datagram", DGRAM)
UNIX_SEQPACKET = _unix("unix packets in order", SEQPACKET)
UNIX_ABSTRACT = Family(
    "unix stream, abstract", socket.AF_UNIX, STREAM, abi.sockaddr_un(b"\0server"), abi.sockaddr_un(b"\0client")
)
TCP = Family("tcp", socket.AF_INET, STREAM, abi.sockaddr_in(PORT), abi.sockaddr_in(PORT + 1))
UDP = Family("udp", socket.AF_INET, DGRAM, abi.sockaddr_in(PORT), abi.sockaddr_in(PORT + 1))
TCP6 = Family("tcp over ipv6", socket.AF_INET6, STREAM, abi.sockaddr_in6(PORT), abi.sockaddr_in6(PORT + 1))
UDP6 = Family("udp over ipv6", socket.AF_INET6, DGRAM, abi.sockaddr_in6(PORT), abi.sockaddr_in6(PORT + 1))
FAMILIES = (UNIX_STREAM, UNIX_ABSTRACT, UNIX_SEQPACKET, UNIX_DGRAM, TCP, UDP, TCP6, UDP6)


def open_socket(process: Process, family: Family, *, flags: int = 0) -> Steps:
    """A new socket."""
    return (yield from process.must("socket", family.family, family.kind | flags, 0))


def bound_socket(process: Process, family: Family, vaddr: bytes | None = None, *, flags: int = 0) -> Steps:
    """A socket bound to `vaddr` (default: the server's address)."""
    handle = yield from open_socket(process, family, flags=flags)
    place = vaddr or family.server
    yield from process.must("bind", handle, place, len(place))
    return handle


def listening_socket(process: Process, family: Family, *, flags: int = 0) -> Steps:
    """A socket that listens at the server's address."""
    handle = yield from bound_socket(process, family, flags=flags)
    yield from process.must("listen", handle, 5)
    return handle


def connected_sockets(process: Process, family: Family) -> Steps:
    """Two ends, each of which can send to the other: (server's, client's)."""
    if family.listens:
        listener = yield from listening_socket(process, family)
        client = yield from open_socket(process, family)
        yield from process.must("connect", client, family.server, len(family.server))
        server = yield from process.must("accept", listener, 0, 0)
        return server, client
    server = yield from bound_socket(process, family)
    client = yield from bound_socket(process, family, family.client)
    yield from process.must("connect", client, family.server, len(family.server))
    yield from process.must("connect", server, family.client, len(family.client))
    return server, client
