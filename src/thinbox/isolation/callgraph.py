"""A static call graph of the kernel's live text: which functions a call's handler can reach.

Why it exists: "can this handler get there at all?" bounds what an exploit finds in a call. Edges are found
by arithmetic on the whole text at once, not by decoding it: every 32-bit distance behind a call or jump
opcode that leads to a known place is an edge. Bytes that only look like one add edges, none is missed.

Indirect calls: a call site's prototype cannot be known from the binary, so every function whose address is
taken, in text or data, can be called by every function. The system call tables, and tables that name
functions for other uses (exports, kprobes' blacklist), do not count.

Rules of this file: numpy on bytes; addresses are unsigned; functions are the distinct text symbols.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_CALL, _JUMP, _TWO_BYTES, _LEA = 0xE8, 0xE9, 0x0F, 0x8D
_RIP_RELATIVE = 0x05

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CallGraph:
    """`starts` ascending; edge i goes from function `froms[i]` to function `tos[i]` (indexes); `taken` indexes."""

    starts: npt.NDArray[np.uint64]
    froms: npt.NDArray[np.int32]
    tos: npt.NDArray[np.int32]
    taken: npt.NDArray[np.int32]
    entries: tuple[int, ...]
    """Where every call begins: do_syscall_64 and its like."""
    dispatchers: tuple[int, ...]
    """Functions whose own edges say nothing of a call: they choose the handler (x64_sys_call)."""
    handlers: tuple[int, ...]
    """The handler of each call number."""
    _reached: dict[int, Mask] = field(default_factory=dict)

    def index_of(self, vaddr: int) -> int:
        """Return the index of the function around `vaddr`, -1 before the first."""
        return int(np.searchsorted(self.starts, np.uint64(vaddr), "right")) - 1

    def reaches(self, nr: int, vaddr: int) -> bool:
        """Tell whether a call of number `nr` can come to the function around `vaddr`; -1 is any handler's."""
        found = self._reached.get(nr)
        if found is None:
            found = self._reached[nr] = self._reach(nr)
        index = self.index_of(vaddr)
        return index >= 0 and bool(found[index])

    def reachable_count(self, nr: int) -> int:
        """Return how many functions a call of number `nr` can come to."""
        self.reaches(nr, 0)
        return int(self._reached[nr].sum())

    def _reach(self, nr: int) -> Mask:
        """Follow the edges from the entry path, the handler, and every function whose address is taken."""
        chosen = self.handlers if nr < 0 else self.handlers[nr : nr + 1]
        cut = np.array([self.index_of(vaddr) for vaddr in self.dispatchers], np.int32)
        keep = ~np.isin(self.froms, cut) if nr >= 0 else np.ones(len(self.froms), bool)
        froms, tos = self.froms[keep], self.tos[keep]
        reached = np.zeros(len(self.starts), bool)
        reached[[self.index_of(vaddr) for vaddr in (*self.entries, *self.dispatchers, *chosen)]] = True
        reached[self.taken] = True
        while True:
            new = tos[reached[froms] & ~reached[tos]]
            if not len(new):
                return reached
            reached[new] = True


def build_callgraph(
    text: bytes,
    text_start: int,
    starts: Sequence[int],
    data: Iterable[bytes],
    entries: tuple[int, ...],
    dispatchers: tuple[int, ...],
    handlers: tuple[int, ...],
) -> CallGraph:
    """Build the graph of `text` (at `text_start`); `data` are the pieces of memory that may hold pointers.

    `starts` are the functions' addresses, ascending, within the text.
    """
    code = np.frombuffer(text, np.uint8)
    begin = np.array(starts, np.uint64)
    offsets = (begin - np.uint64(text_start)).astype(np.int64)
    is_start = np.zeros(len(code) + 1, bool)
    is_start[offsets] = True
    owner = (np.cumsum(is_start[:-1]) - 1).astype(np.int32)
    froms, tos, taken = _edges(code, is_start, owner)
    low = np.uint32(text_start & 0xFFFFFFFF)
    immediate = _windows(code) - low  # wraps: what is below the text becomes large
    inside = np.flatnonzero(immediate < len(code))
    values = immediate[inside].astype(np.int64)
    found = [taken, owner[values[is_start[values]]]]
    for piece in data:
        words = np.frombuffer(piece[: len(piece) & ~7], np.uint64) - np.uint64(text_start)
        values = words[words < np.uint64(len(code))].astype(np.int64)
        found.append(owner[values[is_start[values]]])
    pairs = np.unique(np.stack([froms, tos], axis=1), axis=0) if len(froms) else np.zeros((0, 2), np.int32)
    taken = np.unique(np.concatenate(found)).astype(np.int32)
    return CallGraph(begin, pairs[:, 0].copy(), pairs[:, 1].copy(), taken, entries, dispatchers, handlers)


def _windows(code: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return the 32-bit little-endian word at every offset of `code`."""
    wide = code.astype(np.uint32)
    eight, sixteen, more = np.uint32(8), np.uint32(16), np.uint32(24)
    found: npt.NDArray[np.uint32] = wide[:-3] | wide[1:-2] << eight | wide[2:-1] << sixteen | wide[3:] << more
    return found


def _edges(
    code: npt.NDArray[np.uint8], is_start: Mask, owner: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return edges (from, to) of calls, jumps, branches and of running on, and functions named by `lea`."""
    distance = _windows(code)[1:].view(np.int32).astype(np.int64)
    # Where the distance stands. At 1 the byte two before is the text's last: that can only add an edge.
    at = np.arange(1, 1 + len(distance))
    target = at + 4 + distance
    inside = (target >= 0) & (target < len(code))
    at, target = at[inside], target[inside]
    before, two_before = code[at - 1], code[at - 2]
    jumps = (before == _JUMP) | ((two_before == _TWO_BYTES) & (before & 0xF0 == 0x80))
    edge = (((before == _CALL) & is_start[target]) | jumps) & (owner[at] != owner[target])
    named = (two_before == _LEA) & (before & 0xC7 == _RIP_RELATIVE) & is_start[target]
    short = np.flatnonzero((code == 0xEB) | (code & 0xF0 == 0x70))
    short = short[short < len(code) - 2]
    near = short + 2 + code[short + 1].view(np.int8)
    near_ok = (near >= 0) & (near < len(code))
    short, near = short[near_ok], near[near_ok]
    # Short jumps between functions: only assembly has them, and only to a neighbour.
    apart = owner[short] != owner[near]
    running_on = np.arange(len(np.flatnonzero(is_start[:-1])) - 1, dtype=np.int32)
    ends = np.flatnonzero(is_start[:-1])[1:] - 1
    running_on = running_on[~np.isin(code[ends], (0xCC, 0xC3, 0x90, 0x00))]  # int3, ret, nop: does not run on
    froms = np.concatenate([owner[at[edge]], owner[short[apart]], running_on])
    tos = np.concatenate([owner[target[edge]], owner[near[apart]], running_on + 1])
    return froms.astype(np.int32), tos.astype(np.int32), owner[target[named]].astype(np.int32)
