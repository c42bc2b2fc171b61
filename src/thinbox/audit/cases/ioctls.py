"""`ioctl`: of files in general, terminals, pipes and sockets, devices, name spaces."""

import errno
import struct

from thinbox.audit.case import error, plain, success
from thinbox.audit.case_process import Process
from thinbox.audit.expect import POSITIVE, ZERO, Expect, exactly, fails
from thinbox.audit.files import (
    AF_UNIX,
    BAD_ADDRESS,
    BAD_FD,
    O_NOCTTY,
    O_NONBLOCK,
    O_RDWR,
    SOCK_DGRAM,
    filled_pipe,
    open_file,
    open_pair,
    open_pipe,
    open_terminal,
)
from thinbox.harness.process import Steps

TCGETS, TCSETS, TCSETSW, TCSETSF, TCSBRK, TCXONC, TCFLSH = 0x5401, 0x5402, 0x5403, 0x5404, 0x5409, 0x540A, 0x540B
TIOCEXCL, TIOCNXCL, TIOCSCTTY, TIOCGPGRP, TIOCSPGRP, TIOCOUTQ = 0x540C, 0x540D, 0x540E, 0x540F, 0x5410, 0x5411
TIOCSTI, TIOCGWINSZ, TIOCSWINSZ, TIOCMGET, TIOCMBIS, FIONREAD = 0x5412, 0x5413, 0x5414, 0x5415, 0x5416, 0x541B
TIOCGSERIAL, FIONBIO, TIOCNOTTY, TIOCSETD, TIOCGETD = 0x541E, 0x5421, 0x5422, 0x5423, 0x5424
TCSBRKP, TIOCGSID, TCGETS2, TIOCGICOUNT = 0x5425, 0x5429, 0x802C542A, 0x545D
FIONCLEX, FIOCLEX, FIOASYNC, FIOQSIZE = 0x5450, 0x5451, 0x5452, 0x5460
TIOCGPTN, TIOCSPTLCK, TIOCGPTLCK, TIOCGPTPEER, TIOCPKT = 0x80045430, 0x40045431, 0x80045439, 0x5441, 0x5420
FIBMAP, FIGETBSZ, FICLONE, FS_IOC_FIEMAP, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR = (
    1,
    2,
    0x40049409,
    0xC020660B,
    0x80086601,
    0x40086602,
    0x801C581F,
)
SIOCGIFCONF, SIOCGIFFLAGS, SIOCGIFADDR, SIOCGIFMTU, SIOCGIFINDEX, SIOCSIFMTU = (
    0x8912,
    0x8913,
    0x8915,
    0x8921,
    0x8933,
    0x8922,
)
SIOCINQ, SIOCOUTQ = 0x541B, 0x5411
NS_GET_USERNS, NS_GET_NSTYPE, NS_GET_OWNER_UID = 0xB701, 0xB703, 0xB704
CLONE_NEWNS = 0x20000
RNDGETENTCNT, RNDADDTOENTCNT = 0x80045200, 0x40045201
RTC_RD_TIME = 0x80247009
VT_GETSTATE, KDGKBMODE, KDGETMODE = 0x5603, 0x4B44, 0x4B3B

plain("ioctl", "closed descriptor", (BAD_FD, TCGETS, 0), fails(errno.EBADF))
plain("ioctl", "TCGETS of the console", (0, TCGETS, bytes(64)), ZERO)
plain("ioctl", "TCGETS, bad address", (0, TCGETS, BAD_ADDRESS), fails(errno.EFAULT))


def _of_file(name: str, path: str, command: int, argument: int | bytes, expect: Expect, *, flags: int = 0) -> None:
    """`ioctl` of a file opened by name."""

    @(error if expect.is_error else success)("ioctl", name)
    def body(process: Process) -> Steps:
        handle = yield from open_file(process, path, flags)
        place = process.buffer(argument) if isinstance(argument, bytes) else argument
        yield from process.measure(handle, command, place, expect=expect)


