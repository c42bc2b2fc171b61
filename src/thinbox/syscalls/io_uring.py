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

_AS_CALL = {
    "read_fixed": "read", "write_fixed": "write", "readv_fixed": "readv", "writev_fixed": "writev",
    "read_multishot": "read", "poll_add": "poll", "accept": "accept4", "send": "sendto", "recv": "recvfrom",
    "send_zc": "sendto", "sendmsg_zc": "sendmsg", "recv_zc": "recvfrom", "fadvise": "fadvise64",
    "futex_wait": "futex", "futex_wake": "futex", "uring_cmd": "ioctl", "pipe": "pipe2",
}  # fmt: skip
"""Operations that do what a call of another name does; the others are named as their call."""
_OWN = frozenset(
    (
        *("nop", "poll_remove", "timeout", "timeout_remove", "async_cancel", "link_timeout", "files_update"),
        *("provide_buffers", "remove_buffers", "msg_ring", "fixed_fd_install"),
    )
)


def call_of_operation(name: str) -> str | None:
    """Return the system call that does what the operation does; None if it is about the ring alone."""
    return None if name in _OWN else _AS_CALL.get(name, name)


def operation_name(number: int) -> str:
    """Return the name of an operation, `#N` for one that is newer than this list."""
    return OPERATIONS[number] if 0 <= number < len(OPERATIONS) else f"#{number}"
