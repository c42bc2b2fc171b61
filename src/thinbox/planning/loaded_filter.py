"""The seccomp filters a running process has loaded, read back from the kernel.

Why it exists: what gVisor allows itself depends on its version, platform and options; the kernel knows what holds.

Rules of this file: the process is stopped for the reading and goes on afterwards, whatever happened.

Source: ptrace(2), PTRACE_SECCOMP_GET_FILTER (Linux 4.4, CONFIG_CHECKPOINT_RESTORE, CAP_SYS_ADMIN).
"""

import contextlib
import ctypes
import errno
import os
from pathlib import Path

from thinbox.errors import InputError
from thinbox.planning.classic_bpf import Instruction, parse_program

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL = 0x40000000
_MOST = 64
"""More filters than any sandbox stacks."""
_MODE_FILTER = 2
"""SECCOMP_MODE_FILTER (include/uapi/linux/seccomp.h)."""

Program = tuple[Instruction, ...]


def read_filters(pid: int) -> tuple[Program, ...]:
    """Return the filters of process `pid`; none if it has none.

    Raises:
        InputError: this user or kernel may not read them, or the process is gone.
    """
    try:
        _ptrace(_SEIZE, pid, 0, None)
    except OSError as error:
        raise InputError(f"the filter could not be read back: {_why(error)}") from error
    try:
        _ptrace(_INTERRUPT, pid, 0, None)
        os.waitpid(pid, _WALL)
        found: list[Program] = []
        while len(found) < _MOST:
            program = _filter(pid, len(found))
            if program is None:
                break
            found.append(program)
        return tuple(found)
    except OSError as error:
        raise InputError(f"the filter could not be read back: {_why(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            _ptrace(_DETACH, pid, 0, None)


def _filter(pid: int, index: int) -> Program | None:
    try:
        length = _ptrace(_GET_FILTER, pid, index, None)
    except FileNotFoundError:
        return None
    except OSError as error:
        # Without any filter the kernel says EINVAL; so it does for this request where it does not know it.
        if error.errno == errno.EINVAL and index == 0 and not _is_filtered(pid):
            return None
        raise
    buffer = ctypes.create_string_buffer(8 * length)
    _ptrace(_GET_FILTER, pid, index, buffer)
    return parse_program(buffer.raw)


def _is_filtered(pid: int) -> bool:
    """Tell whether the kernel says that a filter holds for `pid` (proc(5), `Seccomp` of status)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return f"Seccomp:\t{_MODE_FILTER}" in lines


def _ptrace(request: int, pid: int, address: int, data: "ctypes.Array[ctypes.c_char] | None") -> int:
    call = ctypes.CDLL(None, use_errno=True).ptrace
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    result = int(call(request, pid, address, ctypes.addressof(data) if data is not None else None))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _why(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "needs root (CAP_SYS_ADMIN), and a process that no one else traces"
    if error.errno in (errno.EIO, errno.EINVAL):
        return "needs a kernel with CONFIG_CHECKPOINT_RESTORE"
    return error.strerror or str(error)
