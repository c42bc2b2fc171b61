"""Counts every system call of this machine's kernel, by process and number, in the kernel itself.

Why it exists: what a sandbox asks of the host can only be seen on the host. strace breaks gVisor's start-up, for its
Sentry traces; sampling misses calls. A BPF program at the tracepoint `sys_enter` sees each call that runs: what a
tracer or a seccomp filter takes away before does not come there, and so gVisor catches its tenants' calls. Why by hand:
bcc, bpftrace and perf need a compiler or a tool that may not be there; this is some ninety instructions.

Rules of this file: nothing outlives the open descriptors; a call that could not be counted is an error, not a smaller
count.

Source: Linux include/uapi/linux/bpf.h; kernel/trace/bpf_trace.c; kernel/entry/common.c (`syscall_trace_enter`: ptrace,
then seccomp, then the tracepoint).
"""

import ctypes
import errno
import os
import struct
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from thinbox.errors import InputError

_BPF = 321
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_NEXT, _PROG_LOAD, _RAW_TRACEPOINT_OPEN = 0, 1, 2, 4, 5, 17
_HASH, _RAW_TRACEPOINT = 1, 17
_ENTRIES = 65_536
"""Room for pairs of a process and a call: hundreds of processes with a hundred different calls each."""
_SECCOMP, _SET_MODE_FILTER = 317, 1
_PRCTL, _PR_SET_SECCOMP = 157, 22
_DI = 112
"""Offset of the first argument in struct pt_regs (arch/x86/include/asm/ptrace.h)."""
_LOST = 0xFFFFFFFF
_NEEDS = {
    errno.EPERM: "needs root (CAP_BPF and CAP_PERFMON)",
    errno.ENOSYS: "needs a kernel with bpf(2)",
    errno.EINVAL: "needs a kernel with BPF at raw tracepoints (Linux 4.17, CONFIG_BPF_EVENTS)",
    errno.ENOENT: "needs a kernel with the tracepoint sys_enter (CONFIG_FTRACE_SYSCALLS)",
}


@dataclass(frozen=True, slots=True)
class CallCounts:
    """Calls of one process, by how often it had asked for a seccomp filter before, then by number."""

    by_filters: dict[int, dict[int, int]] = field(default_factory=dict)

    @property
    def confined(self) -> dict[int, int]:
        """Those after it had asked for its last filter; none if it asked for none.

        The last one counts because programs ask for filters that do not exist, to see what the kernel can do.
        """
        last = max(self.by_filters)
        return self.by_filters[last] if last else {}

    @property
    def all(self) -> dict[int, int]:
        """All of them."""
        return dict(sum((Counter(calls) for calls in self.by_filters.values()), Counter()))


class CallCounter:
    """A context in which every call is counted.

    Raises:
        InputError: the kernel refuses, with what it needs.
    """

    def __enter__(self) -> Self:
        self._open: list[int] = []
        try:
            self._counts = self._map(key_bytes=8)
            filtered = self._map(key_bytes=4)
            key, zero = (ctypes.create_string_buffer(struct.pack("<II", *pair), 8) for pair in ((0, _LOST), (0, 0)))
            _bpf(_MAP_UPDATE, struct.pack("<IIQQQ", self._counts, 0, *map(ctypes.addressof, (key, zero)), 0))
            program = _load(_counting(self._counts, filtered))
            self._open.append(program)
            name = ctypes.create_string_buffer(b"sys_enter")
            self._open.append(_bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QII", ctypes.addressof(name), program, 0)))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def read(self) -> dict[int, CallCounts]:
        """Return the counts so far by process id; InputError if calls were lost for lack of room."""
        found: dict[int, CallCounts] = {}
        key, value = ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)
        next_key = ctypes.create_string_buffer(8)
        first = True
        while True:
            pointer = 0 if first else ctypes.addressof(key)
            first = False
            try:
                _bpf(_MAP_NEXT, struct.pack("<IIQQ", self._counts, 0, pointer, ctypes.addressof(next_key)))
            except FileNotFoundError:
                return found
            key.raw = next_key.raw
            _bpf(_MAP_LOOKUP, struct.pack("<IIQQQ", self._counts, 0, *map(ctypes.addressof, (key, value)), 0))
            pid, number = struct.unpack("<II", key.raw)
            (times,) = struct.unpack("<Q", value.raw)
            if number == _LOST:
                if times:
                    raise InputError(f"{times} calls of this machine were not counted: more than {_ENTRIES} kinds")
                continue
            counts = found.setdefault(pid, CallCounts())
            counts.by_filters.setdefault(number >> 16, {})[number & 0xFFFF] = times

    def _map(self, key_bytes: int) -> int:
        handle = _bpf(_MAP_CREATE, struct.pack("<IIIII", _HASH, key_bytes, 8, _ENTRIES, 0))
        self._open.append(handle)
        return handle

    def _close(self) -> None:
        while self._open:
            os.close(self._open.pop())


