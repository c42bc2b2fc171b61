"""Sockets where they are used as files: read, write, poll, stat, sent into and closed."""

import errno
import struct

from thinbox.audit.case import error, success
from thinbox.audit.case_process import Process
from thinbox.audit.case_runner import file_content
from thinbox.audit.expect import ZERO, exactly, fails
from thinbox.audit.files import (
    AF_UNIX,
    O_NONBLOCK,
    PAGE,
    S_IFSOCK,
    SOCK_DGRAM,
    SOCK_STREAM,
    filled_pipe,
    interrupted_result,
    iovec,
    open_file,
    open_pair,
    open_pipe,
    open_terminal,
    rest,
    send_later,
    timespec,
)
from thinbox.harness.process import Steps

AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, SOCK_RAW, SOCK_SEQPACKET = 2, 10, 16, 17, 3, 5
SIGALRM = 14
CONTENT = file_content()


def _address(family: int) -> bytes:
    """Loopback and any port, as a struct sockaddr_in or sockaddr_in6."""
    if family == AF_INET:
        return struct.pack("<HH4B8x", AF_INET, 0, 127, 0, 0, 1)
    return struct.pack("<HHI15xBI", AF_INET6, 0, 0, 1, 0)


def connected(process: Process, family: int, kind: int) -> Steps:
    """Its value: two sockets of `family` that are connected by loopback."""
    size = len(_address(family))
    server = yield from process.must("socket", family, kind, 0)
    yield from process.must("bind", server, _address(family), size)
    place, length = process.buffer(size), process.buffer(struct.pack("<i", size))
    process.volatile(place, size)  # the port is picked at random
    yield from process.must("getsockname", server, place, length)
    client = yield from process.must("socket", family, kind, 0)
    if kind == SOCK_STREAM:
        yield from process.must("listen", server, 5)
        yield from process.must("connect", client, place, size)
        return client, (yield from process.must("accept", server, 0, 0))
    yield from process.must("connect", client, place, size)
    back = process.buffer(size)
    process.volatile(back, size)
    yield from process.must("getsockname", client, back, length)
    yield from process.must("connect", server, back, size)
    return client, server


_FAMILIES = (
    ("tcp", AF_INET, SOCK_STREAM),
    ("udp", AF_INET, SOCK_DGRAM),
    ("tcp over ipv6", AF_INET6, SOCK_STREAM),
    ("udp over ipv6", AF_INET6, SOCK_DGRAM),
)


