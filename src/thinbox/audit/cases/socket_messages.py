"""Sending to sockets and receiving from them: sendto to recvmmsg, with addresses, flags and ancillary data."""

import errno
import os
import struct

from thinbox.audit import abi
from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import ZERO, exactly, fails
from thinbox.audit.network import (
    DGRAM,
    FAMILIES,
    MSG_DONTWAIT,
    MSG_MORE,
    MSG_NOSIGNAL,
    MSG_OOB,
    MSG_PEEK,
    MSG_TRUNC,
    MSG_WAITALL,
    NONBLOCK,
    TCP,
    UDP,
    UDP6,
    UNIX_DGRAM,
    UNIX_STREAM,
    Family,
    bound_socket,
    connected_sockets,
    open_socket,
)
from thinbox.harness.process import Steps

_SLEEP = abi.timespec(0, 5 * abi.MILLISECOND)
_SCM_RIGHTS, _SCM_CREDENTIALS, _SO_PASSCRED = 1, 2, 16
_SIZES = (1, 1000, 9000)
_NOBODY = 65534


def _text(size: int) -> bytes:
    return bytes(range(32, 127)) * (size // 95) + bytes(range(32, 32 + size % 95))


# -- sendto, recvfrom ---------------------------------------------------------------------------------
for _family in FAMILIES:
    for _size in _SIZES:

        @success("sendto", f"{_family.name}, {_size} bytes")
        def sendto(process: Process, family: Family = _family, size: int = _size) -> Steps:
            server, client = yield from connected_sockets(process, family)
            yield from process.measure(client, process.buffer(_text(size)), size, 0, 0, 0, expect=exactly(size))
            place = process.buffer(size)
            flags = MSG_WAITALL if family.listens else 0
            got = yield from process.must("recvfrom", server, place, size, flags, 0, 0)
            process.check(got == size and process.read(place, size) == _text(size), "the text at the other end")

        @success("recvfrom", f"{_family.name}, {_size} bytes")
        def recvfrom(process: Process, family: Family = _family, size: int = _size) -> Steps:
            server, client = yield from connected_sockets(process, family)
            yield from process.must("sendto", client, process.buffer(_text(size)), size, 0, 0, 0)
            place = process.buffer(size)
            yield from process.measure(server, place, size, MSG_WAITALL, 0, 0, expect=exactly(size))
            process.check(process.read(place, size) == _text(size), "the text that was sent")

    @success("recvfrom", f"{_family.name}, sent later")
    def recvfrom_later(process: Process, family: Family = _family) -> Steps:
        server, client = yield from connected_sockets(process, family)

        def child(me: Process) -> Steps:
            yield from me.must("nanosleep", _SLEEP, 0)
            yield from me.must("sendto", client, "late", 4, 0, 0, 0)

        pid = yield from process.fork(child)
        place = process.buffer(8)
        yield from process.measure(server, place, 8, 0, 0, 0, expect=exactly(4))
        process.check(process.read(place, 4) == b"late", "the text that was sent")
        yield from process.wait(pid)

    @error("recvfrom", f"{_family.name}, nothing there, not waiting")
    def recvfrom_none(process: Process, family: Family = _family) -> Steps:
        server, _client = yield from connected_sockets(process, family)
        yield from process.measure(server, process.buffer(8), 8, MSG_DONTWAIT, 0, 0, expect=fails(errno.EAGAIN))


for _family in (UNIX_DGRAM, UDP, UDP6):

    @success("sendto", f"{_family.name}, to an address")
    def sendto_address(process: Process, family: Family = _family) -> Steps:
        server = yield from bound_socket(process, family)
        client = yield from bound_socket(process, family, family.client)
        yield from process.measure(client, "hello", 5, 0, family.server, len(family.server), expect=exactly(5))
        got = yield from process.must("recvfrom", server, process.buffer(8), 8, 0, 0, 0)
        process.check(got == 5, "the text at the other end")

    @success("recvfrom", f"{_family.name}, with the sender's address")
    def recvfrom_address(process: Process, family: Family = _family) -> Steps:
        server = yield from bound_socket(process, family)
        client = yield from bound_socket(process, family, family.client)
        yield from process.must("sendto", client, "hello", 5, 0, family.server, len(family.server))
        place, size = process.buffer(128), process.buffer(struct.pack("<I", 128))
        yield from process.measure(server, process.buffer(8), 8, 0, place, size, expect=exactly(5))
        process.check(process.read_int(size) == len(family.client), "the size of the address")
        process.check(process.read(place, len(family.client)) == family.client, "the sender's address")


@success("recvfrom", "udp, cut to the room, with its true size")
def recvfrom_truncated(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, UDP)
    yield from process.must("sendto", client, _text(500), 500, 0, 0, 0)
    yield from process.measure(server, process.buffer(8), 8, MSG_TRUNC, 0, 0, expect=exactly(500))


@success("recvfrom", "tcp, looked at only")
def recvfrom_peek(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, TCP)
    yield from process.must("sendto", client, "hello", 5, 0, 0, 0)
    yield from process.measure(server, process.buffer(8), 8, MSG_PEEK, 0, 0, expect=exactly(5))
    again = yield from process.must("recvfrom", server, process.buffer(8), 8, 0, 0, 0)
    process.check(again == 5, "the text is still there")


@success("recvfrom", "tcp, waits for all of it")
def recvfrom_all(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, TCP)

    def child(me: Process) -> Steps:
        yield from me.must("sendto", client, "hello ", 6, 0, 0, 0)
        yield from me.must("nanosleep", _SLEEP, 0)
        yield from me.must("sendto", client, "world", 5, 0, 0, 0)

    pid = yield from process.fork(child)
    place = process.buffer(16)
    yield from process.measure(server, place, 11, MSG_WAITALL, 0, 0, expect=exactly(11))
    process.check(process.read(place, 11) == b"hello world", "both texts")
    yield from process.wait(pid)


@success("recvfrom", "tcp, after the other end closed")
def recvfrom_closed(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, TCP)
    yield from process.must("close", client)
    yield from process.measure(server, process.buffer(8), 8, 0, 0, 0, expect=ZERO)


@success("sendto", "tcp, urgent")
def sendto_urgent(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, TCP)
    yield from process.measure(client, "!", 1, MSG_OOB, 0, 0, expect=exactly(1))
    got = yield from process.must("recvfrom", server, process.buffer(8), 8, MSG_OOB, 0, 0)
    process.check(got == 1, "the urgent byte")


@success("sendto", "udp, in two pieces")
def sendto_more(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, UDP)
    yield from process.must("sendto", client, "hello ", 6, MSG_MORE, 0, 0)
    yield from process.measure(client, "world", 5, 0, 0, 0, expect=exactly(5))
    got = yield from process.must("recvfrom", server, process.buffer(16), 16, 0, 0, 0)
    process.check(got == 11, "one datagram")


@success("sendto", "udp, nothing in it")
def sendto_empty(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, UDP)
    yield from process.measure(client, 0, 0, 0, 0, 0, expect=ZERO)
    got = yield from process.must("recvfrom", server, process.buffer(8), 8, MSG_DONTWAIT, 0, 0)
    process.check(got == 0, "an empty datagram")


@success("sendto", "unix stream, waits for room")
def sendto_waits(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, UNIX_STREAM)
    big = yield from process.must("mmap", 0, 1 << 20, 3, 0x22, -1, 0)

    def child(me: Process) -> Steps:
        yield from me.must("nanosleep", _SLEEP, 0)
        target, left = (yield from me.must("mmap", 0, 1 << 20, 3, 0x22, -1, 0)), 1 << 20
        while left:
            left -= yield from me.must("recvfrom", server, target, left, 0, 0, 0)

    pid = yield from process.fork(child)
    yield from process.measure(client, big, 1 << 20, 0, 0, 0, expect=exactly(1 << 20))
    yield from process.wait(pid)


@success("sendto", "the other end is gone: SIGPIPE")
def sendto_sigpipe(process: Process) -> Steps:
    def child(me: Process) -> Steps:
        server, client = yield from connected_sockets(me, UNIX_STREAM)
        yield from me.must("close", server)
        yield from me.measure_last(client, "x", 1, 0, 0, 0)

    pid = yield from process.fork(child)
    yield from process.wait(pid, 13)


@error("sendto", "the other end is gone, without a signal")
def sendto_pipe(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, UNIX_STREAM)
    yield from process.must("close", server)
    yield from process.measure(client, "x", 1, MSG_NOSIGNAL, 0, 0, expect=fails(errno.EPIPE))


@error("sendto", "no other end")
def sendto_no_end(process: Process) -> Steps:
    yield from process.measure(
        (yield from open_socket(process, UDP)), "x", 1, 0, 0, 0, expect=fails(errno.EDESTADDRREQ)
    )


@error("sendto", "udp, too long")
def sendto_long(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, UDP)
    big = yield from process.must("mmap", 0, 1 << 20, 3, 0x22, -1, 0)
    yield from process.measure(client, big, 70_000, 0, 0, 0, expect=fails(errno.EMSGSIZE))


@error("sendto", "unix stream, no room, not waiting")
def sendto_full(process: Process) -> Steps:
    pair = process.buffer(8)
    yield from process.must("socketpair", 1, DGRAM | NONBLOCK, 0, pair)
    handle, result = process.read_int(pair), 1
    while result > 0:
        result = yield from process.call("write", handle, "x" * 1000, 1000)
    yield from process.measure(handle, "x", 1, 0, 0, 0, expect=fails(errno.EAGAIN))


@error("sendto", "bad address")
def sendto_fault(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, UDP)
    yield from process.measure(client, 1, 8, 0, 0, 0, expect=fails(errno.EFAULT))


for _call, _args in (
    ("sendto", ("x", 1, 0, 0, 0)),
    ("recvfrom", (bytes(8), 8, 0, 0, 0)),
    ("sendmsg", (bytes(56), 0)),
    ("recvmsg", (bytes(56), 0)),
    ("sendmmsg", (bytes(64), 1, 0)),
    ("recvmmsg", (bytes(64), 1, 0, 0)),
):
    plain(_call, "not a descriptor", (77, *_args), fails(errno.EBADF))
    plain(_call, "a descriptor that is no socket", (0, *_args), fails(errno.ENOTSOCK))


# -- sendmsg, recvmsg ---------------------------------------------------------------------------------
def _message(process: Process, *parts: tuple[int, int], control: tuple[int, int] = (0, 0), name: bytes = b"") -> int:
    iov = process.buffer(abi.iovec(*parts))
    named = (process.buffer(name), len(name)) if name else (0, 0)
    return process.buffer(abi.msghdr(iov, len(parts), name=named, control=control))


def _receive(process: Process, handle: int, size: int, *, control_bytes: int = 0) -> Steps:
    """(the text, the control data)."""
    place, control = process.buffer(size), process.buffer(max(control_bytes, 1))
    header = _message(process, (place, size), control=(control, control_bytes) if control_bytes else (0, 0))
    got = yield from process.must("recvmsg", handle, header, 0)
    return process.read(place, got), process.read(control, process.read_int(header + 40, 8))


for _family in FAMILIES:

    @success("sendmsg", f"{_family.name}, gathered")
    def sendmsg(process: Process, family: Family = _family) -> Steps:
        server, client = yield from connected_sockets(process, family)
        header = _message(process, (process.string("hello "), 6), (process.string("world"), 5))
        yield from process.measure(client, header, 0, expect=exactly(11))
        text, _control = yield from _receive(process, server, 32)
        process.check(text == b"hello world", "the text at the other end")

    @success("recvmsg", f"{_family.name}, scattered")
    def recvmsg(process: Process, family: Family = _family) -> Steps:
        server, client = yield from connected_sockets(process, family)
        yield from process.must("sendto", client, "hello world", 11, 0, 0, 0)
        first, second = process.buffer(6), process.buffer(16)
        header = _message(process, (first, 6), (second, 16))
        yield from process.measure(server, header, 0, expect=exactly(11))
        process.check((process.read(first, 6), process.read(second, 5)) == (b"hello ", b"world"), "the text in pieces")

    @success("sendmmsg", f"{_family.name}, two")
    def sendmmsg(process: Process, family: Family = _family) -> Steps:
        server, client = yield from connected_sockets(process, family)
        vector = process.buffer(
            b"".join(
                abi.msghdr(process.buffer(abi.iovec((process.string(text), len(text)))), 1) + bytes(8)
                for text in ("first", "second")
            )
        )
        yield from process.measure(client, vector, 2, 0, expect=exactly(2))
        process.check((process.read_int(vector + 56), process.read_int(vector + 120)) == (5, 6), "the sizes sent")
        text, _control = yield from _receive(process, server, 5)
        process.check(text == b"first", "the first of them")

    @success("recvmmsg", f"{_family.name}, two")
    def recvmmsg(process: Process, family: Family = _family) -> Steps:
        server, client = yield from connected_sockets(process, family)
        for text in ("first", "secnd"):
            yield from process.must("sendto", client, text, 5, 0, 0, 0)
        places = [process.buffer(5), process.buffer(5)]
        headers = (abi.msghdr(process.buffer(abi.iovec((place, 5))), 1) + bytes(8) for place in places)
        vector = process.buffer(b"".join(headers))
        yield from process.measure(server, vector, 2, 0, 0, expect=exactly(2))
        process.check([process.read(place, 5) for place in places] == [b"first", b"secnd"], "both texts")


def _control(kind: int, data: bytes) -> bytes:
    """One `struct cmsghdr` of SOL_SOCKET with its data."""
    return struct.pack("<Qii", 16 + len(data), 1, kind) + data + bytes(-len(data) % 8)


@success("sendmsg", "a descriptor")
def sendmsg_descriptor(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, UNIX_STREAM)
    handle = yield from process.must("open", "file", os.O_RDONLY, 0)
    control = _control(_SCM_RIGHTS, struct.pack("<i", handle))
    header = _message(process, (process.string("x"), 1), control=(process.buffer(control), 20))
    yield from process.measure(client, header, 0, expect=exactly(1))
    _text, found = yield from _receive(process, server, 8, control_bytes=64)
    copy = struct.unpack("<i", found[16:20])[0]
    place = process.buffer(16)
    yield from process.must("read", copy, place, 10)
    process.check(process.read(place, 10) == b"line 00000", "the file, by the new descriptor")


@success("recvmsg", "a descriptor")
def recvmsg_descriptor(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, UNIX_STREAM)
    control = process.buffer(_control(_SCM_RIGHTS, struct.pack("<ii", 0, 1)))
    yield from process.must("sendmsg", client, _message(process, (process.string("x"), 1), control=(control, 24)), 0)
    place, found = process.buffer(8), process.buffer(64)
    header = _message(process, (place, 8), control=(found, 64))
    yield from process.measure(server, header, 0, expect=exactly(1))
    process.check(process.read(found, 16) == struct.pack("<Qii", 24, 1, _SCM_RIGHTS), "two descriptors")


@success("recvmsg", "who sent it")
def recvmsg_credentials(process: Process) -> Steps:
    server, client = yield from connected_sockets(process, UNIX_DGRAM)
    yield from process.must("setsockopt", server, 1, _SO_PASSCRED, struct.pack("<i", 1), 4)
    yield from process.must("sendto", client, "x", 1, 0, 0, 0)
    place, found = process.buffer(8), process.buffer(64)
    header = _message(process, (place, 8), control=(found, 64))
    yield from process.measure(server, header, 0, expect=exactly(1))
    own = yield from process.must("getpid")
    process.check(process.read(found + 16, 12) == struct.pack("<3i", own, 0, 0), "process, user, group")


@success("sendmsg", "udp, to an address")
def sendmsg_address(process: Process) -> Steps:
    server = yield from bound_socket(process, UDP)
    client = yield from open_socket(process, UDP)
    header = _message(process, (process.string("hello"), 5), name=UDP.server)
    yield from process.measure(client, header, 0, expect=exactly(5))
    text, _found = yield from _receive(process, server, 8)
    process.check(text == b"hello", "the text at the other end")


@error("sendmsg", "a descriptor that is not there")
def sendmsg_bad_descriptor(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, UNIX_STREAM)
    control = process.buffer(_control(_SCM_RIGHTS, struct.pack("<i", 77)))
    header = _message(process, (process.string("x"), 1), control=(control, 20))
    yield from process.measure(client, header, 0, expect=fails(errno.EBADF))


@error("sendmsg", "as someone else, by nobody")
def sendmsg_forged(process: Process) -> Steps:
    _server, client = yield from connected_sockets(process, UNIX_STREAM)
    control = process.buffer(_control(_SCM_CREDENTIALS, struct.pack("<3i", 1, 0, 0)))
    header = _message(process, (process.string("x"), 1), control=(control, 28))
    yield from process.must("setresuid", _NOBODY, _NOBODY, _NOBODY)
    yield from process.measure(client, header, 0, expect=fails(errno.EPERM))


@error("recvmsg", "nothing there, not waiting")
def recvmsg_none(process: Process) -> Steps:
    server, _client = yield from connected_sockets(process, UDP)
    header = _message(process, (process.buffer(8), 8))
    yield from process.measure(server, header, MSG_DONTWAIT, expect=fails(errno.EAGAIN))


for _call in ("sendmsg", "recvmsg"):

    @error(_call, "too many pieces")
    def too_many(process: Process) -> Steps:
        _server, client = yield from connected_sockets(process, UDP)
        yield from process.measure(client, abi.msghdr(process.buffer(16), 1025), 0, expect=fails(errno.EMSGSIZE))


@error("recvmmsg", "nothing comes in time")
def recvmmsg_timeout(process: Process) -> Steps:
    server, _client = yield from connected_sockets(process, UDP)
    vector = abi.msghdr(process.buffer(abi.iovec((process.buffer(8), 8))), 1) + bytes(8)
    yield from process.measure(server, vector, 1, MSG_DONTWAIT, _SLEEP, expect=fails(errno.EAGAIN))
