"""Where Unicorn keeps the CPU state, found out at start-up by experiment.

Why it exists: no call of Unicorn enters ring 0, reads a fault's error code or ends an exception, and a
reg_read costs a microsecond. The state itself (QEMU's CPUX86State) has everything, but its layout is
private and may change with any release. So nothing is assumed: known values are put in through the
public interface and looked for; known faults are raised and the difference is read.

Rules of this file:
- A value that is not found exactly once ends the program with `MachineError`: never guess.
- Host memory is read through /proc/self/mem, where a bad address is an error and not a crash.
"""

import ctypes
import os
import struct
from dataclasses import dataclass
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_64, UC_PROT_ALL, Uc, UcError, x86_const

from thinbox.errors import MachineError
from thinbox.machine.sigint import SigintHold

_GENERAL = (
    x86_const.UC_X86_REG_RAX,
    x86_const.UC_X86_REG_RCX,
    x86_const.UC_X86_REG_RDX,
    x86_const.UC_X86_REG_RBX,
    x86_const.UC_X86_REG_RSP,
    x86_const.UC_X86_REG_RBP,
    x86_const.UC_X86_REG_RSI,
    x86_const.UC_X86_REG_RDI,
    *range(x86_const.UC_X86_REG_R8, x86_const.UC_X86_REG_R15 + 1),
)
"""General registers in encoding order (SDM vol. 2A, table 3-1)."""

_MSR = {"star": 0xC0000081, "lstar": 0xC0000082, "cstar": 0xC0000083, "fmask": 0xC0000084, "tsc_aux": 0xC0000103}
_EFER = 0xC0000080
_POINTER_SCAN_BYTES = 4096
_OBJECT_SCAN_BYTES = 64 * 1024
_CR2_AT = 16
VECTOR_BYTES, VECTORS, XMM_BYTES = 64, 32, 16
"""QEMU's ZMMReg, how many of them, and what of each this CPU has."""
SEGMENT_BYTES = 24
"""Size of QEMU's SegmentCache: selector, base, limit, flags."""


@dataclass(frozen=True, slots=True)
class CpuLayout:
    """Offsets (bytes) of fields in the CPU state; `regs` is at 0."""

    eip: int
    eflags: int
    hflags: int
    segs: int
    tr: int
    idt: int
    cr: int
    star: int
    lstar: int
    cstar: int
    fmask: int
    tsc_aux: int
    error: int
    is_int: int
    old: int
    retaddr: int
    xmm: int
    """XMM0; the next one is `VECTOR_BYTES` on."""


def context_state(context: Any, regs: bytes) -> bytes:
    """Return the CPU state inside a saved context: what begins with the general registers `regs`."""
    raw = bytes(context)
    at = raw.find(regs)
    if at < 0 or raw.find(regs, at + 1) >= 0:
        raise MachineError("this Unicorn's saved context is not understood; install unicorn 2.1.4")
    return raw[at:]


def find_live_state(uc: Uc) -> int:
    """Return the host address of the engine's CPU state (its general registers come first).

    Random values go into the sixteen registers; the engine's own structure is searched for pointers, and
    what they point at for the values.
    """
    values = [int.from_bytes(os.urandom(8), "little") >> 1 | 1 for _ in _GENERAL]
    saved = [uc.reg_read(register) for register in _GENERAL]
    for register, value in zip(_GENERAL, values, strict=True):
        uc.reg_write(register, value)
    pattern = struct.pack("<16Q", *values)
    handle = ctypes.cast(uc._uch, ctypes.c_void_p).value or 0
    found = set()
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        for pointer in {
            p for (p,) in struct.iter_unpack("<Q", _read(memory, handle, _POINTER_SCAN_BYTES)) if p > 1 << 16
        }:
            block = _read(memory, pointer, _OBJECT_SCAN_BYTES)
            at = block.find(pattern)
            if at >= 0:
                found.add(pointer + at)
        # Our own copy of the pattern may lie in the same heap; only the live one follows a register.
        probe = values[0] ^ 0x5A5A5A5A
        uc.reg_write(_GENERAL[0], probe)
        found = {at for at in found if _read(memory, at, 8) == probe.to_bytes(8, "little")}
    finally:
        os.close(memory)
    if len(found) != 1:
        raise MachineError(f"found {len(found)} CPU states in this Unicorn instead of one; install unicorn 2.1.4")
    for register, value in zip(_GENERAL, saved, strict=True):
        uc.reg_write(register, value)
    return int(found.pop())


def read_host(address: int, size: int) -> bytes:
    """Read up to `size` bytes of this process from `address` on; fewer where nothing is mapped."""
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        return _read(memory, address, size)
    finally:
        os.close(memory)


def _read(memory: int, address: int, size: int) -> bytes:
    """Read up to `size` bytes of this process; fewer, or none, where nothing is mapped."""
    out = b""
    while len(out) < size:
        step = min(4096 - (address + len(out)) % 4096, size - len(out))
        try:
            chunk = os.pread(memory, step, address + len(out))
        except (OSError, OverflowError):
            break
        out += chunk
    return out[: len(out) & ~7]