def _family(name: str, family: int, kind: int) -> None:
    @success("read", name)
    def read(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        yield from process.must("write", one, process.buffer(CONTENT[:5000]), 5000)
        place = process.buffer(2 * PAGE)
        yield from process.measure(other, place, 2 * PAGE, expect=exactly(5000))
        process.check(process.read(place, 5000) == CONTENT[:5000], "the bytes")

    @success("read", f"{name}, sleeps until a child writes")
    def read_sleeps(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        pid = yield from process.fork(send_later(one, b"late"))
        place = process.buffer(16)
        yield from process.measure(other, place, 16, expect=exactly(4))
        process.check(process.read(place, 4) == b"late", "the bytes")
        yield from process.wait(pid)

    @success("write", name)
    def write(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        yield from process.measure(one, process.buffer(CONTENT[:5000]), 5000, expect=exactly(5000))
        place = process.buffer(5000)
        yield from process.must("read", other, place, 5000)
        process.check(process.read(place, 5000) == CONTENT[:5000], "the bytes")

    @success("writev", name)
    def writev(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        vector = iovec((process.buffer(b"one"), 3), (process.buffer(b"two"), 3))
        yield from process.measure(one, vector, 2, expect=exactly(6))
        place = process.buffer(6)
        yield from process.must("read", other, place, 6)
        process.check(process.read(place, 6) == b"onetwo", "the bytes")

    @success("readv", name)
    def readv(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        yield from process.must("write", one, b"onetwo", 6)
        place = process.buffer(64)
        yield from process.measure(other, iovec((place, 3), (place + 32, 3)), 2, expect=exactly(6))
        process.check(process.read(place, 3) + process.read(place + 32, 3) == b"onetwo", "the bytes")

    @success("sendfile", f"regular to {name}")
    def sendfile(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        yield from process.measure(one, (yield from open_file(process)), 0, 3000, expect=exactly(3000))
        place = process.buffer(3000)
        yield from process.must("read", other, place, 3000)
        process.check(process.read(place, 3000) == CONTENT[:3000], "the bytes")

    @success("splice", f"pipe to {name}")
    def splice(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        reader, _ = yield from filled_pipe(process, b"piped")
        yield from process.measure(reader, 0, one, 0, 64, 0, expect=exactly(5))
        place = process.buffer(8)
        yield from process.must("read", other, place, 8)
        process.check(process.read(place, 5) == b"piped", "the bytes")

    @success("poll", name)
    def poll(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        yield from process.must("write", one, b"x", 1)
        place = process.buffer(struct.pack("<ihh", other, 5, 0))
        yield from process.measure(place, 1, 100, expect=exactly(1))
        process.check(process.read_int(place + 6, 2) == 5, "bytes wait, and there is room")

    @success("select", f"{name}, sleeps until a child writes")
    def select(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        pid = yield from process.fork(send_later(one, b"late"))
        limit = process.buffer(timespec(1))
        process.volatile(limit, 16)
        yield from process.measure(other + 1, struct.pack("<Q", 1 << other), 0, 0, limit, expect=exactly(1))
        yield from process.wait(pid)

    @success("epoll_wait", f"{name}, sleeps until a child writes")
    def epoll(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        group = yield from process.must("epoll_create1", 0)
        yield from process.must("epoll_ctl", group, 1, other, struct.pack("<IQ", 1, 7))
        pid = yield from process.fork(send_later(one, b"late"))
        yield from process.measure(group, process.buffer(64), 4, 1000, expect=exactly(1))
        yield from process.wait(pid)

    @success("close", f"{name}, connected")
    def close(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        yield from process.must("write", other, b"unread", 6)
        yield from process.measure(one, expect=ZERO)

    @success("ioctl", f"FIONREAD, {name}")
    def waiting(process: Process) -> Steps:
        one, other = yield from connected(process, family, kind)
        yield from process.must("write", one, b"12345", 5)
        place = process.buffer(4)
        yield from process.measure(other, 0x541B, place, expect=ZERO)
        process.check(process.read_int(place) == 5, "5 bytes wait")


for _name, _number, _kind in _FAMILIES:
    _family(_name, _number, _kind)


def _unconnected(name: str, family: int, kind: int, protocol: int = 0) -> None:
    """`fstat` and `close` of a fresh socket, and `read` of it when nothing comes."""

    @success("fstat", f"{name} socket")
    def fstat(process: Process) -> Steps:
        handle = yield from process.must("socket", family, kind, protocol)
        place = process.buffer(144)
        yield from process.measure(handle, place, expect=ZERO)
        process.volatile(place + 72, 48)
        process.check(int.from_bytes(process.read(place + 24, 4), "little") & 0o170000 == S_IFSOCK, "a socket")

    @success("close", f"{name} socket, fresh")
    def close(process: Process) -> Steps:
        handle = yield from process.must("socket", family, kind, protocol)
        yield from process.measure(handle, expect=ZERO)


_unconnected("udp", AF_INET, SOCK_DGRAM)
_unconnected("udp over ipv6", AF_INET6, SOCK_DGRAM)
_unconnected("raw", AF_INET, SOCK_RAW, 1)
_unconnected("netlink", AF_NETLINK, SOCK_RAW)
_unconnected("packet", AF_PACKET, SOCK_RAW, 0x0300)
_unconnected("unix packet", AF_UNIX, SOCK_SEQPACKET)


@error("read", "empty udp socket, not blocking")
def read_empty(process: Process) -> Steps:
    handle = yield from process.must("socket", AF_INET, SOCK_DGRAM | O_NONBLOCK, 0)
    yield from process.measure(handle, process.buffer(8), 8, expect=fails(errno.EAGAIN))


@error("write", "unconnected udp socket")
def write_unconnected(process: Process) -> Steps:
    handle = yield from process.must("socket", AF_INET, SOCK_DGRAM, 0)
    yield from process.measure(handle, b"x", 1, expect=fails(errno.EDESTADDRREQ))


@success("write", "netlink, all interfaces asked for")
def write_netlink(process: Process) -> Steps:
    handle = yield from process.must("socket", AF_NETLINK, SOCK_RAW, 0)
    request = struct.pack("<IHHII", 20, 18, 0x301, 1, 0) + struct.pack("<B3x", 0)  # RTM_GETLINK, NLM_F_DUMP
    yield from process.measure(handle, request, 20, expect=exactly(20))
    place = process.buffer(8192)
    process.volatile(place, 8192)
    count = yield from process.must("read", handle, place, 8192)
    process.check(b"lo\0" in process.read(place, count), "lo is among them")


@success("read", "netlink, all interfaces")
def read_netlink(process: Process) -> Steps:
    handle = yield from process.must("socket", AF_NETLINK, SOCK_RAW, 0)
    request = struct.pack("<IHHII", 20, 18, 0x301, 1, 0) + struct.pack("<B3x", 0)
    yield from process.must("write", handle, request, 20)
    place = process.buffer(8192)
    process.volatile(place, 8192)
    count = yield from process.measure(handle, place, 8192)
    process.check(b"lo\0" in process.read(place, count), "lo is among them")


@success("read", "packet socket, a datagram passing by")
def read_packet(process: Process) -> Steps:
    handle = yield from process.must("socket", AF_PACKET, SOCK_DGRAM, 0x0008)  # ETH_P_IP, in network order
    one, _other = yield from connected(process, AF_INET, SOCK_DGRAM)
    yield from process.must("write", one, b"seen", 4)
    place = process.buffer(128)
    process.volatile(place, 128)
    yield from process.measure(handle, place, 128, expect=exactly(20 + 8 + 4))
    process.check(process.read(place + 28, 4) == b"seen", "behind the headers")


# -- sleepers of the other kinds -------------------------------------------------------------------------
@success("read", "terminal, sleeps until a child types")
def read_terminal_sleeps(process: Process) -> Steps:
    master, slave = yield from open_terminal(process)
    pid = yield from process.fork(send_later(master, b"late\n"))
    place = process.buffer(16)
    yield from process.measure(slave, place, 16, expect=exactly(5))
    process.check(process.read(place, 5) == b"late\n", "the line")
    yield from process.wait(pid)


@success("read", "eventfd, sleeps until a child counts")
def read_eventfd_sleeps(process: Process) -> Steps:
    handle = yield from process.must("eventfd2", 0, 0)
    pid = yield from process.fork(send_later(handle, struct.pack("<Q", 3)))
    place = process.buffer(8)
    yield from process.measure(handle, place, 8, expect=exactly(8))
    process.check(process.read_int(place, 8) == 3, "3")
    yield from process.wait(pid)


@success("read", "inotify, sleeps until a child makes a directory")
def read_inotify_sleeps(process: Process) -> Steps:
    handle = yield from process.must("inotify_init1", 0)
    yield from process.must("inotify_add_watch", handle, "dir", 0x100)

    def child(me: Process) -> Steps:
        yield from rest(me)
        yield from me.must("mkdir", "dir/new", 0o755)

    pid = yield from process.fork(child)
    yield from process.measure(handle, process.buffer(64), 64, expect=exactly(32))
    yield from process.wait(pid)


@success("write", "full unix socket, sleeps until a child reads")
def write_unix_sleeps(process: Process) -> Steps:
    one, other = yield from open_pair(process, SOCK_DGRAM)
    count = 0
    while (yield from process.call("sendto", one, b"x", 1, 0x40, 0, 0)) == 1:  # MSG_DONTWAIT
        count += 1

    def child(me: Process) -> Steps:
        yield from rest(me)
        place = me.buffer(8)
        for _ in range(count):  # a sender is woken once three quarters of its memory are free (unix_writable)
            yield from me.must("read", other, place, 8)

    pid = yield from process.fork(child)
    yield from process.measure(one, b"waits", 5, expect=exactly(5))
    yield from process.wait(pid)


def _interrupted(call: str, name: str, size: int, *, reading: bool) -> None:
    """`call` on a pipe, where it has to wait, and a signal comes."""

    @error(call, name)
    def body(process: Process) -> Steps:
        reader, writer = yield from open_pipe(process)
        yield from process.must("fcntl", writer, 1031, PAGE)  # F_SETPIPE_SZ
        if not reading:
            yield from process.must("write", writer, process.buffer(PAGE), PAGE)
        handler = struct.pack("<4Q", process.agent_loop, 0x04000000, process.agent_loop, 0)  # SA_RESTORER
        yield from process.must("rt_sigaction", SIGALRM, handler, 0, 8)
        yield from process.must("setitimer", 0, bytes(16) + struct.pack("<qq", 0, 3000), 0)
        yield from process.measure(reader if reading else writer, process.buffer(size), size, expect=ZERO)
        process.check(interrupted_result(process) == -errno.EINTR, "the call ended with EINTR")


_interrupted("read", "empty pipe, a signal comes", 8, reading=True)
_interrupted("write", "full pipe, a signal comes", 8, reading=False)
