"""A machine without a kernel: identity tables, GDT, TSS and IDT made by hand, for code of a few bytes.

The first 2 MiB are mapped one to one in 4 KiB pages that every ring may use; a test may take a page away.
Every handler is one `hlt`, at which `BareMachine.run` returns.
"""

import struct

from unicorn import x86_const

from thinbox.errors import MachineError
from thinbox.machine.cpu_model import DEFAULT_CPU
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.machine.machine import Machine

PML4, PDPT, DIRECTORY, TABLE = 0x1000, 0x2000, 0x3000, 0x4000
GDT, TSS, IDT = 0x5000, 0x6000, 0x7000
START, USER, HANDLERS = 0x10000, 0x20000, 0x30000
STACK, STACK0, IST1, USER_STACK = 0x48000, 0x58000, 0x68000, 0x78000
"""Tops of stacks: where the code starts, TSS.RSP0, TSS.IST1, ring 3."""
MOVED_IDT = 0x70000
DATA, HOLE = 0x80000, 0x1FF000
"""HOLE is a page that is not mapped."""
CODE0, DATA0, DATA3, CODE3, TASK = 0x10, 0x18, 0x23, 0x2B, 0x30
INTERRUPT_GATE, TRAP_GATE = 14, 15
IF, RF, TF = 1 << 9, 1 << 16, 1 << 8

HLT, NOP, STI, CLI, IRETQ = b"\xf4", b"\x90", b"\xfb", b"\xfa", b"\x48\xcf"


def push(value: int) -> bytes:
    """`push imm32`."""
    return b"\x68" + struct.pack("<i", value)


def mov(register: int, value: int) -> bytes:
    """`movabs r, imm64`, for the eight registers without a REX.B bit."""
    return bytes((0x48, 0xB8 + register)) + struct.pack("<Q", value & (1 << 64) - 1)


# mov ax, 0x30 / ltr ax / mov ax, 0x18 / mov ss, ax / mov ds, ax
_LOAD_SEGMENTS = b"\x66\xb8\x30\x00\x0f\x00\xd8\x66\xb8\x18\x00\x8e\xd0\x8e\xd8"
PRELUDE_BYTES = len(_LOAD_SEGMENTS) + 5 + 5 + 2
CODE = START + PRELUDE_BYTES
"""Where the test's own ring 0 code begins."""


