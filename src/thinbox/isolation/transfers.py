"""How the CPU came to a fetch: the last block, its last instruction, and the frames of the stack.

Why it exists: a policy that judges transfers needs instructions, not addresses. Functions are decoded from
the live text once, linearly from their start, so that a block that starts between two instructions as
compiled is noticed.

Source: Intel SDM vol. 2 (CALL, JMP, Jcc, RET, IRET); arch/x86/lib/retpoline.S.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass


class Flow(enum.Enum):
    """What an instruction does to the next instruction's address."""

    NEXT = "next"
    JUMP = "jump"
    BRANCH = "branch"
    CALL = "call"
    JUMP_INDIRECT = "indirect jump"
    CALL_INDIRECT = "indirect call"
    RETURN = "return"
    IRET = "iret"
    STOP = "trap"


@dataclass(frozen=True, slots=True)
class Source:
    """The block that ran last, `start` to `end` (exclusive).

    `straight` means that the engine was reading on behind `end`: the block at `start` has not run, and
    reaches the next page without a jump.
    """

    start: int
    end: int
    straight: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the stack: `lookup` is an address inside the function that was called, `back` where it returns."""

    lookup: int
    back: int


@dataclass(frozen=True, slots=True)
class Stack:
    """The frames, innermost first; `complete` if they lead down to the call's entry."""

    frames: tuple[Frame, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """`flow`, and for direct jumps and calls the `target` (0 otherwise)."""

    vaddr: int
    flow: Flow
    target: int


@dataclass(frozen=True, slots=True)
class DecodedFunction:
    """A function's instructions, by the address behind each.

    `leaves` are the targets of direct jumps out of it, and its end if its last instruction does not stop there.
    """

    start: int
    end: int
    by_end: dict[int, Instruction]
    starts: frozenset[int]
    leaves: frozenset[int]
    jumps_indirectly: bool


_ALWAYS = {"jmp": Flow.JUMP, "call": Flow.CALL}
_INDIRECT = {"jmp": Flow.JUMP_INDIRECT, "call": Flow.CALL_INDIRECT}
_RETURNS = {"ret": Flow.RETURN, "retf": Flow.RETURN, "retfq": Flow.RETURN}
_STOPS = frozenset(("int3", "ud2", "ud1", "ud0", "hlt"))
_RETURNS |= dict.fromkeys(("iret", "iretd", "iretq", "sysret", "sysretq", "sysexit"), Flow.IRET)


def flow_of(mnemonic: str, operands: str) -> tuple[Flow, int]:
    """Return what an instruction, in capstone's words, does, and its target."""
    word = mnemonic.rsplit(" ", 1)[-1]
    if word in _RETURNS:
        return _RETURNS[word], 0
    if word in _STOPS:
        return Flow.STOP, 0
    if word[0] != "j" and word[:4] not in ("call", "loop"):
        return Flow.NEXT, 0
    if not operands.startswith("0x"):
        return _INDIRECT.get(word, Flow.JUMP_INDIRECT), 0
    return _ALWAYS.get(word, Flow.BRANCH), int(operands, 16)


def decode_function(code: bytes, start: int) -> DecodedFunction:
    """Decode `code`, the bytes of the function at `start`; bytes that are no instruction are stepped over."""
    import capstone  # late: only policies that judge transfers need it

    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.skipdata = True
    end, by_end, starts, leaves, indirect = start + len(code), {}, set(), set(), False
    last = Flow.STOP
    for vaddr, size, mnemonic, operands in decoder.disasm_lite(code, start):
        flow, target = flow_of(mnemonic, operands)
        by_end[vaddr + size] = Instruction(vaddr, flow, target)
        starts.add(vaddr)
        if flow in (Flow.JUMP, Flow.BRANCH) and not start <= target < end:
            leaves.add(target)
        indirect = indirect or flow is Flow.JUMP_INDIRECT
        if mnemonic != "nop":  # padding between functions is int3, or nop behind an instruction that leaves
            last = flow
    if last in (Flow.NEXT, Flow.BRANCH):
        leaves.add(end)
    return DecodedFunction(start, end, by_end, frozenset(starts), frozenset(leaves), indirect)


class LiveCode:
    """The functions decoded so far; forgotten when the kernel patches its text."""

    def __init__(self) -> None:
        self._version = -1
        self._functions: dict[int, DecodedFunction] = {}

    def function(self, start: int, end: int, version: int, read: Callable[[int, int], bytes]) -> DecodedFunction:
        """Return the function at `start`, read with `read(vaddr, bytes)` if its text is newer than the one kept."""
        if version != self._version:
            self._functions.clear()
            self._version = version
        found = self._functions.get(start)
        if found is None:
            found = self._functions[start] = decode_function(read(start, end - start), start)
        return found
