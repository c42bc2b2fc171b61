"""The kernel's user-space structures that several areas of the corpus use, as bytes.

Why it exists: a case says `timespec(0, 5_000_000)`, not a format string. Layouts are those of include/uapi for
x86-64; constants that Python's standard library has are taken from there.
"""

import socket
import struct

PAGE = 4096
MILLISECOND = 1_000_000
SA_SIGINFO, SA_RESTORER, SA_RESTART, SA_NODEFER, SA_ONSTACK = 0x4, 0x0400_0000, 0x1000_0000, 0x4000_0000, 0x0800_0000
CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
CLONE_VFORK, CLONE_THREAD, CLONE_SYSVSEM = 0x4000, 0x10000, 0x40000
THREAD = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM


def timespec(seconds: int, nanoseconds: int = 0) -> bytes:
    """`struct timespec`, also `struct timeval` with microseconds."""
    return struct.pack("<qq", seconds, nanoseconds)


def itimerspec(value_ns: int, interval_ns: int = 0) -> bytes:
    """`struct itimerspec`: the interval comes first."""
    return timespec(*divmod(interval_ns, 10**9)) + timespec(*divmod(value_ns, 10**9))


def sigset(*signals: int) -> bytes:
    """The kernel's `sigset_t`: 64 bits."""
    return struct.pack("<Q", sum(1 << (number - 1) for number in signals))


def sigaction(handler: int, flags: int = 0, *masked: int) -> bytes:
    """The kernel's `struct sigaction`; its restorer is 0: handlers of a case call rt_sigreturn themselves."""
    return struct.pack("<QQQ", handler, flags | (SA_RESTORER if handler > 1 else 0), 0) + sigset(*masked)


def siginfo(number: int, code: int = -1, value: int = 0) -> bytes:
    """`siginfo_t` as a sender fills it; code -1 is SI_QUEUE."""
    return struct.pack("<iii4xiiQ", number, 0, code, 0, 0, value).ljust(128, b"\0")


def iovec(*parts: tuple[int, int]) -> bytes:
    """An array of `struct iovec`: (address, bytes)."""
    return b"".join(struct.pack("<QQ", vaddr, size) for vaddr, size in parts)


def sockaddr_un(path: bytes) -> bytes:
    """`struct sockaddr_un`, without trailing zeros but the path's own."""
    return struct.pack("<H", socket.AF_UNIX) + path


def sockaddr_in(port: int, host: str = "127.0.0.1") -> bytes:
    """`struct sockaddr_in`."""
    return struct.pack("<H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(host) + bytes(8)


def sockaddr_in6(port: int, host: str = "::1") -> bytes:
    """`struct sockaddr_in6`."""
    head = struct.pack("<H", socket.AF_INET6) + struct.pack(">HI", port, 0)
    return head + socket.inet_pton(socket.AF_INET6, host) + bytes(4)


def msghdr(iov: int, iov_count: int, *, name: tuple[int, int] = (0, 0), control: tuple[int, int] = (0, 0)) -> bytes:
    """`struct msghdr`; `name` and `control` are (address, bytes)."""
    return struct.pack("<QI4xQQQQi4x", name[0], name[1], iov, iov_count, control[0], control[1], 0)


def words(data: bytes) -> tuple[int, ...]:
    """`data` as unsigned 64-bit numbers."""
    return struct.unpack(f"<{len(data) // 8}Q", data)
