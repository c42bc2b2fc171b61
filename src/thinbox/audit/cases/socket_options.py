"""Options of sockets, and the families that are not for carrying a program's own data: netlink, packet, raw."""

import errno
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, exactly, fails
from thinbox.audit.network import (
    DGRAM,
    RAW,
    TCP,
    TCP6,
    UDP,
    UNIX_STREAM,
    Family,
    connected_sockets,
    listening_socket,
    open_socket,
)
from thinbox.harness.process import Steps

_SOCKET, _IP, _TCP_LEVEL, _UDP_LEVEL, _IPV6, _PACKET = 1, 0, 6, 17, 41, 263
_ONE = struct.pack("<i", 1)
_NOBODY = 65534
_LOOPBACK = 1
"""Its interface index."""


def _int(value: int) -> bytes:
    return struct.pack("<i", value)


# -- set, then asked: (title, family, level, option, value, what is told) -----------------------------
_SET = (
    ("SO_REUSEADDR", TCP, _SOCKET, 2, 1, 1),
    ("SO_DONTROUTE", UDP, _SOCKET, 5, 1, 1),
    ("SO_BROADCAST", UDP, _SOCKET, 6, 1, 1),
    ("SO_SNDBUF, doubled", TCP, _SOCKET, 7, 10_000, 20_000),
    ("SO_RCVBUF, doubled", TCP, _SOCKET, 8, 10_000, 20_000),
    ("SO_SNDBUFFORCE", TCP, _SOCKET, 32, 10_000, None),
    ("SO_RCVBUFFORCE", TCP, _SOCKET, 33, 10_000, None),
    ("SO_KEEPALIVE", TCP, _SOCKET, 9, 1, 1),
    ("SO_OOBINLINE", TCP, _SOCKET, 10, 1, 1),
    ("SO_PRIORITY", UDP, _SOCKET, 12, 4, 4),
    ("SO_REUSEPORT", TCP, _SOCKET, 15, 1, 1),
    ("SO_PASSCRED", UNIX_STREAM, _SOCKET, 16, 1, 1),
    ("SO_RCVLOWAT", TCP, _SOCKET, 18, 5, 5),
    ("SO_TIMESTAMP", UDP, _SOCKET, 29, 1, 1),
    ("SO_MARK", UDP, _SOCKET, 36, 7, 7),
    ("SO_BUSY_POLL", UDP, _SOCKET, 46, 50, 50),
    ("SO_INCOMING_CPU", UDP, _SOCKET, 49, 0, 0),
    ("SO_ZEROCOPY", TCP, _SOCKET, 60, 1, 1),
    ("SO_PEEK_OFF", UNIX_STREAM, _SOCKET, 42, 0, 0),
    ("IP_TOS", TCP, _IP, 1, 16, 16),
    ("IP_TTL", UDP, _IP, 2, 9, 9),
    ("IP_RECVTTL", UDP, _IP, 12, 1, 1),
    ("IP_PKTINFO", UDP, _IP, 8, 1, 1),
    ("IP_MTU_DISCOVER", UDP, _IP, 10, 2, 2),
    ("IP_RECVERR", UDP, _IP, 11, 1, 1),
    ("IP_FREEBIND", TCP, _IP, 15, 1, 1),
    ("IP_TRANSPARENT", TCP, _IP, 19, 1, 1),
    ("IP_MULTICAST_TTL", UDP, _IP, 33, 3, 3),
    ("IP_MULTICAST_LOOP", UDP, _IP, 34, 0, 0),
    ("IPV6_V6ONLY", TCP6, _IPV6, 26, 1, 1),
    ("IPV6_UNICAST_HOPS", TCP6, _IPV6, 16, 9, 9),
    ("IPV6_RECVPKTINFO", TCP6, _IPV6, 49, 1, 1),
    ("TCP_NODELAY", TCP, _TCP_LEVEL, 1, 1, 1),
    ("TCP_MAXSEG", TCP, _TCP_LEVEL, 2, 1000, None),
    ("TCP_CORK", TCP, _TCP_LEVEL, 3, 1, 1),
    ("TCP_KEEPIDLE", TCP, _TCP_LEVEL, 4, 100, 100),
    ("TCP_KEEPINTVL", TCP, _TCP_LEVEL, 5, 20, 20),
    ("TCP_KEEPCNT", TCP, _TCP_LEVEL, 6, 4, 4),
    ("TCP_SYNCNT", TCP, _TCP_LEVEL, 7, 3, 3),
    ("TCP_LINGER2", TCP, _TCP_LEVEL, 8, 5, 5),
    ("TCP_DEFER_ACCEPT", TCP, _TCP_LEVEL, 9, 1, None),
    ("TCP_WINDOW_CLAMP", TCP, _TCP_LEVEL, 10, 9000, 9000),
    ("TCP_QUICKACK", TCP, _TCP_LEVEL, 12, 1, 1),
    ("TCP_USER_TIMEOUT", TCP, _TCP_LEVEL, 18, 500, 500),
    ("TCP_FASTOPEN", TCP, _TCP_LEVEL, 23, 5, 5),
    ("UDP_CORK", UDP, _UDP_LEVEL, 1, 1, 1),
    ("UDP_GRO", UDP, _UDP_LEVEL, 104, 1, 1),
)
for _title, _family, _level, _option, _value, _told in _SET:

    @success("setsockopt", _title)
    def setsockopt(
        process: Process,
        family: Family = _family,
        level: int = _level,
        option: int = _option,
        value: int = _value,
        told: int | None = _told,
    ) -> Steps:
        handle = yield from open_socket(process, family)
        yield from process.measure(handle, level, option, _int(value), 4, expect=ZERO)
        if told is not None:
            place = process.buffer(4)
            yield from process.must("getsockopt", handle, level, option, place, process.buffer(_int(4)))
            process.check(process.read_int(place) == told, "what was set")


