"""Sockets: making them, binding, listening, connecting, accepting, naming, shutting down."""

import errno
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, either, fails
from thinbox.audit.network import (
    CLOEXEC,
    DGRAM,
    FAMILIES,
    NONBLOCK,
    RAW,
    SEQPACKET,
    STREAM,
    TCP,
    UDP,
    UNIX_DGRAM,
    UNIX_STREAM,
    Family,
    bound_socket,
    connected_sockets,
    listening_socket,
    open_socket,
)
from thinbox.harness.process import Steps

_UNIX, _INET, _INET6, _NETLINK, _PACKET, _XDP = 1, 2, 10, 16, 17, 44
_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)
_NOBODY = 65534
_LISTENING = tuple(family for family in FAMILIES if family.listens)

# -- socket, socketpair -------------------------------------------------------------------------------
for _name, _args in (
    ("unix stream", (_UNIX, STREAM, 0)),
    ("unix datagram", (_UNIX, DGRAM, 0)),
    ("unix packets in order", (_UNIX, SEQPACKET, 0)),
    ("tcp", (_INET, STREAM, 0)),
    ("tcp by number", (_INET, STREAM, 6)),
    ("tcp, not blocking, closed on exec", (_INET, STREAM | NONBLOCK | CLOEXEC, 0)),
    ("udp", (_INET, DGRAM, 0)),
    ("ping", (_INET, RAW, 1)),
    ("raw ip", (_INET, RAW, 255)),
    ("tcp over ipv6", (_INET6, STREAM, 0)),
    ("udp over ipv6", (_INET6, DGRAM, 0)),
    ("raw ipv6", (_INET6, RAW, 58)),
    ("netlink route", (_NETLINK, RAW, 0)),
    ("netlink uevent", (_NETLINK, DGRAM, 15)),
    ("netlink generic", (_NETLINK, RAW, 16)),
    ("netlink sockets", (_NETLINK, RAW, 4)),
    ("packet", (_PACKET, RAW, 0)),
    ("packet, every protocol", (_PACKET, RAW, 0x0300)),
    ("packet without headers", (_PACKET, DGRAM, 0x0300)),
    ("xdp", (_XDP, RAW, 0)),
):
    plain("socket", _name, _args, POSITIVE)
# Linux 7.2 has no UDP-Lite any more.
plain("socket", "udp-lite", (_INET, DGRAM, 136), either(POSITIVE, fails(errno.EPROTONOSUPPORT)))
for _name, _args, _number in (
    ("no such family", (99, STREAM, 0), errno.EAFNOSUPPORT),
    ("a family that is not there", (3, STREAM, 0), errno.EAFNOSUPPORT),
    ("no such kind", (_INET, 99, 0), errno.EINVAL),
    ("a kind the family has not", (_INET, SEQPACKET, 0), errno.ESOCKTNOSUPPORT),
    ("a protocol the kind has not", (_INET, STREAM, 17), errno.EPROTONOSUPPORT),
    ("no such netlink protocol", (_NETLINK, RAW, 99), errno.EPROTONOSUPPORT),
):
    plain("socket", _name, _args, fails(_number))


@error("socket", "raw, by nobody")
def socket_raw_nobody(process: Process) -> Steps:
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(_INET, RAW, 1, expect=fails(errno.EPERM))


for _name, _kind in (
    ("stream", STREAM),
    ("datagram", DGRAM),
    ("packets in order", SEQPACKET),
    ("flags", STREAM | NONBLOCK),
):

    @success("socketpair", f"unix {_name}")
    def socketpair(process: Process, kind: int = _kind) -> Steps:
        pair = process.buffer(8)
        yield from process.measure(_UNIX, kind, 0, pair, expect=ZERO)
        yield from process.must("write", process.read_int(pair), "hello", 5)
        place = process.buffer(8)
        yield from process.must("read", process.read_int(pair + 4), place, 8)
        process.check(process.read(place, 5) == b"hello", "what was written at the other end")


plain("socketpair", "tcp has none", (_INET, STREAM, 0, bytes(8)), fails(errno.EOPNOTSUPP))
plain("socketpair", "bad address", (_UNIX, STREAM, 0, 1), fails(errno.EFAULT))

# -- bind, listen -------------------------------------------------------------------------------------
for _family in FAMILIES:

    @success("bind", _family.name)
    def bind(process: Process, family: Family = _family) -> Steps:
        handle = yield from open_socket(process, family)
        yield from process.measure(handle, family.server, len(family.server), expect=ZERO)
        place, size = process.buffer(128), process.buffer(struct.pack("<I", 128))
        yield from process.must("getsockname", handle, place, size)
        process.check(process.read(place, len(family.server)) == family.server, "the address it is bound to")

    @error("bind", f"{_family.name}, an address in use")
    def bind_used(process: Process, family: Family = _family) -> Steps:
        yield from bound_socket(process, family)
        handle = yield from open_socket(process, family)
        yield from process.measure(handle, family.server, len(family.server), expect=fails(errno.EADDRINUSE))