_of_file("FIOCLEX", "file", FIOCLEX, 0, ZERO)
_of_file("FIONCLEX", "file", FIONCLEX, 0, ZERO)
_of_file("FIONBIO", "fifo", FIONBIO, struct.pack("<i", 1), ZERO, flags=O_RDWR)
_of_file("FIOASYNC", "fifo", FIOASYNC, struct.pack("<i", 1), ZERO, flags=O_RDWR)
_of_file("FICLONE, from another file system", "file", FICLONE, 0, fails(errno.EXDEV), flags=O_RDWR)
_of_file("FSGETXATTR, tmpfs", "file", FS_IOC_FSGETXATTR, bytes(28), ZERO)
_of_file("TIOCGICOUNT, serial", "/dev/ttyS0", TIOCGICOUNT, bytes(80), ZERO, flags=O_NOCTTY | O_NONBLOCK)
_of_file("FIOQSIZE", "file", FIOQSIZE, bytes(8), ZERO)
_of_file("FIGETBSZ", "file", FIGETBSZ, bytes(4), ZERO)
_of_file("FIONREAD, regular", "file", FIONREAD, bytes(4), ZERO)
_of_file("FIONREAD, fifo", "fifo", FIONREAD, bytes(4), ZERO, flags=O_RDWR)
_of_file("FIONBIO, bad address", "fifo", FIONBIO, BAD_ADDRESS, fails(errno.EFAULT), flags=O_RDWR)
_of_file("TCGETS, regular", "file", TCGETS, bytes(64), fails(errno.ENOTTY))
_of_file("TCGETS, directory", "dir", TCGETS, bytes(64), fails(errno.ENOTTY))
_of_file("TCGETS, /dev/null", "/dev/null", TCGETS, bytes(64), fails(errno.ENOTTY))
_of_file("TCGETS, proc", "/proc/version", TCGETS, bytes(64), fails(errno.ENOTTY))
_of_file("FIEMAP, tmpfs", "file", FS_IOC_FIEMAP, bytes(32), fails(errno.EOPNOTSUPP))
_of_file("GETFLAGS, tmpfs", "file", FS_IOC_GETFLAGS, bytes(8), ZERO)
_of_file("SETFLAGS, tmpfs, no dump", "file", FS_IOC_SETFLAGS, struct.pack("<q", 0x40), ZERO)
_of_file("GETFLAGS, proc", "/proc/version", FS_IOC_GETFLAGS, bytes(8), fails(errno.ENOTTY))
_of_file("FIBMAP, tmpfs", "file", FIBMAP, bytes(4), fails(errno.EINVAL, errno.ENOTTY))
_of_file("unknown command", "file", 0x12345678, 0, fails(errno.ENOTTY))
_of_file("NS_GET_NSTYPE", "/proc/self/ns/mnt", NS_GET_NSTYPE, 0, exactly(CLONE_NEWNS))
_of_file("NS_GET_USERNS", "/proc/self/ns/mnt", NS_GET_USERNS, 0, POSITIVE)
_of_file(
    "NS_GET_OWNER_UID, not of a user name space", "/proc/self/ns/mnt", NS_GET_OWNER_UID, bytes(4), fails(errno.EINVAL)
)
_of_file("random, entropy count", "/dev/urandom", RNDGETENTCNT, bytes(4), ZERO)
_of_file("random, entropy added", "/dev/urandom", RNDADDTOENTCNT, struct.pack("<i", 8), ZERO)
_of_file("VT_GETSTATE", "/dev/tty0", VT_GETSTATE, bytes(6), ZERO, flags=O_NOCTTY)
_of_file("KDGETMODE", "/dev/tty0", KDGETMODE, bytes(8), ZERO, flags=O_NOCTTY)
_of_file("KDGKBMODE", "/dev/tty0", KDGKBMODE, bytes(8), ZERO, flags=O_NOCTTY)
_of_file("serial, TIOCGSERIAL", "/dev/ttyS0", TIOCGSERIAL, bytes(72), ZERO, flags=O_NOCTTY | O_NONBLOCK)
_of_file("serial, TIOCMGET", "/dev/ttyS0", TIOCMGET, bytes(4), ZERO, flags=O_NOCTTY | O_NONBLOCK)
_of_file("serial, TIOCMBIS", "/dev/ttyS0", TIOCMBIS, struct.pack("<i", 4), ZERO, flags=O_NOCTTY | O_NONBLOCK)
_of_file("serial, TCSBRKP", "/dev/ttyS0", TCSBRKP, 1, ZERO, flags=O_NOCTTY | O_NONBLOCK | O_RDWR)