_SET_BYTES = (
    ("SO_LINGER", TCP, _SOCKET, 13, struct.pack("<ii", 1, 5)),
    ("SO_RCVTIMEO", UDP, _SOCKET, 20, abi.timespec(1, 500_000)),
    ("SO_SNDTIMEO", UDP, _SOCKET, 21, abi.timespec(2, 0)),
    ("SO_BINDTODEVICE", UDP, _SOCKET, 25, b"lo\0"),
    ("TCP_CONGESTION", TCP, _TCP_LEVEL, 13, b"reno".ljust(16, b"\0")),
)
for _title, _family, _level, _option, _content in _SET_BYTES:

    @success("setsockopt", _title)
    def setsockopt_bytes(
        process: Process,
        family: Family = _family,
        level: int = _level,
        option: int = _option,
        content: bytes = _content,
    ) -> Steps:
        handle = yield from open_socket(process, family)
        yield from process.measure(handle, level, option, process.buffer(content), len(content), expect=ZERO)
        place = process.buffer(16)
        yield from process.must("getsockopt", handle, level, option, place, process.buffer(_int(16)))
        process.check(process.read(place, len(content)) == content, "what was set")


@success("setsockopt", "SO_ATTACH_FILTER: only some packets")
def attach_filter(process: Process) -> Steps:
    # BPF of the old kind: return 3, that is, the first three bytes.
    program = process.buffer(struct.pack("<H6xQ", 1, process.buffer(struct.pack("<HBBI", 6, 0, 0, 3 + 8))))
    server, client = yield from connected_sockets(process, UDP)
    yield from process.measure(server, _SOCKET, 26, program, 16, expect=ZERO)
    yield from process.must("sendto", client, "hello", 5, 0, 0, 0)
    got = yield from process.must("recvfrom", server, process.buffer(8), 8, 0, 0, 0)
    process.check(got == 3, "three bytes behind the header of eight")


@success("setsockopt", "IP_ADD_MEMBERSHIP, a packet to the group comes")
def multicast(process: Process) -> Steps:
    handle = yield from open_socket(process, UDP)
    member = struct.pack("<4s4si", bytes((224, 0, 0, 5)), bytes(4), _LOOPBACK)
    yield from process.measure(handle, _IP, 35, member, 12, expect=ZERO)


@success("setsockopt", "SO_RCVTIMEO ends a wait")
def receive_timeout(process: Process) -> Steps:
    server, _client = yield from connected_sockets(process, UDP)
    yield from process.measure(server, _SOCKET, 20, abi.timespec(0, 5000), 16, expect=ZERO)
    result = yield from process.call("recvfrom", server, process.buffer(8), 8, 0, 0, 0)
    process.check(result == -errno.EAGAIN, "nothing came in time")


