"""What the cases about files share: flags of the kernel's headers, and the steps most of them begin or end with.

Why it exists: opening, making a pipe, reading a file back is a line in a case, not five.

Rules of this file:
- Values are those of x86-64 (include/uapi), not of the machine that runs the audit.
- Steps make unmeasured calls only, with `must`: a preparation that fails is the case's failure.
"""

import struct
from typing import TYPE_CHECKING

from thinbox.audit.case import Body
from thinbox.harness.process import Steps

if TYPE_CHECKING:
    from thinbox.audit.case_process import Process

O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL = 0, 1, 2, 0o100, 0o200
O_NOCTTY, O_TRUNC, O_APPEND, O_NONBLOCK = 0o400, 0o1000, 0o2000, 0o4000
O_DSYNC, O_ASYNC, O_DIRECT, O_DIRECTORY = 0o10000, 0o20000, 0o40000, 0o200000
O_NOFOLLOW, O_NOATIME, O_CLOEXEC, O_PATH, O_TMPFILE = 0o400000, 0o1000000, 0o2000000, 0o10000000, 0o20200000
O_SYNC = 0o4010000
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x100, 0x200, 0x400, 0x1000
S_IFIFO, S_IFCHR, S_IFDIR, S_IFBLK, S_IFREG, S_IFLNK, S_IFSOCK = (
    0o010000,
    0o020000,
    0o040000,
    0o060000,
    0o100000,
    0o120000,
    0o140000,
)
AF_UNIX, SOCK_STREAM, SOCK_DGRAM = 1, 1, 2
PROT_READ, PROT_RW, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS = 1, 3, 1, 2, 0x20
MS_NOSUID_NODEV = 2 | 4
CLONE_NEWNS = 0x20000
PAGE = 4096
BAD_FD = 999
"""No case opens that many."""
BAD_ADDRESS = 1
MILLISECOND = 1_000_000
"""In nanoseconds."""


def timespec(seconds: int, nanoseconds: int = 0) -> bytes:
    """Return a struct timespec; as a timeval, the second number is microseconds."""
    return struct.pack("<qq", seconds, nanoseconds)


def iovec(*parts: tuple[int, int]) -> bytes:
    """Return an array of struct iovec from (address, bytes)."""
    return b"".join(struct.pack("<QQ", *part) for part in parts)


def open_file(process: "Process", path: str = "file", flags: int = O_RDONLY, mode: int = 0o644) -> Steps:
    """Open `path`; its value is the descriptor."""
    return (yield from process.must("open", path, flags, mode))


def make_file(process: "Process", path: str, content: bytes = b"", mode: int = 0o644) -> Steps:
    """Create `path` with `content` and close it."""
    handle = yield from process.must("open", path, O_CREAT | O_WRONLY | O_TRUNC, mode)
    if content:
        yield from process.must("write", handle, process.buffer(content), len(content))
    yield from process.must("close", handle)


def read_back(process: "Process", path: str, size: int = 256, offset: int = 0) -> Steps:
    """Its value: at most `size` bytes of what `path` holds from `offset`."""
    handle = yield from process.must("open", path, O_RDONLY, 0)
    place = process.buffer(size)
    count = yield from process.must("pread64", handle, place, size, offset)
    yield from process.must("close", handle)
    return process.read(place, count)


def open_pipe(process: "Process", flags: int = 0) -> Steps:
    """Make a pipe; its value is (reading end, writing end)."""
    place = process.buffer(8)
    yield from process.must("pipe2", place, flags)
    return process.read_int(place), process.read_int(place + 4)


def filled_pipe(process: "Process", content: bytes) -> Steps:
    """Make a pipe that holds `content`; its value is (reading end, writing end)."""
    reader, writer = yield from open_pipe(process)
    yield from process.must("write", writer, process.buffer(content), len(content))
    return reader, writer


def open_pair(process: "Process", kind: int = SOCK_STREAM) -> Steps:
    """Make a pair of connected unix sockets; its value is both."""
    place = process.buffer(8)
    yield from process.must("socketpair", AF_UNIX, kind, 0, place)
    return process.read_int(place), process.read_int(place + 4)


def open_terminal(process: "Process", *, raw: bool = False) -> Steps:
    """Open a new pseudo terminal; its value is (master, slave). `raw`: without line editing, echo and translation."""
    master = yield from open_file(process, "/dev/ptmx", O_RDWR | O_NOCTTY)
    yield from process.must("ioctl", master, 0x40045431, bytes(4))  # TIOCSPTLCK: unlock
    place = process.buffer(4)
    yield from process.must("ioctl", master, 0x80045430, place)  # TIOCGPTN
    slave = yield from open_file(process, f"/dev/pts/{process.read_int(place)}", O_RDWR | O_NOCTTY)
    if raw:
        yield from process.must("ioctl", slave, 0x5402, struct.pack("<4IB19s", 0, 0, 0xBF, 0, 0, bytes(6) + b"\x01"))
    return master, slave


def map_pages(process: "Process", count: int = 1) -> Steps:
    """Map `count` private pages that nothing has touched yet; its value is their address."""
    return (yield from process.must("mmap", 0, count * PAGE, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))


def rest(process: "Process", milliseconds: int = 5) -> Steps:
    """Sleep."""
    yield from process.must("nanosleep", timespec(0, milliseconds * MILLISECOND), 0)


def send_later(handle: int, content: bytes, milliseconds: int = 5) -> Body:
    """Return the life of a child that sleeps, and then writes `content` to `handle`."""

    def body(child: "Process") -> Steps:
        yield from rest(child, milliseconds)
        yield from child.must("write", handle, child.buffer(content), len(content))

    return body


def interrupted_result(process: "Process") -> int:
    """In a signal handler whose first instruction is `process.agent_loop`: rax of what was interrupted, from the
    signal's frame (arch/x86/include/asm/sigframe.h: the 14th register of the ucontext's machine context)."""
    from thinbox.machine.cpu import RSP

    return process.read_int(process.registers[RSP] + 8 + 40 + 13 * 8, 8)
