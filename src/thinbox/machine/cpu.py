"""The CPU: Unicorn with its soft-MMU, the compiled hooks, and direct access to the CPU state.

Why it exists: everything Unicorn needs to be told or worked around is in this file (see
docs/decisions/0002-machine-on-unicorn.md), so that the rest speaks of registers, hooks and stops.

Rules of this file:
- Order of set-up: exits off, memory, state found, hooks. With an exit address set, every stop would probe
  that page and overwrite CR2 and the pending error code.
- An exception in a Python callback is kept and raised after the CPU has stopped: ctypes would swallow it.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import unicorn.unicorn_py3.unicorn as binding
from unicorn import (
    UC_ARCH_X86,
    UC_HOOK_BLOCK,
    UC_HOOK_CODE,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_HOOK_MEM_READ,
    UC_HOOK_MEM_WRITE,
    UC_MODE_64,
    UC_PROT_ALL,
    Uc,
    UcError,
    x86_const,
)

from thinbox.address import PAGE_BYTES, U64
from thinbox.errors import MachineError
from thinbox.machine import slots
from thinbox.machine.cpu_features import offer
from thinbox.machine.cpu_model import CpuModel
from thinbox.machine.exit_checks import ExitChecks
from thinbox.machine.layout_probe import VECTOR_BYTES, VECTORS, XMM_BYTES, CpuLayout, context_state, find_live_state
from thinbox.machine.memory import Memory
from thinbox.machine.native import hook_address
from thinbox.machine.state_bits import HF_INHIBIT_IRQ, IF
from thinbox.machine.thunks import block_thunk, executable
from thinbox.machine.tlb_fill import install_tlb_fill

_MOST_FAULTS_OF_AN_INSTRUCTION = 1 << 21
"""`rep stos` over 8 GiB faults once a page, and no time passes before it is done."""
_EMPTY_BUS = 1 << 40
"""`coherence.BUS_READ`, which cannot be imported without Numba."""
_TRANSLATIONS_BYTES = 160 << 20
"""Unicorn's own default is 1 GiB, all of which a long run touches: translations of ended programs stay
until the buffer is full. A boot needs less than 70 MiB: the process grows by 132 MiB, half of it guest memory."""
_Callback = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_CodeHook = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_PortIn = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)
_PortOut = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)

(RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15) = range(16)
"""General registers by encoding, as indexes into `Cpu.regs`."""

CR0, CR2, CR3, CR4 = 0, 2, 3, 4
DR7 = 7
_DR7_OFF = 0x400
"""No breakpoint on; bit 10 is always set (SDM vol. 3B, 17.2.4)."""


class Cpu:
    """One x86-64 CPU on `memory`; `core` is the array shared with the compiled hooks."""

    def __init__(self, memory: Memory, layout: CpuLayout, model: CpuModel) -> None:
        self.memory = memory
        self.layout = layout
        self.uc = Uc(UC_ARCH_X86, UC_MODE_64)
        self.uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_QEMU64)
        self.uc.ctl_set_tcg_buffer_size(_TRANSLATIONS_BYTES)
        self._env = find_live_state(self.uc)
        offer(self.uc, self._env, model)
        self.uc.ctl_exits_enabled(True)
        # Hidden RAM is not mapped: whatever way the engine may have to physical memory, it ends there.
        self.uc.mem_map_ptr(0, memory.guest_bytes, UC_PROT_ALL, memory.pointer())
        self.uc.mem_map_ptr(_EMPTY_BUS, 2 * PAGE_BYTES, UC_PROT_ALL, memory.bus_pointer())
        self.handle = ctypes.cast(self.uc._uch, ctypes.c_void_p).value or 0
        self.core = np.zeros(slots.SLOT_COUNT, dtype=np.int64)
        self.slot = self.core.data
        """The same array, faster one slot at a time than NumPy."""
        self.regs = (ctypes.c_uint64 * 16).from_address(self._env)
        self._rip = ctypes.c_uint64.from_address(self._env + layout.eip)
        self._hflags = ctypes.c_uint32.from_address(self._env + layout.hflags)
        self._control = (ctypes.c_uint64 * 5).from_address(self._env + layout.cr)
        self._debug = (ctypes.c_uint64 * 12).from_address(self._env + layout.old - 8 * 12)
        """DR0 to DR7, then a pointer for each of the four breakpoints to what the engine keeps of it."""
        self._update_dr7 = binding.uclib.cpu_x86_update_dr7_x86_64
        self._update_dr7.restype, self._update_dr7.argtypes = None, (ctypes.c_void_p, ctypes.c_uint32)
        self._kept: list[Any] = []
        self.pending_error: BaseException | None = None
        self._fill_core()
        self._add_hooks()
        install_tlb_fill(self)
        self._exit_checks = ExitChecks(self.handle)
        self._exit_checks.skip()

    def _fill_core(self) -> None:
        core, layout = self.slot, self.layout
        core[slots.ENV] = self._env
        core[slots.UC] = self.handle
        for slot, name in (
            (slots.REG_READ, "uc_reg_read"),
            (slots.REG_WRITE, "uc_reg_write"),
            (slots.EMU_STOP, "uc_emu_stop"),
        ):
            core[slot] = ctypes.cast(getattr(binding.uclib, name), ctypes.c_void_p).value or 0
        core[slots.WORDS] = self.memory.host_base
        core[slots.FRAME_END] = self.memory.total_bytes
        core[slots.GUEST_END] = self.memory.guest_bytes
        core[slots.STUCK_LIMIT] = _MOST_FAULTS_OF_AN_INSTRUCTION
        for slot, offset in (
            (slots.OFF_EIP, layout.eip),
            (slots.OFF_EFLAGS, layout.eflags),
            (slots.OFF_HFLAGS, layout.hflags),
            (slots.OFF_SEGS, layout.segs),
            (slots.OFF_TR, layout.tr),
            (slots.OFF_IDT, layout.idt),
            (slots.OFF_CR, layout.cr),
            (slots.OFF_STAR, layout.star),
            (slots.OFF_LSTAR, layout.lstar),
            (slots.OFF_CSTAR, layout.cstar),
            (slots.OFF_FMASK, layout.fmask),
            (slots.OFF_TSC_AUX, layout.tsc_aux),
            (slots.OFF_ERROR, layout.error),
            (slots.OFF_IS_INT, layout.is_int),
            (slots.OFF_OLD, layout.old),
        ):
            core[slot] = offset

    def _add_hooks(self) -> None:
        core = self.core.ctypes.data
        self._block_hook = self.add_hook(
            UC_HOOK_BLOCK, self.keep_array(executable(block_thunk(hook_address("on_block")))), core
        )
        self.add_hook(UC_HOOK_INTR, hook_address("on_exception"), core)
        self.add_hook(UC_HOOK_INSN_INVALID, hook_address("on_invalid"), core)
        self.add_hook(UC_HOOK_INSN, hook_address("on_syscall"), core, insn=x86_const.UC_X86_INS_SYSCALL)
        self.add_hook(UC_HOOK_INSN, hook_address("on_rdtsc"), core, insn=x86_const.UC_X86_INS_RDTSC)
        self.add_hook(UC_HOOK_INSN, hook_address("on_rdtscp"), core, insn=x86_const.UC_X86_INS_RDTSCP)
        self._call_report = self.exported(hook_address("report_breakpoints"), None, 0)
        self._call_inject = self.exported(hook_address("inject"), None, 1)

    @staticmethod
    def exported(address: int, result: Any, arguments: int) -> Callable[..., int]:
        return ctypes.PYFUNCTYPE(result, ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * arguments)(address)

    def add_hook(
        self, kind: int, function: int, data: int, *, begin: int = 1, end: int = 0, insn: int | None = None
    ) -> ctypes.c_size_t:
        """Add a hook given by host address; the Python binding refuses some that the C function takes."""
        if kind == UC_HOOK_CODE and self._exit_checks.restore():
            # Such a hook may stop the CPU or change tables, and the next instruction must not run before that.
            self.uc.ctl_flush_tb()
        hook = ctypes.c_size_t()
        extra = () if insn is None else (ctypes.c_int(insn),)
        status = binding.uclib.uc_hook_add(
            self.uc._uch,
            ctypes.byref(hook),
            kind,
            ctypes.c_void_p(function),
            ctypes.c_void_p(data),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
            *extra,
        )
        if status:
            raise MachineError(f"Unicorn refused a hook (error {status}); install unicorn 2.1.4")
        return hook

    def add_native_hook(self, vaddr: int, function: int, data: int | None = None) -> None:
        """Call the compiled function at host address `function` before the instruction at `vaddr`."""
        self.add_hook(UC_HOOK_CODE, function, self.core.ctypes.data if data is None else data, begin=vaddr, end=vaddr)

    def replace_block_hook(self, function: int, data: int) -> None:
        """Call the compiled function at host address `function` before each block instead of `hooks.on_block`."""
        binding.uclib.uc_hook_del(self.uc._uch, self._block_hook)
        self._block_hook = self.add_hook(UC_HOOK_BLOCK, function, data)
        self.uc.ctl_flush_tb()

    def add_tracing_hooks(self, data: int) -> None:
        """Note the pages of every block and data access in the words at host address `data` (`tracing_hooks`)."""
        self.add_hook(UC_HOOK_BLOCK, hook_address("on_trace_block"), data)
        self.add_hook(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, hook_address("on_trace_memory"), data)
        self.uc.ctl_flush_tb()

    def add_code_hook(self, vaddr: int, function: Callable[[], None]) -> Callable[[], None]:
        """Call `function` before the instruction at `vaddr`; return a function that takes the hook away."""
        return self._add_python_hook(UC_HOOK_CODE, lambda _vaddr, _size: function(), begin=vaddr, end=vaddr)

    def add_block_hook(self, function: Callable[[int, int], None]) -> None:
        """Call `function(vaddr, size_bytes)` before each block from now on, vaddr unsigned."""
        # It stays: without one of two block hooks, the engine no longer calls the other where it did.
        self._add_python_hook(UC_HOOK_BLOCK, function)

    def _add_python_hook(
        self, kind: int, function: Callable[[int, int], None], *, begin: int = 1, end: int = 0
    ) -> Callable[[], None]:
        def run(_uc: int, vaddr: int, size: int, _data: int) -> None:
            self._guarded(function, vaddr, size)

        callback = _CodeHook(run)
        self._kept.append(callback)
        address = ctypes.cast(callback, ctypes.c_void_p).value or 0
        hook = self.add_hook(kind, address, 0, begin=begin, end=end)
        self.uc.ctl_flush_tb()
        return lambda: binding.uclib.uc_hook_del(self.uc._uch, hook)

    def keep_array(self, array: np.ndarray) -> int:
        """Keep `array` alive as long as this CPU; return its host address."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def set_callback(self, slot: int, function: Callable[[int, int, int], int]) -> None:
        """Let the compiled hooks call `function`; its exceptions stop the CPU and are raised by `run`."""

        def run(first: int, second: int, third: int) -> int:
            return int(self._guarded(function, first, second, third) or 0)

        callback = _Callback(run)
        self._kept.append(callback)
        self.slot[slot] = ctypes.cast(callback, ctypes.c_void_p).value or 0

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException as error:
            self._fail(error)
            return 0

    def _fail(self, error: BaseException) -> None:
        self.pending_error = error
        self.stop()

    def add_port_hooks(self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        """Call `read(port, bytes)` and `write(port, bytes, value)` for `in` and `out`."""

        # Straight to ctypes: the binding's own wrapper doubles the cost of some 70,000 port accesses of a boot.
        def on_in(_uc: int, port: int, size: int, _data: int) -> int:
            return int(self._guarded(read, port, size))

        def on_out(_uc: int, port: int, size: int, value: int, _data: int) -> None:
            self._guarded(write, port, size, value)

        for callback, insn in ((_PortIn(on_in), x86_const.UC_X86_INS_IN), (_PortOut(on_out), x86_const.UC_X86_INS_OUT)):
            self._kept.append(callback)
            address = ctypes.cast(callback, ctypes.c_void_p).value or 0
            self.add_hook(UC_HOOK_INSN, address, 0, insn=insn)

    # -- registers ------------------------------------------------------------------------------
    @property
    def rip(self) -> int:
        """Address of the next instruction (inside a code hook: of the hooked one)."""
        return self._rip.value

    def jump(self, rip: int) -> None:
        """Go on at `rip`; also from inside a code hook."""
        self.uc.reg_write(x86_const.UC_X86_REG_RIP, rip)

    def set_rip(self, rip: int) -> None:
        """Go on at `rip`; outside a run, or inside an exception hook."""
        self._rip.value = rip & U64

    @property
    def flags(self) -> int:
        """RFLAGS."""
        return int(self.uc.reg_read(x86_const.UC_X86_REG_EFLAGS))

    @flags.setter
    def flags(self, value: int) -> None:
        self.uc.reg_write(x86_const.UC_X86_REG_EFLAGS, value)

    @property
    def interrupts_enabled(self) -> bool:
        """Whether an interrupt may be taken now: IF set, and not in the shadow of `sti` or `mov ss`."""
        return bool(self.flags & IF) and not self._hflags.value & HF_INHIBIT_IRQ

    @property
    def privilege(self) -> int:
        """CPL, 0 to 3."""
        return self._hflags.value & 3

    @property
    def cr2(self) -> int:
        """Address of the last page fault."""
        return self._control[CR2]

    @property
    def cr3(self) -> int:
        """The table in use."""
        return self._control[CR3]

    @property
    def syscall_entry(self) -> int:
        """Where `syscall` of 64-bit code goes (the MSR LSTAR)."""
        return ctypes.c_uint64.from_address(self._env + self.layout.lstar).value

    @property
    def task_state(self) -> int:
        """Address of the task state segment (the base in TR)."""
        return ctypes.c_uint64.from_address(self._env + self.layout.tr + 8).value

    def load_cr3(self, value: int) -> None:
        """Switch tables (and forget all cached translations)."""
        self.uc.reg_write(x86_const.UC_X86_REG_CR3, value)

    @property
    def cr4(self) -> int:
        """The features switched on."""
        return self._control[CR4]

    def load_cr4(self, value: int) -> None:
        """Switch features; bits that the CPU model lacks may stay clear."""
        self.uc.reg_write(x86_const.UC_X86_REG_CR4, value)

    # -- running ----------------------------------------------------------------------------------
    def run(self) -> int:
        """Run until something stops the CPU; return a `slots.STOP_*` reason, STOP_NONE for HLT."""
        self.slot[slots.STOP] = slots.STOP_NONE
        try:
            self.uc.emu_start(self._rip.value, 0)
        except UcError as error:
            if self.pending_error is None:
                raise MachineError(f"the CPU engine stopped at {self.rip:#x}: {error}") from error
        if self.pending_error is not None:
            pending, self.pending_error = self.pending_error, None
            raise pending
        return int(self.slot[slots.STOP])

    def stop(self) -> None:
        """Stop before the next block (from a callback)."""
        self.slot[slots.STOP] = slots.STOP_PYTHON
        self.uc.emu_stop()

    def inject(self, vector: int) -> None:
        """Deliver an external interrupt; between two runs only."""
        self._call_inject(self.handle, self.core.ctypes.data, vector)

    @property
    def watches_data(self) -> bool:
        """Whether DR7 has a breakpoint on data switched on (SDM vol. 3B, 17.2.4)."""
        dr7 = self._debug[DR7]
        return any(dr7 >> 2 * number & 3 and dr7 >> 16 + 4 * number & 1 for number in range(4))

    def report_breakpoints(self) -> None:
        """Deliver the #DB of data breakpoints that were hit, which goes before interrupts; between two runs only."""
        if self.slot[slots.WATCH_HIT]:
            self._call_report(self.handle, self.core.ctypes.data)

    def add_watch_hooks(self) -> None:
        """Look at every access to memory and at every instruction, from now on."""
        # They stay: behind a hook on all instructions that is taken away the engine stops at some, for no reason given.
        data = self.core.ctypes.data
        self.add_hook(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, hook_address("on_watch_memory"), data)
        self.add_hook(UC_HOOK_CODE, hook_address("on_watch_code"), data)
        self.uc.ctl_flush_tb()

    # -- saving -----------------------------------------------------------------------------------
    def save(self) -> bytes:
        """Return the CPU state as bytes: Unicorn's own context, the host pointers in it made 0.

        `retaddr` (QEMU's CPUX86State) is where in translated code Unicorn's own page walk began. In front of
        `old_exception` stand pointers to the breakpoints that DR7 switched on; `restore` makes them again. Instructions
        of SSSE3 and later copy whole vectors out of the engine's stack: what lies beyond XMM there is nobody's.
        """
        state = bytearray(context_state(self.uc.context_save(), bytes(self.regs)))
        for at, size in ((self.layout.retaddr, 8), (self.layout.old - 8 * 4, 8 * 4)):
            state[at : at + size] = bytes(size)
        for at in range(self.layout.xmm, self.layout.xmm + VECTORS * VECTOR_BYTES, VECTOR_BYTES):
            state[at + XMM_BYTES : at + VECTOR_BYTES] = bytes(VECTOR_BYTES - XMM_BYTES)
        return bytes(state)

    def restore(self, state: bytes) -> None:
        """Load a state that `save` returned, in this process or another one."""
        # The engine's breakpoints go by way of the engine: a pointer written over is memory freed twice later.
        self._update_dr7(self._env, _DR7_OFF)
        ctypes.memmove(self._env, state, len(state))
        wanted, self._debug[DR7] = self._debug[DR7], _DR7_OFF
        self._debug[8:] = [0] * 4
        self._update_dr7(self._env, wanted)
        self.slot[slots.WATCH_HIT] = 0
        self.load_cr3(self.cr3)
        self.uc.ctl_flush_tb()