for _name, _vaddr in (("any port", abi.sockaddr_in(0)), ("any address", abi.sockaddr_in(80, "0.0.0.0"))):  # noqa: S104

    @success("bind", f"tcp, {_name}")
    def bind_any(process: Process, vaddr: bytes = _vaddr) -> Steps:
        yield from process.measure((yield from open_socket(process, TCP)), vaddr, len(vaddr), expect=ZERO)


@success("bind", "unix, a name of the kernel's choice")
def bind_auto(process: Process) -> Steps:
    handle = yield from open_socket(process, UNIX_STREAM)
    yield from process.measure(handle, struct.pack("<H", _UNIX), 2, expect=ZERO)
    place, size = process.buffer(128), process.buffer(struct.pack("<I", 128))
    yield from process.must("getsockname", handle, place, size)
    process.volatile(place, 128)
    process.check(process.read_int(size) == 8, "a zero byte and five digits")


@error("bind", "an address that is not ours")
def bind_foreign(process: Process) -> Steps:
    vaddr = abi.sockaddr_in(80, "192.0.2.1")
    yield from process.measure((yield from open_socket(process, TCP)), vaddr, 16, expect=fails(errno.EADDRNOTAVAIL))


@error("bind", "too short")
def bind_short(process: Process) -> Steps:
    yield from process.measure((yield from open_socket(process, TCP)), bytes(8), 8, expect=fails(errno.EINVAL))


@error("bind", "a low port, by nobody")
def bind_low_port(process: Process) -> Steps:
    handle = yield from open_socket(process, TCP)
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(handle, abi.sockaddr_in(80), 16, expect=fails(errno.EACCES))


for _family in _LISTENING:

    @success("listen", _family.name)
    def listen(process: Process, family: Family = _family) -> Steps:
        yield from process.measure((yield from bound_socket(process, family)), 5, expect=ZERO)


@error("listen", "udp")
def listen_udp(process: Process) -> Steps:
    yield from process.measure((yield from open_socket(process, UDP)), 5, expect=fails(errno.EOPNOTSUPP))


@error("listen", "unix, without a name")
def listen_unbound(process: Process) -> Steps:
    yield from process.measure((yield from open_socket(process, UNIX_STREAM)), 5, expect=fails(errno.EINVAL))


# -- connect, accept ----------------------------------------------------------------------------------
for _family in FAMILIES:

    @success("connect", _family.name)
    def connect(process: Process, family: Family = _family) -> Steps:
        yield from (listening_socket if family.listens else bound_socket)(process, family)
        handle = yield from open_socket(process, family)
        yield from process.measure(handle, family.server, len(family.server), expect=ZERO)
        place, size = process.buffer(128), process.buffer(struct.pack("<I", 128))
        yield from process.must("getpeername", handle, place, size)
        process.check(process.read(place, len(family.server)) == family.server, "the address of the other end")

    if _family.family != _UNIX and not _family.listens:
        continue

    @error("connect", f"{_family.name}, nobody is there")
    def connect_nobody(process: Process, family: Family = _family) -> Steps:
        handle = yield from open_socket(process, family)
        is_path = family.family == _UNIX and family.server[2] != 0
        number = errno.ENOENT if is_path else errno.ECONNREFUSED
        yield from process.measure(handle, family.server, len(family.server), expect=fails(number))


for _call, _more in (("accept", ()), ("accept4", (0,)), ("accept4", (NONBLOCK | CLOEXEC,))):
    for _family in _LISTENING:

        @success(_call, f"{_family.name}{', flags' if any(_more) else ''}")
        def accept(process: Process, family: Family = _family, more: tuple[int, ...] = _more) -> Steps:
            listener = yield from listening_socket(process, family)
            client = yield from bound_socket(process, family, family.client)
            yield from process.must("connect", client, family.server, len(family.server))
            place, size = process.buffer(128), process.buffer(struct.pack("<I", 128))
            handle = yield from process.measure(listener, place, size, *more, expect=POSITIVE)
            process.check(process.read(place, len(family.client)) == family.client, "the address of the client")
            yield from process.must("write", client, "hello", 5)
            yield from process.must("read", handle, place, 5)
            process.check(process.read(place, 5) == b"hello", "what the client wrote")