class BareMachine:
    """`ring0` runs at CODE; if it is given, `ring3` runs at USER instead, with IF as in `flags`."""

    def __init__(
        self, ring0: bytes = b"", *, ring3: bytes | None = None, flags: int = 2, cpu: str = DEFAULT_CPU
    ) -> None:
        self.machine = machine = Machine(96, cpu)
        self.memory, self.cpu = machine.memory, machine.cpu
        self._halted = False
        self._write_tables()
        self._write_descriptors()
        if ring3 is not None:
            ring0 = push(DATA3) + push(USER_STACK) + push(flags) + push(CODE3) + push(USER) + IRETQ
            self.memory.write(USER, ring3)
        elif flags != 2:
            # push flags / popfq
            ring0 = push(flags) + b"\x9d" + ring0
        # ... / push CODE0 / push CODE / retfq
        self.memory.write(START, _LOAD_SEGMENTS + push(CODE0) + push(CODE) + b"\x48\xcb" + ring0 + HLT)
        self._enter()

    def _write_tables(self) -> None:
        self.memory.write(PML4, struct.pack("<Q", PDPT | 7))
        self.memory.write(PDPT, struct.pack("<Q", DIRECTORY | 7))
        self.memory.write(DIRECTORY, struct.pack("<Q", TABLE | 7))
        self.memory.write(TABLE, struct.pack("<512Q", *(i << 12 | 7 for i in range(512))))
        self.protect(HOLE, 0)

    def _write_descriptors(self) -> None:
        code, data = 0x00AF9B000000FFFF, 0x00CF93000000FFFF
        ring3 = 3 << 45
        task = 0x67 | (TSS & 0xFFFFFF) << 16 | 0x89 << 40
        self.memory.write(GDT, struct.pack("<8Q", 0, 0, code, data, data | ring3, code | ring3, task, 0))
        self.memory.write(TSS + 4, struct.pack("<Q", STACK0))
        self.memory.write(TSS + 36, struct.pack("<Q", IST1))
        for vector in range(256):
            self.set_gate(vector)
        self.memory.write(HANDLERS, HLT * 16 * 256)

    def set_gate(
        self, vector: int, *, kind: int = INTERRUPT_GATE, dpl: int = 0, ist: int = 0, present: bool = True
    ) -> None:
        """Point `vector` at its handler."""
        target = HANDLERS + 16 * vector
        low = target & 0xFFFF | CODE0 << 16 | ist << 32 | kind << 40 | dpl << 45 | present << 47
        self.memory.write(IDT + 16 * vector, struct.pack("<QQ", low | target >> 16 << 48, 0))

    def set_handler(self, vector: int, code: bytes) -> None:
        """Replace the `hlt` of a handler (at most 16 bytes)."""
        assert len(code) <= 16
        self.memory.write(HANDLERS + 16 * vector, code)

    def move_idt(self, vector: int) -> int:
        """Move the table so that the gate of `vector` is the first of a page; return that page's address."""
        gates = self.memory.read(IDT, 4096)
        self.memory.write(MOVED_IDT + 4096 - 16 * vector, gates)
        self.cpu.uc.reg_write(x86_const.UC_X86_REG_IDTR, (0, MOVED_IDT + 4096 - 16 * vector, 4095, 0))
        return MOVED_IDT + 4096

    def protect(self, vaddr: int, bits: int) -> None:
        """Map the page of `vaddr` with `bits` (0: not at all)."""
        self.memory.write(TABLE + 8 * (vaddr >> 12), struct.pack("<Q", (vaddr & ~0xFFF) | bits if bits else 0))

    def _enter(self) -> None:
        uc = self.cpu.uc
        uc.msr_write(0xC0000080, 0xD01)
        uc.reg_write(x86_const.UC_X86_REG_CR4, 0x20)
        uc.reg_write(x86_const.UC_X86_REG_CR3, PML4)
        uc.reg_write(x86_const.UC_X86_REG_CR0, 0x80050033)
        uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, GDT, 63, 0))
        uc.reg_write(x86_const.UC_X86_REG_IDTR, (0, IDT, 4095, 0))
        self.cpu.regs[registers.RSP] = STACK
        self.cpu.flags = 2
        self.cpu.set_rip(START)

    def init_pics(self) -> None:
        """Master at vector 0x20, slave at 0x28, nothing masked: what Linux and every PC system do."""
        for base, vector, third in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
            for port, value in ((base, 0x11), (base + 1, vector), (base + 1, third), (base + 1, 1), (base + 1, 0)):
                self.machine.pic.write(port, value)

    def run(self, limit_ns: int | None = None) -> bool:
        """Run to the next `hlt` with nothing waiting, or for `limit_ns` of virtual time; tell whether it halted."""

        def halt(_due_ns: int | None) -> bool:
            self._halted = True
            return True

        self._halted = False
        self.machine.on_idle = halt
        end_ns = None if limit_ns is None else self.machine.now_ns + limit_ns
        if end_ns is not None:
            # The CPU is looked at then, too, not only after a whole slice.
            self.machine.hold_interrupts(end_ns)
        self.machine.run(lambda: self._halted or (end_ns is not None and self.machine.now_ns >= end_ns))
        return self._halted

    def run_freely(self, limit_ns: int = 1_000_000_000) -> None:
        """Run with the machine's own idea of HLT."""

        def late() -> bool:
            if self.machine.now_ns > limit_ns:
                raise AssertionError("the code did not end")
            return False

        self.machine.run(late)

    @property
    def vector(self) -> int:
        """The vector whose handler halted (exact only for the one-byte handlers)."""
        assert HANDLERS <= self.cpu.rip < HANDLERS + 16 * 256, hex(self.cpu.rip)
        return (self.cpu.rip - HANDLERS) // 16

    @property
    def rsp(self) -> int:
        return self.cpu.regs[registers.RSP]

    def frame(self, *, error: bool = False) -> dict[str, int]:
        """Read the exception frame at RSP."""
        names = (["error"] if error else []) + ["rip", "cs", "flags", "rsp", "ss"]
        return dict(zip(names, struct.unpack(f"<{len(names)}Q", self.memory.read(self.rsp, 8 * len(names)))))

    def register(self, name: str) -> int:
        """Read a register through Unicorn."""
        return int(self.cpu.uc.reg_read(getattr(x86_const, f"UC_X86_REG_{name}")))


__all__ = ["BareMachine", "MachineError", "slots"]
