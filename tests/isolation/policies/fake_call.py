"""A call for policies to judge, made of a few functions of hand-assembled code."""

import bisect
from dataclasses import dataclass

from thinbox.isolation.transfers import Source, Stack
from thinbox.isolation.verdict import Access, AccessKind

BASE = 0xFFFF_FFFF_8100_0000


@dataclass(frozen=True)
class Symbol:
    name: str
    start: int
    end_exclusive: int


class FakeCall:
    """`functions`: name -> (start, code), ascending; what lies between belongs to the one before, or `tail` bytes of it."""

    nr, name, text_start = 1, "write", BASE

    def __init__(self, functions, executed=(), source=None, frames=None, fixups=(), graph=None, tail=1 << 32):
        self.functions = functions
        self.symbols = []
        places = sorted((start, name) for name, (start, _code) in functions.items())
        for (start, name), (end, _next) in zip(places, [*places[1:], (places[-1][0] + 0x4000, "")], strict=True):
            self.symbols.append(Symbol(name, start, min(end, start + len(functions[name][1]) + tail)))
        self.executed = {vaddr >> 12 for vaddr in executed}
        self.source, self.fixups, self.graph = source, set(fixups), graph
        self.stack = Stack(tuple(frames or ()), complete=frames is not None)
        self.granted_pages, self.notes, self.text_version, self.registers = 0, {}, 0, (0,) * 16

    def is_executable(self, vaddr):
        return vaddr >> 12 in self.executed

    def symbol_at(self, vaddr):
        index = bisect.bisect_right([symbol.start for symbol in self.symbols], vaddr) - 1
        return self.symbols[index] if index >= 0 and vaddr < self.symbols[index].end_exclusive else None

    def read_code(self, vaddr, size):
        start, code = next((s, c) for s, c in self.functions.values() if s == vaddr)
        assert len(code) <= size
        return code + b"\xcc" * (size - len(code))

    def read_word(self, _vaddr):
        return None

    def starts_of(self, name, near):
        return tuple(symbol.start for symbol in self.symbols if symbol.name == name)

    def is_fixup(self, vaddr):
        return vaddr in self.fixups

    def fetch(self, vaddr, rip=None):
        symbol = self.symbol_at(vaddr)
        rip = vaddr if rip is None else rip
        if symbol is None:
            return Access(vaddr, AccessKind.FETCH, rip, None, 0, 0)
        return Access(vaddr, AccessKind.FETCH, rip, symbol.name, symbol.start, symbol.end_exclusive)


def call_to(at, target):
    """`call target`, to be placed at `at`."""
    return b"\xe8" + (target - at - 5).to_bytes(4, "little", signed=True)


def jump_to(at, target):
    return b"\xe9" + (target - at - 5).to_bytes(4, "little", signed=True)


def block(start, size):
    return Source(start, start + size)