_R0, _R1, _R2, _R3, _R4, _R6, _R7, _R8, _R9, _R10 = 0, 1, 2, 3, 4, 6, 7, 8, 9, 10
_KEY, _SPACE = -8, -16
"""On the stack: process id and number; eight bytes for a value."""


def _counting(counts: int, filtered: int) -> bytes:
    """Return the program, for the two maps' descriptors."""
    add_one = _move(_R1, 1) + _ins(0xDB, _R0, _R1)  # lock *(u64 *)r0 += r1
    set_mark = _ins(0x07, _R8, imm=1) + _ins(0x7B, _R10, _R8, _SPACE)
    set_mark += _with_map(filtered) + _stack(_R3, _SPACE) + _move(_R4, 0) + _call(2)
    mark = b"".join(
        (
            # probe_read_kernel(space, 8, &regs->di): does it ask for a filter?
            _stack(_R1, _SPACE), _move(_R2, 8), _ins(0xBF, _R3, _R6), _ins(0x07, _R3, imm=_DI), _call(113),
            _ins(0x79, _R1, _R10, _SPACE), _ins(0x5D, _R1, _R9, off=len(set_mark) // 8), set_mark,
        )
    )  # fmt: skip
    insert = b"".join(
        (_ins(0x7A, _R10, off=_SPACE, imm=1), _with_map(counts), _stack(_R3, _SPACE), _move(_R4, 1), _call(2))
    )
    # Another CPU was faster, so it is there now; or there is no room, which goes to the key of the lost.
    again = _with_map(counts) + _call(1)
    lost = _ins(0x62, _R10, off=_KEY, imm=0) + _ins(0x62, _R10, off=_KEY + 4, imm=-1) + _with_map(counts) + _call(1)
    leave = _move(_R0, 0) + _ins(0x95)
    return b"".join(
        (
            _ins(0x79, _R6, _R1, 0), _ins(0x79, _R7, _R1, 8),  # struct pt_regs *regs; long number
            _ins(0x57, _R7, imm=0xFFFF),
            _call(14), _ins(0x77, _R0, imm=32), _ins(0x63, _R10, _R0, _KEY),  # process id
            _with_map(filtered), _call(1),
            _move(_R8, 0), _ins(0x15, _R0, off=1), _ins(0x79, _R8, _R0),  # filters loaded so far
            _ins(0xBF, _R1, _R8), _ins(0x67, _R1, imm=16), _ins(0x4F, _R1, _R7), _ins(0x63, _R10, _R1, _KEY + 4),
            _move(_R9, _SET_MODE_FILTER), _ins(0x15, _R7, off=2, imm=_SECCOMP),
            _move(_R9, _PR_SET_SECCOMP), _ins(0x55, _R7, off=len(mark) // 8, imm=_PRCTL), mark,
            _with_map(counts), _call(1), _ins(0x15, _R0, off=4), add_one, leave,
            insert, _ins(0x55, _R0, off=2), leave,
            again, _ins(0x15, _R0, off=4), add_one, leave,
            lost, _ins(0x15, _R0, off=2), add_one, leave,
        )
    )  # fmt: skip


def _ins(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """Struct bpf_insn."""
    return struct.pack("<BBhi", code, dst | src << 4, off, imm)


def _move(register: int, value: int) -> bytes:
    return _ins(0xB7, register, imm=value)


def _stack(register: int, offset: int) -> bytes:
    return _ins(0xBF, register, _R10) + _ins(0x07, register, imm=offset)


def _with_map(handle: int) -> bytes:
    """Load the map as first argument, the address of the key as second."""
    return _ins(0x18, _R1, 1, imm=handle) + _ins(0) + _stack(_R2, _KEY)


def _call(helper: int) -> bytes:
    return _ins(0x85, imm=helper)


def _load(program: bytes) -> int:
    text, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    where = (ctypes.addressof(text), ctypes.addressof(licence))
    return _bpf(_PROG_LOAD, struct.pack("<IIQQIIQII", _RAW_TRACEPOINT, len(program) // 8, *where, 0, 0, 0, 0, 0))


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    library = ctypes.CDLL(None, use_errno=True)
    result = library.syscall(ctypes.c_long(_BPF), ctypes.c_long(command), buffer, ctypes.c_long(128))
    if result >= 0:
        return int(result)
    code = ctypes.get_errno()
    if command == _MAP_NEXT and code == errno.ENOENT:
        raise FileNotFoundError
    raise InputError(f"counting host calls {_NEEDS.get(code, f'failed: {os.strerror(code)}')}")
