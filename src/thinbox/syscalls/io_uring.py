"""The names of io_uring's operations.

Source: include/uapi/linux/io_uring.h, `enum io_uring_op`; numbers are ABI and never change.
"""

OPERATIONS = (
    *("nop", "readv", "writev", "fsync", "read_fixed", "write_fixed", "poll_add", "poll_remove", "sync_file_range"),
    *("sendmsg", "recvmsg", "timeout", "timeout_remove", "accept", "async_cancel", "link_timeout", "connect"),
    *("fallocate", "openat", "close", "files_update", "statx", "read", "write", "fadvise", "madvise", "send", "recv"),
    *("openat2", "epoll_ctl", "splice", "provide_buffers", "remove_buffers", "tee", "shutdown", "renameat"),
    *("unlinkat", "mkdirat", "symlinkat", "linkat", "msg_ring", "fsetxattr", "setxattr", "fgetxattr", "getxattr"),
    *("socket", "uring_cmd", "send_zc", "sendmsg_zc", "read_multishot", "waitid", "futex_wait", "futex_wake"),
    *("futex_waitv", "fixed_fd_install", "ftruncate", "bind", "listen", "recv_zc", "epoll_wait", "readv_fixed"),
    *("writev_fixed", "pipe"),
)

_AS_CALLS = {
    "read": ("read", "pread64"), "read_fixed": ("read", "pread64"), "read_multishot": ("read", "pread64"),
    "write": ("write", "pwrite64"), "write_fixed": ("write", "pwrite64"),
    "readv": ("readv", "preadv", "preadv2"), "readv_fixed": ("readv", "preadv", "preadv2"),
    "writev": ("writev", "pwritev", "pwritev2"), "writev_fixed": ("writev", "pwritev", "pwritev2"),
    "fsync": ("fsync", "fdatasync"), "renameat": ("renameat", "renameat2"), "accept": ("accept", "accept4"),
    "poll_add": ("poll", "ppoll"), "send": ("sendto",), "recv": ("recvfrom",), "send_zc": ("sendto",),
    "sendmsg_zc": ("sendmsg",), "recv_zc": ("recvfrom",), "fadvise": ("fadvise64",), "futex_wait": ("futex",),
    "futex_wake": ("futex",), "uring_cmd": ("ioctl",), "pipe": ("pipe2",),
}  # fmt: skip
"""Operations that do what calls of other names do, or of several by their flags; the others are named as their call."""
_OWN = frozenset(
    (
        *("nop", "poll_remove", "timeout", "timeout_remove", "async_cancel", "link_timeout", "files_update"),
        *("provide_buffers", "remove_buffers", "msg_ring", "fixed_fd_install"),
    )
)
BY_PATH = frozenset(("openat", "openat2", "statx", "getxattr"))
"""Operations that read a file by its name."""


def calls_of_operation(name: str) -> tuple[str, ...]:
    """Return the system calls of which the operation may do what they do; none if it is about the ring alone."""
    return () if name in _OWN else _AS_CALLS.get(name, (name,))


def operation_name(number: int) -> str:
    """Return the name of an operation, `#N` for one that is newer than this list."""
    return OPERATIONS[number] if 0 <= number < len(OPERATIONS) else f"#{number}"
