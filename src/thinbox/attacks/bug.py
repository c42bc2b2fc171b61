"""Bugs: what a memory corruption leaves behind, at one instruction of one call.

Why it exists: an exploit presumes a bug that is not there. Its effect is put into memory or registers where the
bug would have been; everything after that instruction is executed by the guest.

Rules of this file: a bug happens once, in the attacker's own call; it never moves the CPU elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import U64, to_signed
from thinbox.attacks.corruption import Corruption
from thinbox.machine import cpu as registers

if TYPE_CHECKING:
    from thinbox.attacks.payload import LiveText

REGISTERS = {
    "rax": registers.RAX,
    "rcx": registers.RCX,
    "rdx": registers.RDX,
    "rbx": registers.RBX,
    "rbp": registers.RBP,
    "rsi": registers.RSI,
    "rdi": registers.RDI,
    **{f"r{number}": number for number in range(8, 16)},
}


@dataclass(frozen=True, slots=True)
class Bug:
    """`happen(corruption)` is done once, before the first of the instructions at `places` runs."""

    places: tuple[int, ...]
    happen: Callable[[Corruption], None]


def overwritten_return(text: "LiveText", function: str, words: bytes) -> Bug:
    """The return address of `function`, and what lies above it on the stack, is overwritten when it returns (a stack
    overflow that spares or knows the canary, or a write to the stack)."""

    def happen(corruption: Corruption) -> None:
        corruption.write(to_signed(corruption.regs[registers.RSP]), words)

    return Bug(text.returns(function), happen)


def wrong_registers(place: int, values: dict[str, int]) -> Bug:
    """Registers hold what they were loaded with from a corrupted object: a function pointer, its argument, the
    pointer of a copy."""

    def happen(corruption: Corruption) -> None:
        for name, value in values.items():
            corruption.regs[REGISTERS[name]] = value & U64

    return Bug((place,), happen)


def corrupted_object(place: int, vaddr: int, data: bytes) -> Bug:
    """An object of the kernel's is overwritten (use after free, overflow of its neighbour) when `place` is reached."""

    def happen(corruption: Corruption) -> None:
        corruption.write(to_signed(vaddr), data)

    return Bug((place,), happen)
