"""Classic BPF as seccomp runs it: what a filter answers for a call, with all arguments known or none.

Why it exists: what a sandbox allows itself is read from the filter it has loaded, not from its source. libseccomp
compiles such programs and reads none back; `seccomp-tools` is Ruby.

Rules of this file:
- No I/O. A word of the input that is not known makes a test on it go both ways.
- Paths are merged where they meet, so "checked" may be said of a call whose tests cannot all come true; "any" and
  "refused" are never said wrongly.

Source: Linux kernel/seccomp.c (`seccomp_check_filter`: the instructions there are; `seccomp_run_filters`: the strictest
of several filters wins), include/uapi/linux/seccomp.h and bpf_common.h.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from thinbox.errors import InputError

ARCH_X86_64 = 0xC000003E
_WORDS = 16
"""struct seccomp_data in words: nr, arch, instruction pointer (2), six arguments (12)."""
_WORD = 0xFFFFFFFF
_ACTION_FULL = 0xFFFF0000
_ALLOWED = (0x7FFF0000, 0x7FFC0000)  # SECCOMP_RET_ALLOW, SECCOMP_RET_LOG
_MEMORY = 16  # BPF_MEMWORDS

Word = int | None
"""32 bits; None is any value."""


class Reach(Enum):
    """What a filter leaves of a call."""

    ANY = "any arguments"
    CHECKED = "checked"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Instruction:
    """struct sock_filter."""

    code: int
    if_true: int
    if_false: int
    k: int


@dataclass(frozen=True, slots=True)
class _State:
    pc: int
    a: Word = 0
    x: Word = 0
    memory: tuple[Word, ...] = (0,) * _MEMORY


def parse_program(data: bytes) -> tuple[Instruction, ...]:
    """Parse an array of struct sock_filter; InputError if it is none."""
    if not data or len(data) % 8:
        raise InputError(f"not a BPF program: {len(data)} bytes")
    return tuple(Instruction(*fields) for fields in struct.iter_unpack("<HBBI", data))


def call_words(nr: int, args: Sequence[int] | None = None) -> tuple[Word, ...]:
    """Return the input for a 64-bit call; without `args` they, and where it came from, are not known."""
    if args is None:
        return (nr, ARCH_X86_64, *(None,) * (_WORDS - 2))
    halves = [half for value in (0, *args) for half in (value & _WORD, value >> 32 & _WORD)]
    return (nr, ARCH_X86_64, *halves, *(0,) * (_WORDS - 2 - len(halves)))


def filter_answers(program: Sequence[Instruction], words: Sequence[Word]) -> frozenset[int]:
    """Return every value the program can return for `words`.

    Raises:
        InputError: an instruction that seccomp does not have, or a way out of the program.
    """
    answers: set[int] = set()
    seen: set[_State] = set()
    todo = [_State(0)]
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        if not 0 <= state.pc < len(program):
            raise InputError("a BPF program that leaves its end")
        now = program[state.pc]
        if now.code & 7 == 6:  # RET: K, or A
            value = now.k if now.code == 0x06 else state.a
            if now.code not in (0x06, 0x16) or value is None:
                raise InputError(f"a BPF return that cannot be followed: {now}")
            answers.add(value)
        elif now.code & 7 == 5:
            todo += _jump(now, state)
        else:
            todo.append(_step(now, state, words))
    return frozenset(answers)


def reach_of(programs: Sequence[Sequence[Instruction]], nr: int) -> Reach:
    """Tell what all of `programs` together leave of call `nr`; without a program everything is allowed."""
    each = [{answer & _ACTION_FULL in _ALLOWED for answer in filter_answers(p, call_words(nr))} for p in programs]
    if any(True not in allowed for allowed in each):
        return Reach.REFUSED
    return Reach.CHECKED if any(False in allowed for allowed in each) else Reach.ANY


_TESTS: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: bool(a & b),
}
_SUMS: dict[int, Callable[[int, int], int]] = {
    0x00: lambda a, b: a + b,
    0x10: lambda a, b: a - b,
    0x20: lambda a, b: a * b,
    0x30: lambda a, b: a // b if b else 0,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << b if b < 32 else 0,
    0x70: lambda a, b: a >> b if b < 32 else 0,
    0xA0: lambda a, b: a ^ b,
}


def _jump(now: Instruction, state: _State) -> list[_State]:
    if now.code == 0x05:
        ways = [now.k]
    else:
        test = _TESTS.get(now.code & 0xF0)
        if test is None:
            raise InputError(f"unknown BPF jump {now.code:#x}")
        other = state.x if now.code & 8 else now.k
        if state.a is None or other is None:
            ways = [now.if_true, now.if_false]
        else:
            ways = [now.if_true if test(state.a, other) else now.if_false]
    return [_State(state.pc + 1 + way, state.a, state.x, state.memory) for way in ways]


def _step(now: Instruction, state: _State, words: Sequence[Word]) -> _State:
    a, x, memory = state.a, state.x, state.memory
    code, k = now.code, now.k
    if code == 0x20 and k % 4 == 0 and k < 4 * _WORDS:  # LD W ABS
        a = words[k // 4]
    elif code in (0x00, 0x80):  # LD IMM, LD LEN
        a = k if code == 0x00 else 4 * _WORDS
    elif code in (0x01, 0x81):
        x = k if code == 0x01 else 4 * _WORDS
    elif code in (0x60, 0x61) and k < _MEMORY:
        a, x = (memory[k], x) if code == 0x60 else (a, memory[k])
    elif code in (0x02, 0x03) and k < _MEMORY:
        memory = (*memory[:k], a if code == 0x02 else x, *memory[k + 1 :])
    elif code in (0x07, 0x87):  # TAX, TXA
        a, x = (a, a) if code == 0x07 else (x, x)
    elif code == 0x84:  # NEG
        a = None if a is None else -a & _WORD
    elif code & 7 == 4 and code & 0xF0 in _SUMS:
        other = x if code & 8 else k
        known = a is not None and other is not None
        a = _SUMS[code & 0xF0](a, other) & _WORD if known else None  # type: ignore[arg-type]
    else:
        raise InputError(f"unknown BPF instruction {code:#x}")
    return _State(state.pc + 1, a, x, memory)