class _Scratch:
    """A throw-away engine in long mode with a few mapped pages, to raise known faults on."""

    CODE, TABLES, END, READ_ONLY, ABSENT = 0x1000, 0x2000, 0x10000, 0x8000, 0x20000

    def __init__(self) -> None:
        self.uc = Uc(UC_ARCH_X86, UC_MODE_64)
        self.uc.ctl_exits_enabled(True)
        self.memory = ctypes.create_string_buffer(self.END + 4096)
        self.base = (ctypes.addressof(self.memory) + 4095) & ~4095
        self.uc.mem_map_ptr(0, self.END, UC_PROT_ALL, ctypes.c_void_p(self.base))
        for level in range(3):
            self._word(self.TABLES + 4096 * level, self.TABLES + 4096 * (level + 1) | 7)
        for page in range(16):
            supervisor_read_only = page == self.READ_ONLY >> 12
            self._word(self.TABLES + 4096 * 3 + 8 * page, page << 12 | (1 if supervisor_read_only else 7))
        self.uc.msr_write(_EFER, 0xD00)
        self.uc.reg_write(x86_const.UC_X86_REG_CR4, 0x20)
        self.uc.reg_write(x86_const.UC_X86_REG_CR3, self.TABLES)
        self.uc.reg_write(x86_const.UC_X86_REG_CR0, 0x80050033)
        self.vectors: list[int] = []
        self.uc.hook_add(UC_HOOK_INTR, self._on_interrupt)
        self.env = find_live_state(self.uc)
        for number, register in enumerate(_GENERAL):
            self.uc.reg_write(register, 0x1122334411220000 + number)
        self.bytes = len(context_state(self.uc.context_save(), ctypes.string_at(self.env, 128)))

    def _on_interrupt(self, uc: Any, vector: int, _data: Any) -> None:
        self.vectors.append(vector)
        uc.emu_stop()

    def _word(self, paddr: int, value: int) -> None:
        ctypes.c_uint64.from_address(self.base + paddr).value = value

    def state(self) -> bytes:
        return ctypes.string_at(self.env, self.bytes)

    def offsets_of(self, value: int, size: int = 8) -> set[int]:
        raw, wanted = self.state(), value.to_bytes(size, "little")
        return {at for at in range(0, len(raw) - size + 1, 4) if raw[at : at + size] == wanted}

    def raise_fault(self, code: str, target: int) -> bytes:
        """Run one instruction with RAX = `target`; return the CPU state after its exception."""
        raw = bytes.fromhex(code)
        ctypes.memmove(self.base + self.CODE, raw, len(raw))
        self.uc.ctl_flush_tb()
        self.vectors.clear()
        self.uc.reg_write(x86_const.UC_X86_REG_RAX, target)
        self.uc.emu_start(self.CODE, 0)
        return self.state()


def _only(offsets: set[int], what: str) -> int:
    if len(offsets) != 1:
        raise MachineError(f"found {what} {len(offsets)} times in this Unicorn's CPU state; install unicorn 2.1.4")
    return offsets.pop()


def _matching(states: list[bytes], values: list[int]) -> set[int]:
    """Offsets whose 32-bit value was `values[i]` in `states[i]`, for all i."""
    return {
        at
        for at in range(0, len(states[0]) - 3, 4)
        if all(
            raw[at : at + 4] == (v & 0xFFFFFFFF).to_bytes(4, "little") for raw, v in zip(states, values, strict=True)
        )
    }


_MOV_READ, _MOV_WRITE, _JUMP, _INT = "488b00", "488900", "ffe0", "cd42"


def _probe_registers(scratch: _Scratch) -> dict[str, int]:
    """Find what can be written through the public interface."""
    uc, found = scratch.uc, {}
    for number, (name, register) in enumerate(
        {"eip": x86_const.UC_X86_REG_RIP, "cr2": x86_const.UC_X86_REG_CR2, "fs": x86_const.UC_X86_REG_FS_BASE}.items()
    ):
        magic = 0x1122334455660000 + number
        uc.reg_write(register, magic)
        found[name] = _only(
            scratch.offsets_of(magic & (0xFFFFFFFF if name == "cr2" else magic), 8 if name != "cr2" else 4), name
        )
    for number, (name, register) in enumerate(
        {"tr": x86_const.UC_X86_REG_TR, "idt": x86_const.UC_X86_REG_IDTR}.items()
    ):
        magic = 0x1122334466770000 + number
        uc.reg_write(register, (0, magic, 0xFFF, 0))
        found[name] = _only(scratch.offsets_of(magic), name) - 8
    for number, (name, msr) in enumerate(_MSR.items()):
        magic = 0x11223344 + number if name == "fmask" else 0x1122334477880000 + number
        uc.msr_write(msr, magic)
        found[name] = _only(scratch.offsets_of(magic), name)
    uc.reg_write(x86_const.UC_X86_REG_DR0, 0x1122334488990000)
    found["dr"] = _only(scratch.offsets_of(0x1122334488990000), "dr")
    uc.reg_write(x86_const.UC_X86_REG_DR0, 0)
    for number in range(2):
        magic = 0x11223344AABB0000 + number
        uc.reg_write(x86_const.UC_X86_REG_XMM0 + number, magic)
        found[f"xmm{number}"] = _only(scratch.offsets_of(magic), "xmm")
        uc.reg_write(x86_const.UC_X86_REG_XMM0 + number, 0)
    uc.reg_write(x86_const.UC_X86_REG_EFLAGS, 0x202)
    with_interrupts = scratch.state()
    uc.reg_write(x86_const.UC_X86_REG_EFLAGS, 0x002)
    found["eflags"] = _only(_matching([with_interrupts, scratch.state()], [0x202, 0x002]), "eflags")
    return found