for _title, _family, _args, _number in (
    ("unknown option", TCP, (_SOCKET, 9999, _ONE, 4), errno.ENOPROTOOPT),
    ("unknown level", TCP, (999, 1, _ONE, 4), errno.ENOPROTOOPT),
    ("too short", TCP, (_SOCKET, 2, _ONE, 1), errno.EINVAL),
    ("bad address", TCP, (_SOCKET, 2, 1, 4), errno.EFAULT),
    ("unix has no TCP_NODELAY", UNIX_STREAM, (_TCP_LEVEL, 1, _ONE, 4), errno.EOPNOTSUPP),
    ("a type cannot be set", TCP, (_SOCKET, 3, _ONE, 4), errno.ENOPROTOOPT),
    ("no such congestion control", TCP, (_TCP_LEVEL, 13, b"nothing", 7), errno.ENOENT),
    ("no such interface", UDP, (_SOCKET, 25, b"nothing\0", 8), errno.ENODEV),
):

    @error("setsockopt", _title)
    def setsockopt_error(
        process: Process, family: Family = _family, args: tuple[int | bytes, ...] = _args, number: int = _number
    ) -> Steps:
        handle = yield from open_socket(process, family)
        yield from process.measure(handle, *args, expect=fails(number))


@error("setsockopt", "SO_MARK, by nobody")
def setsockopt_nobody(process: Process) -> Steps:
    handle = yield from open_socket(process, UDP)
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(handle, _SOCKET, 36, _ONE, 4, expect=fails(errno.EPERM))


# -- asked only ---------------------------------------------------------------------------------------
for _title, _family, _level, _option, _told in (
    ("SO_TYPE", UDP, _SOCKET, 3, 2),
    ("SO_ERROR", TCP, _SOCKET, 4, 0),
    ("SO_ACCEPTCONN, no", TCP, _SOCKET, 30, 0),
    ("SO_PROTOCOL", TCP, _SOCKET, 38, 6),
    ("SO_DOMAIN", TCP6, _SOCKET, 39, 10),
    ("SO_KEEPALIVE, off", TCP, _SOCKET, 9, 0),
    ("TCP_MAXSEG", TCP, _TCP_LEVEL, 2, 536),
    ("TCP_NODELAY, off", TCP, _TCP_LEVEL, 1, 0),
    ("IP_TTL", UDP, _IP, 2, 64),
    ("IPV6_V6ONLY, off", TCP6, _IPV6, 26, 0),
):

    @success("getsockopt", _title)
    def getsockopt(
        process: Process, family: Family = _family, level: int = _level, option: int = _option, told: int = _told
    ) -> Steps:
        handle = yield from open_socket(process, family)
        place, size = process.buffer(b"\xff" * 4), process.buffer(_int(4))
        yield from process.measure(handle, level, option, place, size, expect=ZERO)
        process.check((process.read_int(place), process.read_int(size)) == (told, 4), "the value")


@success("getsockopt", "SO_ACCEPTCONN, yes")
def getsockopt_listening(process: Process) -> Steps:
    handle, place = (yield from listening_socket(process, TCP)), process.buffer(4)
    yield from process.measure(handle, _SOCKET, 30, place, process.buffer(_int(4)), expect=ZERO)
    process.check(process.read_int(place) == 1, "it listens")


@success("getsockopt", "SO_PEERCRED")
def getsockopt_peer(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, UNIX_STREAM)
    own, place = (yield from process.must("getpid")), process.buffer(12)
    yield from process.measure(client, _SOCKET, 17, place, process.buffer(_int(12)), expect=ZERO)
    process.check(process.read(place, 12) == struct.pack("<3i", own, 0, 0), "process, user, group")


@success("getsockopt", "TCP_INFO")
def getsockopt_tcp_info(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, TCP)
    place = process.buffer(256)
    process.volatile(place, 256)
    yield from process.measure(client, _TCP_LEVEL, 11, place, process.buffer(_int(192)), expect=ZERO)
    process.check(process.read(place, 1) == b"\1", "TCP_ESTABLISHED")


@success("getsockopt", "SO_ERROR after a refused connect")
def getsockopt_error(process: Process) -> Steps:
    handle = yield from open_socket(process, TCP, flags=0o4000)
    yield from process.call("connect", handle, TCP.server, 16)
    place = process.buffer(4)
    yield from process.measure(handle, _SOCKET, 4, place, process.buffer(_int(4)), expect=ZERO)
    process.check(process.read_int(place) == errno.ECONNREFUSED, "the pending error")