for _family in (TCP, UNIX_STREAM):

    @success("accept", f"{_family.name}, waits for a client")
    def accept_waits(process: Process, family: Family = _family) -> Steps:
        listener = yield from listening_socket(process, family)

        def child(me: Process) -> Steps:
            yield from me.must("nanosleep", _SLEEP, 0)
            handle = yield from open_socket(me, family)
            yield from me.must("connect", handle, family.server, len(family.server))

        pid = yield from process.fork(child)
        yield from process.measure(listener, 0, 0, expect=POSITIVE)
        yield from process.wait(pid)

    @error("accept", f"{_family.name}, no client, not blocking")
    def accept_none(process: Process, family: Family = _family) -> Steps:
        listener = yield from listening_socket(process, family, flags=NONBLOCK)
        yield from process.measure(listener, 0, 0, expect=fails(errno.EAGAIN))


@error("accept", "not listening")
def accept_not_listening(process: Process) -> Steps:
    yield from process.measure((yield from open_socket(process, TCP)), 0, 0, expect=fails(errno.EINVAL))


@error("accept4", "unknown flags")
def accept4_flags(process: Process) -> Steps:
    yield from process.measure((yield from listening_socket(process, TCP)), 0, 0, 1, expect=fails(errno.EINVAL))


@success("connect", "udp, undone")
def connect_undone(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, UDP)
    yield from process.measure(client, bytes(16), 16, expect=ZERO)
    gone = yield from process.call("getpeername", client, bytes(16), struct.pack("<I", 16))
    process.check(gone == -errno.ENOTCONN, "no other end")


@error("connect", "tcp, a second time")
def connect_twice(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, TCP)
    yield from process.measure(client, TCP.server, 16, expect=fails(errno.EISCONN))


@error("connect", "tcp, not blocking: a host that is not reachable")
def connect_unreachable(process: Process) -> Steps:
    handle = yield from open_socket(process, TCP, flags=NONBLOCK)
    yield from process.measure(handle, abi.sockaddr_in(80, "192.0.2.1"), 16, expect=fails(errno.ENETUNREACH))


@error("connect", "of another family")
def connect_family(process: Process) -> Steps:
    handle = yield from open_socket(process, TCP)
    yield from process.measure(
        handle, abi.sockaddr_un(b"server".ljust(14, b"\0")), 16, expect=fails(errno.EAFNOSUPPORT)
    )


# -- names, shutdown ----------------------------------------------------------------------------------
for _family in FAMILIES:
    for _call, _which in (("getsockname", 0), ("getpeername", 1)):

        @success(_call, _family.name)
        def names(process: Process, family: Family = _family, which: int = _which) -> Steps:
            _server, client = yield from connected_sockets(process, family)
            place, size = process.buffer(128), process.buffer(struct.pack("<I", 128))
            process.volatile(place, 128)  # The client's port may be one of the kernel's choice.
            yield from process.measure(client, place, size, expect=ZERO)
            process.check(process.read(place, 1)[0] == family.family, "the family")
            found = process.read(place, len(family.server))
            process.check(not which or found == family.server, "the server's address")

    for _name, _how in (("reading", 0), ("writing", 1), ("both", 2)):

        @success("shutdown", f"{_family.name}, {_name}")
        def shutdown(process: Process, family: Family = _family, how: int = _how) -> Steps:
            _server, client = yield from connected_sockets(process, family)
            yield from process.measure(client, how, expect=ZERO)
            sent = yield from process.call("sendto", client, "x", 1, 0x4000, 0, 0)
            process.check(sent == (1 if how == 0 else -errno.EPIPE), "whether it can send")


plain("getsockname", "not a descriptor", (77, bytes(16), bytes(4)), fails(errno.EBADF))
plain("getpeername", "not a descriptor", (77, bytes(16), bytes(4)), fails(errno.EBADF))
for _call, _no_socket in (
    ("bind", (0, bytes(16), 16)),
    ("listen", (0, 5)),
    ("connect", (0, bytes(16), 16)),
    ("accept", (0, 0, 0)),
    ("getsockname", (0, bytes(16), bytes(4))),
    ("getpeername", (0, bytes(16), bytes(4))),
    ("shutdown", (0, 0)),
):
    plain(_call, "a descriptor that is no socket", _no_socket, fails(errno.ENOTSOCK))


@error("getpeername", "not connected")
def getpeername_none(process: Process) -> Steps:
    handle = yield from open_socket(process, TCP)
    yield from process.measure(handle, bytes(16), struct.pack("<I", 16), expect=fails(errno.ENOTCONN))


@error("getsockname", "a negative size")
def getsockname_negative(process: Process) -> Steps:
    handle = yield from open_socket(process, TCP)
    yield from process.measure(handle, bytes(16), struct.pack("<i", -1), expect=fails(errno.EINVAL))


@error("shutdown", "not connected")
def shutdown_none(process: Process) -> Steps:
    yield from process.measure((yield from open_socket(process, TCP)), 2, expect=fails(errno.ENOTCONN))


@error("shutdown", "no such way")
def shutdown_way(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, UNIX_DGRAM)
    yield from process.measure(client, 9, expect=fails(errno.EINVAL))