@success("ioctl", "RTC_RD_TIME")
def rtc_time(process: Process) -> Steps:
    handle = yield from open_file(process, "/dev/rtc0")
    place = process.buffer(36)
    process.volatile(place, 36)
    yield from process.measure(handle, RTC_RD_TIME, place, expect=ZERO)
    process.check(70 <= process.read_int(place + 20) < 200, "a year")


# -- terminals -------------------------------------------------------------------------------------------
def _of_terminal(
    name: str, command: int, argument: int | bytes, expect: Expect = ZERO, *, master: bool = False, old: bytes = b""
) -> None:
    """`ioctl` of a pseudo terminal's slave (or master) in which `old` was typed."""

    @(error if expect.is_error else success)("ioctl", name)
    def body(process: Process) -> Steps:
        ends = yield from open_terminal(process)
        if old:
            yield from process.must("write", ends[0], process.buffer(old), len(old))
        place = process.buffer(argument) if isinstance(argument, bytes) else argument
        yield from process.measure(ends[0 if master else 1], command, place, expect=expect)
        if command == FIONREAD:
            process.check(process.read_int(place) == len(old), f"{len(old)} bytes wait")


TERMIOS = struct.pack("<4IB19s", 0, 0, 0xBF, 0, 0, bytes(6) + b"\x01" + bytes(12))
_of_terminal("TCGETS", TCGETS, bytes(36))
_of_terminal("TCGETS2", TCGETS2, bytes(44))
_of_terminal("TCSETS, raw", TCSETS, TERMIOS)
_of_terminal("TCSETSW, raw", TCSETSW, TERMIOS)
_of_terminal("TCSETSF, raw, with a line typed", TCSETSF, TERMIOS, old=b"typed\n")
_of_terminal("TCSETS, bad address", TCSETS, BAD_ADDRESS, fails(errno.EFAULT))
_of_terminal("TCSBRK", TCSBRK, 1)
_of_terminal("TCXONC, stopped", TCXONC, 0)
_of_terminal("TCFLSH", TCFLSH, 2, old=b"typed\n")
_of_terminal("TCFLSH, unknown queue", TCFLSH, 9, fails(errno.EINVAL))
_of_terminal("TIOCGWINSZ", TIOCGWINSZ, bytes(8))
_of_terminal("TIOCSWINSZ", TIOCSWINSZ, struct.pack("<4H", 24, 80, 0, 0), master=True)
_of_terminal("FIONREAD, a line typed", FIONREAD, bytes(4), old=b"typed\n")
_of_terminal("TIOCOUTQ", TIOCOUTQ, bytes(4))
_of_terminal("TIOCEXCL", TIOCEXCL, 0)
_of_terminal("TIOCNXCL", TIOCNXCL, 0)
_of_terminal("TIOCGETD", TIOCGETD, bytes(4))
_of_terminal("TIOCSETD, the one it has", TIOCSETD, bytes(4))
_of_terminal("TIOCSETD, no such discipline", TIOCSETD, struct.pack("<i", 77), fails(errno.EINVAL))
_of_terminal("TIOCSTI", TIOCSTI, b"x")
_of_terminal("TIOCPKT", TIOCPKT, struct.pack("<i", 1), master=True)
_of_terminal("TIOCGPTN", TIOCGPTN, bytes(4), master=True)
_of_terminal("TIOCSPTLCK", TIOCSPTLCK, struct.pack("<i", 1), master=True)
_of_terminal("TIOCGPTLCK", TIOCGPTLCK, bytes(4), master=True)
_of_terminal("TIOCGPTPEER", TIOCGPTPEER, O_RDWR | O_NOCTTY, POSITIVE, master=True)
_of_terminal("TIOCGSID, not the controlling one", TIOCGSID, bytes(4), fails(errno.ENOTTY))
_of_terminal("TIOCGPGRP, not the controlling one", TIOCGPGRP, bytes(4), fails(errno.ENOTTY))
_of_terminal("TIOCNOTTY, not the controlling one", TIOCNOTTY, 0, fails(errno.ENOTTY))
_of_terminal("TIOCMGET, a pseudo terminal has no lines", TIOCMGET, bytes(4), fails(errno.ENOTTY, errno.EINVAL))


def _controlling(process: Process) -> Steps:
    """Its value: a slave, in a new session, not yet controlling."""
    _, slave = yield from open_terminal(process)
    yield from process.must("setsid")
    return slave