for _title, _asked, _number in (
    ("unknown option", (_SOCKET, 9999, bytes(4), _int(4)), errno.ENOPROTOOPT),
    ("unknown level", (999, 1, bytes(4), _int(4)), errno.EOPNOTSUPP),
    ("negative size", (_SOCKET, 3, bytes(4), _int(-1)), errno.EINVAL),
    ("bad address", (_SOCKET, 3, 1, _int(4)), errno.EFAULT),
    ("not connected", (_SOCKET, 28, bytes(16), _int(16)), errno.ENOTCONN),
):

    @error("getsockopt", _title)
    def getsockopt_fails(process: Process, args: tuple[int | bytes, ...] = _asked, number: int = _number) -> Steps:
        handle = yield from open_socket(process, TCP)
        yield from process.measure(handle, *args, expect=fails(number))


for _call, _size in (("setsockopt", 4), ("getsockopt", _ONE)):
    plain(_call, "not a descriptor", (77, 1, 2, _ONE, _size), fails(errno.EBADF))
    plain(_call, "a descriptor that is no socket", (0, 1, 2, _ONE, _size), fails(errno.ENOTSOCK))


# -- errors that come back, and copies that are spared ---------------------------------------------------
_MSG_ERRQUEUE, _MSG_ZEROCOPY = 0x2000, 0x4000000


def _error_message(process: Process) -> tuple[int, int]:
    """A `struct msghdr` with room for an error, and where that will be."""
    iov, control = process.buffer(abi.iovec((process.buffer(64), 64))), process.buffer(256)
    return process.buffer(abi.msghdr(iov, 1, control=(control, 256))), control


@error("recvfrom", "udp, the other end's host refused it")
def udp_refused(process: Process) -> Steps:
    handle = yield from open_socket(process, UDP)
    yield from process.must("connect", handle, UDP.server, 16)
    yield from process.must("sendto", handle, "x", 1, 0, 0, 0)
    yield from process.measure(handle, process.buffer(8), 8, 0, 0, 0, expect=fails(errno.ECONNREFUSED))


@success("recvmsg", "udp, the error queue")
def udp_error_queue(process: Process) -> Steps:
    handle = yield from open_socket(process, UDP)
    yield from process.must("setsockopt", handle, _IP, 11, _ONE, 4)
    yield from process.must("sendto", handle, "hello", 5, 0, UDP.server, 16)
    header, control = _error_message(process)
    yield from process.measure(handle, header, _MSG_ERRQUEUE, expect=exactly(5))
    level, option, number = struct.unpack("<iiI", process.read(control + 8, 12))
    process.check((level, option, number) == (_IP, 11, errno.ECONNREFUSED), "IP_RECVERR with the error")


@success("sendto", "tcp, without a copy")
def tcp_zero_copy(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, TCP)
    yield from process.must("setsockopt", client, _SOCKET, 60, _ONE, 4)
    place = process.buffer(b"z" * 8192)
    yield from process.measure(client, place, 8192, _MSG_ZEROCOPY, 0, 0, expect=exactly(8192))


@success("sendto", "udp, one call for three datagrams")
def udp_segments(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, UDP)
    yield from process.must("setsockopt", client, _UDP_LEVEL, 103, struct.pack("<i", 100), 4)
    yield from process.measure(client, process.buffer(b"s" * 250), 250, 0, 0, 0, expect=exactly(250))
    sizes, place = [0, 0, 0], process.buffer(256)
    for number in range(3):
        sizes[number] = yield from process.must("recvfrom", server, place, 256, 0, 0, 0)
    process.check(sizes == [100, 100, 50], "datagrams of 100, 100 and 50 bytes")


@success("sendto", "udp, a broadcast on the loopback interface")
def udp_broadcast(process: Process) -> Steps:
    handle = yield from open_socket(process, UDP)
    yield from process.must("setsockopt", handle, _SOCKET, 6, _ONE, 4)
    yield from process.measure(handle, "x", 1, 0, abi.sockaddr_in(9, "127.255.255.255"), 16, expect=exactly(1))


# -- netlink: header is size, type, flags, sequence, port ---------------------------------------------
_GETLINK, _GETADDR, _GETROUTE, _NEWLINK, _SETLINK = 18, 22, 26, 16, 19
_REQUEST, _ACK, _DUMP = 1, 4, 0x300


