"""Small programs that make one call again and again: static x86-64 executables, assembled here.

Why it exists: what a call costs in a sandbox is measured with the same bytes everywhere, without a compiler, a libc
or a vDSO in between. The calls are those of the table measured for gVisor (docs/plan.md).

Rules of this file: a program runs its loop `count` times and exits with 0; whoever runs it measures the time of the
whole process and takes off that of a program with another count.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from thinbox.syscalls.table import call_number

_VADDR = 0x400000
_DATA_VADDR = 0x410000
_RAX, _RDI, _RSI, _RDX, _R10, _R8, _R9 = 0, 7, 6, 2, 10, 8, 9
_ORDER = (_RDI, _RSI, _RDX, _R10, _R8, _R9)
RESULT = "result"
"""An argument: what the call before returned."""
_ZERO, _NULL, _ROOT, _PIPE, _BUFFER = 0, 32, 64, 96, 512


@dataclass(frozen=True, slots=True)
class Step:
    """One call: name and arguments, integers or `RESULT`."""

    name: str
    args: tuple[int | str, ...] = ()


def _at(offset: int) -> int:
    return _DATA_VADDR + offset


_FD = 3
"""The first descriptor a program gets beside its three."""
LOOPS: dict[str, tuple[tuple[Step, ...], tuple[Step, ...]]] = {
    "getppid": ((), (Step("getppid"),)),
    "read 1 B /dev/zero": ((Step("open", (_at(_ZERO), 0)),), (Step("read", (_FD, _at(_BUFFER), 1)),)),
    "write 1 B /dev/null": ((Step("open", (_at(_NULL), 1)),), (Step("write", (_FD, _at(_BUFFER), 1)),)),
    "open+close": ((), (Step("open", (_at(_NULL), 0)), Step("close", (RESULT,)))),
    "stat": ((), (Step("stat", (_at(_ROOT), _at(_BUFFER))),)),
    "pipe write+read": (
        (Step("pipe", (_at(_PIPE),)),),
        (Step("write", (_FD + 1, _at(_BUFFER), 1)), Step("read", (_FD, _at(_BUFFER), 1))),
    ),
    "mmap+munmap": (
        (),
        (Step("mmap", (0, 4096, 3, 0x22, -1, 0)), Step("munmap", (RESULT, 4096))),
    ),
    "fork+wait": ((), (Step("fork"), Step("wait4", (-1, 0, 0, 0)))),
}
"""Preparation and body of each loop, by the name of the table's row."""


def build_loop(name: str, count: int) -> bytes:
    """Return an executable that makes the calls of `LOOPS[name]` `count` times (1 to 2^31 - 1)."""
    before, body = LOOPS[name]
    code = b"".join(build_step(step) for step in before)
    code += b"\xbb" + struct.pack("<I", count)  # mov ebx, count
    loop = b"".join(build_step(step) for step in body)
    code += loop + b"\xff\xcb"  # dec ebx
    code += b"\x0f\x85" + struct.pack("<i", -(len(loop) + 8))  # jnz to the loop
    return build_elf(code + build_step(Step("exit_group", (0,))))


def build_waiter() -> bytes:
    """Return an executable that writes a byte to its output, and ends when its input does or has a byte."""
    steps = (Step("write", (1, _at(_ROOT), 1)), Step("read", (0, _at(_BUFFER), 1)), Step("exit_group", (0,)))
    return build_elf(b"".join(build_step(step) for step in steps))


def build_step(step: Step) -> bytes:
    """Return the code of one call."""
    code = b""
    for register, value in zip(_ORDER, step.args, strict=False):
        if isinstance(value, str):
            # mov rdi, rax (a result is only ever a first argument here)
            code += b"\x48\x89\xc7"
        else:
            code += _load(register, value)
    code += _load(_RAX, call_number(step.name)) + b"\x0f\x05"
    if step.name == "fork":
        # test eax, eax; jnz over the child's exit; ud2, for that fails where nobody is left to let it go on
        leave = build_step(Step("exit_group", (0,))) + b"\x0f\x0b"
        code += b"\x85\xc0\x75" + bytes((len(leave),)) + leave
    return code


def _load(register: int, value: int) -> bytes:
    """`mov r64, imm32` (sign-extended)."""
    return bytes((0x49 if register > 7 else 0x48, 0xC7, 0xC0 | register & 7)) + struct.pack("<i", value)


def build_elf(code: bytes, more: Mapping[int, bytes] | None = None) -> bytes:
    """Return an executable that begins with `code`; `more` goes into its page of data, by offset (256 and up)."""
    data = bytearray(4096)
    for offset, text in ((_ZERO, b"/dev/zero"), (_NULL, b"/dev/null"), (_ROOT, b"/")):
        data[offset : offset + len(text)] = text
    for offset, piece in (more or {}).items():
        data[offset : offset + len(piece)] = piece
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9), 2, 62, 1, _VADDR + 64 + 2 * 56, 64, 0, 0, 64, 56, 2, 0, 0, 0,
    )  # fmt: skip
    size = 64 + 2 * 56 + len(code)
    text = _segment(5, 0, _VADDR, size)
    return (
        header + text + _segment(6, 0x10000, _DATA_VADDR, len(data)) + code.ljust(0x10000 - 64 - 2 * 56, b"\xcc") + data
    )


def _segment(flags: int, offset: int, vaddr: int, size: int) -> bytes:
    return struct.pack("<IIQQQQQQ", 1, flags, offset, vaddr, vaddr, size, size, 0x1000)