@success("ioctl", "TIOCSCTTY")
def set_controlling(process: Process) -> Steps:
    slave = yield from _controlling(process)
    yield from process.measure(slave, TIOCSCTTY, 0, expect=ZERO)
    yield from process.must("open", "/dev/tty", O_RDWR, 0)


def _of_controlling(name: str, command: int) -> None:
    @success("ioctl", name)
    def body(process: Process) -> Steps:
        slave = yield from _controlling(process)
        yield from process.must("ioctl", slave, TIOCSCTTY, 0)
        pid = yield from process.must("getpid")
        place = process.buffer(struct.pack("<i", pid))
        yield from process.measure(slave, command, place, expect=ZERO)
        process.check(process.read_int(place) == pid, "this process's number")


_of_controlling("TIOCGPGRP", TIOCGPGRP)
_of_controlling("TIOCSPGRP", TIOCSPGRP)
_of_controlling("TIOCGSID", TIOCGSID)


@success("ioctl", "TIOCNOTTY")
def no_controlling(process: Process) -> Steps:
    slave = yield from _controlling(process)
    yield from process.must("ioctl", slave, TIOCSCTTY, 0)
    yield from process.must("rt_sigaction", 1, struct.pack("<4Q", 1, 0, 0, 0), 0, 8)  # SIGHUP ignored
    yield from process.measure(slave, TIOCNOTTY, 0, expect=ZERO)
    result = yield from process.call("open", "/dev/tty", O_RDWR, 0)
    process.check(result == -errno.ENXIO, "no controlling terminal")


# -- pipes and sockets -----------------------------------------------------------------------------------
@success("ioctl", "FIONREAD, pipe")
def pipe_bytes(process: Process) -> Steps:
    reader, _ = yield from filled_pipe(process, b"12345")
    place = process.buffer(4)
    yield from process.measure(reader, FIONREAD, place, expect=ZERO)
    process.check(process.read_int(place) == 5, "5 bytes wait")


@success("ioctl", "SIOCOUTQ, unix socket")
def socket_sent(process: Process) -> Steps:
    one, _other = yield from open_pair(process)
    yield from process.must("write", one, b"12345", 5)
    place = process.buffer(4)
    yield from process.measure(one, SIOCOUTQ, place, expect=ZERO)
    process.check(process.read_int(place) > 5, "memory is charged")


@error("ioctl", "unknown command, pipe")
def pipe_unknown(process: Process) -> Steps:
    reader, _ = yield from open_pipe(process)
    yield from process.measure(reader, 0x12345678, 0, expect=fails(errno.ENOTTY))


@success("ioctl", "SIOCINQ, unix socket")
def socket_bytes(process: Process) -> Steps:
    one, other = yield from open_pair(process)
    yield from process.must("write", one, b"12345", 5)
    place = process.buffer(4)
    yield from process.measure(other, SIOCINQ, place, expect=ZERO)
    process.check(process.read_int(place) == 5, "5 bytes wait")


def _of_interface(name: str, command: int, request: bytes, expect: Expect = ZERO, *, family: int = 2) -> None:
    @(error if expect.is_error else success)("ioctl", name)
    def body(process: Process) -> Steps:
        handle = yield from process.must("socket", family, SOCK_DGRAM, 0)
        yield from process.measure(handle, command, process.buffer(request), expect=expect)


LO = struct.pack("<16s24x", b"lo")
_of_interface("SIOCGIFFLAGS", SIOCGIFFLAGS, LO)
_of_interface("SIOCGIFADDR", SIOCGIFADDR, LO)
_of_interface("SIOCGIFMTU", SIOCGIFMTU, LO)
_of_interface("SIOCSIFMTU", SIOCSIFMTU, struct.pack("<16si20x", b"lo", 1500))
_of_interface("SIOCGIFINDEX, by a unix socket", SIOCGIFINDEX, LO, family=AF_UNIX)
_of_interface("SIOCGIFMTU, no such interface", SIOCGIFMTU, struct.pack("<16s24x", b"x0"), fails(errno.ENODEV))


@success("ioctl", "SIOCGIFCONF")
def interfaces(process: Process) -> Steps:
    handle = yield from process.must("socket", 2, SOCK_DGRAM, 0)
    place = process.buffer(400)
    request = process.buffer(struct.pack("<i4xQ", 400, place))
    yield from process.measure(handle, SIOCGIFCONF, request, expect=ZERO)
    process.check(process.read(place, 3) == b"lo\0" and process.read_int(request) == 40, "lo alone")