def _request(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("<IHHII", 16 + len(body), kind, _REQUEST | flags, 7, 0) + body


_IFINFO_LO = struct.pack("<BxHiII", 0, 0, _LOOPBACK, 0, 0)
for _title, _content, _kind in (
    ("an interface", _request(_GETLINK, 0, _IFINFO_LO), _NEWLINK),
    ("all interfaces", _request(_GETLINK, _DUMP, bytes(16)), _NEWLINK),
    ("all addresses", _request(_GETADDR, _DUMP, bytes(8)), 20),
    ("all routes", _request(_GETROUTE, _DUMP, bytes(12)), 24),
    ("take an interface down", _request(_SETLINK, _ACK, struct.pack("<BxHiII", 0, 0, _LOOPBACK, 0, 1)), 2),
    ("an error for what is not there", _request(_GETLINK, 0, struct.pack("<BxHiII", 0, 0, 99, 0, 0)), 2),
):

    @success("sendto", f"netlink, asks for {_title}")
    def netlink_send(process: Process, content: bytes = _content, kind: int = _kind) -> Steps:
        handle = yield from process.must("socket", 16, RAW, 0)
        yield from process.measure(handle, content, len(content), 0, 0, 0, expect=exactly(len(content)))
        place = process.buffer(16 << 10)
        process.volatile(place, 16 << 10)
        yield from process.must("recvfrom", handle, place, 16 << 10, 0, 0, 0)
        process.check(process.read_int(place + 4, 2) == kind, "the kind of the answer")

    @success("recvfrom", f"netlink, {_title}")
    def netlink_receive(process: Process, content: bytes = _content, kind: int = _kind) -> Steps:
        handle = yield from process.must("socket", 16, RAW, 0)
        yield from process.must("sendto", handle, content, len(content), 0, 0, 0)
        place = process.buffer(16 << 10)
        yield from process.measure(handle, place, 16 << 10, 0, 0, 0, expect=POSITIVE)
        process.check(process.read_int(place + 4, 2) == kind, "the kind of the answer")


@success("bind", "netlink, groups")
def netlink_bind(process: Process) -> Steps:
    handle = yield from process.must("socket", 16, RAW, 0)
    yield from process.measure(handle, struct.pack("<HHII", 16, 0, 0, 1), 12, expect=ZERO)


# -- packet, raw --------------------------------------------------------------------------------------
_SOCKADDR_LL = struct.pack("<H2sihBB8s", 17, b"\x08\x00", _LOOPBACK, 0, 0, 6, bytes(8))


@success("bind", "packet, the loopback interface")
def packet_bind(process: Process) -> Steps:
    handle = yield from process.must("socket", 17, RAW, 0)
    yield from process.measure(handle, _SOCKADDR_LL, 20, expect=ZERO)


@success("recvfrom", "packet, a datagram that passes")
def packet_receive(process: Process) -> Steps:
    handle = yield from process.must("socket", 17, DGRAM, 0x0008)
    _server, client = yield from connected_sockets(process, UDP)
    yield from process.must("sendto", client, "hello", 5, 0, 0, 0)
    place = process.buffer(128)
    yield from process.measure(handle, place, 128, 0, 0, 0, expect=exactly(33))
    process.check(process.read(place + 28, 5) == b"hello", "headers of 28 bytes, then the text")


@success("sendto", "packet, without a header")
def packet_send(process: Process) -> Steps:
    handle = yield from process.must("socket", 17, DGRAM, 0)
    yield from process.measure(handle, bytes(64), 64, 0, _SOCKADDR_LL, 20, expect=exactly(64))


@success("setsockopt", "PACKET_RX_RING")
def packet_ring(process: Process) -> Steps:
    handle = yield from process.must("socket", 17, RAW, 0x0300)
    yield from process.measure(handle, _PACKET, 5, struct.pack("<4I", 4096, 2, 2048, 4), 16, expect=ZERO)
    yield from process.must("mmap", 0, 8192, 3, 1, handle, 0)


@success("sendto", "raw, an echo request that is answered")
def raw_echo(process: Process) -> Steps:
    handle = yield from process.must("socket", 2, RAW, 1)
    checksum = ~(0x0800 + 0x0103 + 0x0001) & 0xFFFF
    packet = struct.pack(">BBHHH", 8, 0, checksum, 0x0103, 1)
    yield from process.measure(handle, packet, 8, 0, abi.sockaddr_in(0), 16, expect=exactly(8))
    place, kinds = process.buffer(64), []
    for _ in range(2):
        yield from process.must("recvfrom", handle, place, 64, 0, 0, 0)
        kinds.append(process.read(place + 20, 1)[0])
    process.check(kinds == [8, 0], "the request passes by, then the answer")
