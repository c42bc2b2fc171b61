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


def operation_name(number: int) -> str:
    """Return the name of an operation, `#N` for one that is newer than this list."""
    return OPERATIONS[number] if 0 <= number < len(OPERATIONS) else f"#{number}"
