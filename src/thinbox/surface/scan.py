"""The gadgets in one piece of code, found by ROPgadget.

Why it exists: ROPgadget says what a gadget is (docs/decisions/0008-gadgets.md); this file hands it bytes and
keeps address, length and kind of what it found, and treats the kernel's thunks as the branches they are.

Rules of this file:
- A gadget belongs to the piece its first byte lies in; the piece is followed by enough bytes to end it. So pieces
  can be scanned in any order and by any process.
- A direct jump ends no gadget, whatever ROPgadget's list says, unless it goes to a thunk.
- No engine and no machine is imported: worker processes import this module.
"""

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thinbox.address import to_signed

DEPTH_BYTES = 10
"""ROPgadget's own default of --depth: a gadget starts at its last instruction or up to nine bytes before it."""
TAIL_BYTES = 16
"""What a gadget can reach behind the piece its first byte lies in: it has at most DEPTH_BYTES - 1 bytes and a last
instruction of 8 (`jmp [r12 + disp32]`), so 17 bytes, one of them in the piece."""

_BRANCH_BYTES = 5
_CALL, _JUMP = 0xE8, 0xE9
_DIRECT = re.compile(r"0x[0-9a-f]+")


class GadgetKind(enum.IntEnum):
    """How a gadget ends."""

    RETURN = 0
    """`ret`, far ones too; a jump to a return thunk."""
    JUMP = 1
    """`jmp` by register or memory; a jump to an indirect thunk."""
    CALL = 2
    """`call` by register or memory; a call of an indirect thunk."""
    SYSTEM = 3
    """`syscall`, `sysret`, `sysenter`, `iret`, `int 0x80`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`code` lies at `start`, and `after` behind it; gadgets that start in `code` are wanted.

    `after` has at least `TAIL_BYTES` bytes, or all there are up to the end of executable memory.
    """

    start: int
    code: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """Gadgets, ascending by start, which is unique: `starts` uint64, `lengths` (bytes) and `kinds` uint8."""

    starts: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint8]
    kinds: npt.NDArray[np.uint8]


class _Amd64:
    """What ROPgadget asks of a binary."""

    def getArch(self) -> int:  # noqa: N802 - ROPgadget's name
        import capstone

        return int(capstone.CS_ARCH_X86)

    def getArchMode(self) -> int:  # noqa: N802 - ROPgadget's name
        import capstone

        return int(capstone.CS_MODE_64)

    def getEndian(self) -> int:  # noqa: N802 - ROPgadget's name
        return 0


class _Options:
    """What ROPgadget asks of its command line: its defaults, and the bytes of each gadget."""

    filter = align = None
    depth = DEPTH_BYTES
    noinstr = callPreceded = multibr = False  # noqa: N815 - ROPgadget's name
    dump = True


def scan_piece(piece: Piece, thunks: Mapping[int, GadgetKind]) -> Found:
    """Return the gadgets that start in `piece.code`; `thunks` gives what a jump to an address comes to."""
    from ropgadget.gadgets import Gadgets

    finder = Gadgets(_Amd64(), _Options(), 0)
    data = piece.code + piece.after
    section = {"opcodes": data, "vaddr": piece.start}
    end = piece.start + len(piece.code)
    found: dict[int, tuple[int, int]] = {}
    for group in (finder.addROPGadgets, finder.addJOPGadgets, finder.addSYSGadgets):
        for gadget in group(section):
            kind = _kind_of(gadget["gadget"].rsplit(" ; ", 1)[-1])
            if kind is not None and gadget["vaddr"] < end:
                _keep(found, gadget["vaddr"], len(gadget["bytes"]), kind)
    for start, length, kind in _thunk_gadgets(finder, piece.start, data, thunks):
        if start < end:
            _keep(found, start, length, kind)
    return _as_arrays(found)


def _keep(found: dict[int, tuple[int, int]], start: int, length: int, kind: GadgetKind) -> None:
    """Two patterns may find the same gadget (`ret` is in `bnd ret`); the shorter end is where it ends."""
    if start not in found or length < found[start][0]:
        found[start] = (length, int(kind))


def _as_arrays(found: dict[int, tuple[int, int]]) -> Found:
    starts = sorted(found)
    return Found(
        np.array(starts, np.uint64),
        np.array([found[start][0] for start in starts], np.uint8),
        np.array([found[start][1] for start in starts], np.uint8),
    )


def _kind_of(last: str) -> GadgetKind | None:
    """Tell how a gadget ends from its last instruction as Capstone writes it; None for a direct branch."""
    words = last.removeprefix("notrack ").removeprefix("repz ").split(" ", 1)
    if words[0].startswith("ret"):
        return GadgetKind.RETURN
    if words[0] not in ("jmp", "call"):
        return GadgetKind.SYSTEM
    if _DIRECT.fullmatch(words[1]):
        return None
    return GadgetKind.JUMP if words[0] == "jmp" else GadgetKind.CALL


def _thunk_gadgets(
    finder: object, base: int, data: bytes, thunks: Mapping[int, GadgetKind]
) -> Iterable[tuple[int, int, GadgetKind]]:
    """Yield (start, bytes, kind) of each gadget that ends in a branch to a thunk.

    ROPgadget has no pattern for `call rel32`, and takes `jmp rel32` for an ending, so each branch is shown to it as a
    jump, behind the bytes before it; what it then finds that ends in that very jump is a gadget.
    """
    for at, target in _branches_to(data, base, thunks):
        kind = thunks[target]
        if data[at] == _CALL and kind is GadgetKind.JUMP:
            kind = GadgetKind.CALL
        first = max(0, at - DEPTH_BYTES + 1)
        code = data[first:at] + bytes([_JUMP]) + data[at + 1 : at + _BRANCH_BYTES]
        for gadget in finder.addJOPGadgets({"opcodes": code, "vaddr": base + first}):  # type: ignore[attr-defined]
            length = len(gadget["bytes"])
            ends_there = gadget["vaddr"] + length == base + at + _BRANCH_BYTES
            if ends_there and gadget["gadget"].rsplit(" ; ", 1)[-1] == f"jmp {target:#x}":
                yield gadget["vaddr"], length, kind


def _branches_to(data: bytes, base: int, targets: Mapping[int, GadgetKind]) -> list[tuple[int, int]]:
    """Return (offset, target) of every `call rel32` or `jmp rel32` to one of `targets`, at any alignment."""
    if len(data) < _BRANCH_BYTES or not targets:
        return []
    octets = np.frombuffer(data, np.uint8)
    at = np.flatnonzero((octets[: 1 - _BRANCH_BYTES] & 0xFE) == _CALL)  # e8 and e9
    distance = np.zeros(len(at), np.int64)
    for byte in range(4):
        distance |= octets[at + 1 + byte].astype(np.int64) << (8 * byte)
    distance = (distance ^ (1 << 31)) - (1 << 31)
    reached = (at + np.int64(to_signed(base + _BRANCH_BYTES)) + distance).view(np.uint64)
    hits = np.isin(reached, np.array(sorted(targets), np.uint64))
    return list(zip(at[hits].tolist(), reached[hits].tolist(), strict=True))