def _probe_faults(scratch: _Scratch) -> dict[str, int]:
    """Find what only an exception shows: error code, exception in flight, software interrupt."""
    kinds = [
        (_MOV_READ, scratch.ABSENT, 14, 0x0),
        (_MOV_WRITE, scratch.ABSENT, 14, 0x2),
        (_INT, 0, 0x42, None),
        (_MOV_WRITE, scratch.READ_ONLY, 14, 0x3),
        (_JUMP, scratch.ABSENT, 14, 0x10),
        (_INT, 0, 0x42, None),
    ]
    found: dict[str, int] = {}
    old: set[int] | None = None
    states = []
    for code, target, vector, _error in kinds:
        before = scratch.state()
        after = scratch.raise_fault(code, target)
        if scratch.vectors != [vector]:
            raise MachineError(
                f"this Unicorn raised {scratch.vectors} where vector {vector} was due; install unicorn 2.1.4"
            )
        states.append(after)
        if vector == 14:
            here = _matching([before, after], [-1, 14])
            old = here if old is None else old & here
            for at in old:
                ctypes.c_int32.from_address(scratch.env + at).value = -1
    found["old"] = _only(old or set(), "old_exception")
    faults = [(state, kind[3]) for state, kind in zip(states, kinds, strict=True) if kind[3] is not None]
    found["error"] = _only(_matching([s for s, _ in faults], [e for _, e in faults]), "error_code")
    found["retaddr"] = _only(_pointers_into_host(states[0]) & _pointers_into_host(states[1]), "retaddr")
    found["is_int"] = _only(_matching(states, [int(kind[3] is None) for kind in kinds]), "exception_is_int")
    return found


def _pointers_into_host(state: bytes) -> set[int]:
    """Offsets of words that are addresses in executable memory of this process: translated code, to return to."""
    spans = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, permissions = line.split()[:2]
            if "x" in permissions:
                start, end = (int(word, 16) for word in span.split("-"))
                spans.append((start, end))
    return {
        8 * number
        for number, (word,) in enumerate(struct.iter_unpack("<Q", state[: len(state) & ~7]))
        if any(start <= word < end for start, end in spans)
    }


def _probe_mode(scratch: _Scratch) -> int:
    """Find `hflags`: the word in which setting CPL to 3 makes a supervisor page fault as a user access."""
    needed = (1 << 7) | (1 << 14) | (1 << 15)
    state, found = scratch.state(), set()
    for at in range(128, 512, 4):
        if int.from_bytes(state[at : at + 4], "little") & needed != needed:
            continue
        word = ctypes.c_uint32.from_address(scratch.env + at)
        kept = word.value
        word.value = kept | 3
        scratch.raise_fault(_MOV_READ, scratch.READ_ONLY)
        if scratch.vectors == [14]:
            found.add(at)
        word.value = kept
    return _only(found, "hflags")


def probe_layout() -> CpuLayout:
    """Find every field of `CpuLayout` by experiment; raise `MachineError` if one is not found exactly once."""
    try:
        with SigintHold():
            scratch = _Scratch()
            faults = _probe_faults(scratch)
            hflags = _probe_mode(scratch)
            registers = _probe_registers(scratch)
    except UcError as error:
        raise MachineError(f"the CPU engine failed its start-up probe: {error}; install unicorn 2.1.4") from error
    if registers["dr"] != faults["old"] - 8 * 12:
        raise MachineError("the debug registers of this Unicorn are not where they were; install unicorn 2.1.4")
    if registers["xmm1"] != registers["xmm0"] + VECTOR_BYTES:
        raise MachineError("the vector registers of this Unicorn are not where they were; install unicorn 2.1.4")
    return CpuLayout(
        eip=registers["eip"],
        eflags=registers["eflags"],
        hflags=hflags,
        segs=registers["fs"] - 8 - 4 * SEGMENT_BYTES,
        tr=registers["tr"],
        idt=registers["idt"],
        cr=registers["cr2"] - _CR2_AT,
        star=registers["star"],
        lstar=registers["lstar"],
        cstar=registers["cstar"],
        fmask=registers["fmask"],
        tsc_aux=registers["tsc_aux"],
        error=faults["error"],
        is_int=faults["is_int"],
        old=faults["old"],
        retaddr=faults["retaddr"],
        xmm=registers["xmm0"],
    )
