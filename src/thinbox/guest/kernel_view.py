"""What thinbox reads of the guest kernel's own structures, by its symbols and its types.

Why it exists: tasks, stacks and tables are found here and nowhere else; every offset comes from the
kernel's BTF, every address from its kallsyms.

Rules of this file: features are probed for, versions never compared.
"""

from typing import TYPE_CHECKING

from thinbox import paging
from thinbox.address import PAGE_BYTES, U64, page_align_up, to_signed
from thinbox.errors import MachineError
from thinbox.isolation.baseline import CPU_ENTRY_AREA
from thinbox.kernel.current import find_current
from thinbox.kernel.entry_area import find_entry_area
from thinbox.kernel.pt_regs import find_regs
from thinbox.kernel.pti import USER_TABLE_BIT, WITNESS, measure_pti
from thinbox.kernel.task_struct import DEAD, find_task_struct
from thinbox.machine import cpu as registers
from thinbox.machine import slots

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts
    from thinbox.machine.machine import Machine

_NEW_PROGRAM = ("execve", "execveat", "rt_sigreturn")
"""Calls that return somewhere else without a signal."""
_SYSCALL_ENTRY = "entry_SYSCALL_64"
"""What LSTAR holds from the moment user space runs (arch/x86/kernel/cpu/common.c, `syscall_init`)."""
_SLIDE_STEP = 2 << 20
"""The least CONFIG_PHYSICAL_ALIGN on x86-64; KASLR moves by multiples of it."""
_MOST_STACK_BYTES = 1 << 20
"""THREAD_SIZE is 16 KiB, with KASAN 32 or 64 (arch/x86/include/asm/page_64_types.h)."""
_MOST_SLIDE = 1 << 30
"""KERNEL_IMAGE_SIZE with CONFIG_RANDOMIZE_BASE (arch/x86/include/asm/page_64_types.h)."""


class KernelView:
    """The kernel of `facts` running on `machine`; usable from the moment user space runs.

    `facts` and `symbols` are moved to where KASLR put this kernel.
    """

    def __init__(self, machine: "Machine", facts: "KernelFacts") -> None:
        self._machine = machine
        self._memory = machine.memory
        delta = self._find_slide(facts)
        self._uses_pti = machine.cpu.privilege == 3 and self._measure_pti(facts.symbols.address_of(WITNESS) + delta)
        root = self.kernel_root
        self._check_banner(facts, delta, root)
        self.facts = facts = facts.slid(delta)
        self.symbols = facts.symbols
        self._direct_map, self._image = 0, (0, 0, 0)
        self._find_homes(root)
        current, task, regs = find_current(facts), find_task_struct(facts), find_regs(facts)
        self.per_cpu = self.read_u64(current.offsets_at, root) if current.offsets_at else 0
        """What is added to the symbol of a per-CPU variable."""
        self.current_paddr = self._paddr((self.per_cpu + current.task_at) & U64, root)
        self.pid_offset, self.tgid_offset, self.stack_offset = task.pid_at, task.tgid_at, task.stack_at
        self.state_offset, self.dead_state = task.state_at, DEAD
        self.ax_offset, self.orig_ax_offset, self.flags_offset = regs.ax_at, regs.orig_ax_at, regs.flags_at
        self.ip_offset, self.sp_offset, self.regs_bytes = regs.ip_at, regs.sp_at, regs.regs_bytes
        self.frame_ax_offset = regs.frame_ax_at
        self._ptrace_offset = task.ptrace_at
        self.stack_bytes = self._find_stack_bytes((self.per_cpu + current.stack_end_at) & U64, root)

    def _measure_pti(self, witness: int) -> bool:
        def is_mapped(root: int, vaddr: int) -> bool:
            return self._memory.tables.translate(root, to_signed(vaddr & U64)) >= 0

        return measure_pti(self._machine.cpu.cr3, witness, is_mapped)

    def _find_slide(self, facts: "KernelFacts") -> int:
        """Return how far the running kernel lies above `facts.symbols`.

        Raises:
            MachineError: it is no kernel of these facts.
        """
        entry = facts.symbols.find(_SYSCALL_ENTRY)
        delta = -1 if entry is None else self._machine.cpu.syscall_entry - entry
        if delta % _SLIDE_STEP or not 0 <= facts.slide + delta < _MOST_SLIDE:
            raise MachineError("the CPU's entry for system calls is not this kernel's; it does not match its symbols")
        return delta

    def _check_banner(self, facts: "KernelFacts", delta: int, root: int) -> None:
        """Raise `MachineError` unless the banner that far above its symbol is the kernel's own."""
        banner = facts.symbols.find("linux_banner")
        if banner is not None:
            expected = f"Linux version {facts.release} ".encode()
            try:
                found = self._memory.read_virtual(root, banner + delta, len(expected))
            except LookupError:
                found = b""
            if found != expected:
                raise MachineError(f"the kernel's banner is not {delta:#x} bytes above where its symbols say")

    def _find_homes(self, root: int) -> None:
        direct_map, end = (self.symbols.find(name) for name in ("page_offset_base", "_end"))
        if direct_map is not None:
            self._direct_map = self.read_u64(direct_map, root)
        start = self.symbols.text_start
        self._image = (start, self.symbols.text_end if end is None else end, self._paddr(start, root))

    def home_of(self, vaddr: int) -> int:
        """Return where a kernel address lies as the kernel laid its image and all RAM out at boot, whatever its tables
        say now; -1 for any other address (arch/x86/include/asm/page_64.h, __phys_addr)."""
        start, end, paddr = self._image
        if start <= vaddr < end:
            return vaddr - start + paddr
        inside = vaddr - self._direct_map
        return inside if self._direct_map and 0 <= inside < self._memory.guest_bytes else -1

    def is_traced(self, task: int, root: int) -> bool:
        """Tell whether somebody traces a task (include/linux/sched.h, `ptrace`)."""
        return bool(self.read_u32(task + self._ptrace_offset, root))

    @property
    def entry_areas(self) -> tuple[tuple[int, int], ...]:
        """The page of the IDT, and this CPU's `struct cpu_entry_area` (start, exclusive end), in which the task state
        segment in use lies."""
        area = find_entry_area(self.facts)
        start = self._machine.cpu.task_state - area.task_state_at
        if start % PAGE_BYTES or start < CPU_ENTRY_AREA + PAGE_BYTES:
            raise MachineError("the task state segment is not in the cpu_entry_area; this kernel is built otherwise")
        end = page_align_up(start + area.area_bytes)
        return ((CPU_ENTRY_AREA, CPU_ENTRY_AREA + PAGE_BYTES), (start, end))

    @property
    def kernel_root(self) -> int:
        """The kernel's table of the address space in use, also while an SCI or undo table is active."""
        slot = self._machine.slot
        if slot[slots.ACTIVE]:
            return int(slot[slots.KERNEL_ROOT]) & paging.FRAME_MASK
        cr3 = self._machine.cpu.cr3 & paging.FRAME_MASK
        return cr3 & ~USER_TABLE_BIT if self._uses_pti else cr3

    @property
    def uses_pti(self) -> bool:
        """Whether page-table isolation is on in the running kernel."""
        return self._uses_pti

    def _paddr(self, vaddr: int, root: int) -> int:
        paddr = self._memory.tables.translate(root, vaddr)
        if paddr < 0:
            raise MachineError(f"kernel address {vaddr:#x} is not mapped; the kernel does not match its symbols")
        return paddr

    def read_u64(self, vaddr: int, root: int) -> int:
        """Return the word at kernel address `vaddr` under `root`."""
        return self._memory.words[self._paddr(vaddr, root) >> 3] & U64

    def read_u32(self, vaddr: int, root: int) -> int:
        """Return the 32-bit word at kernel address `vaddr` under `root`."""
        return int.from_bytes(self._memory.read(self._paddr(vaddr, root), 4), "little")

    @property
    def current(self) -> int:
        """Address of the running task's task_struct."""
        return self._memory.words[self.current_paddr >> 3] & U64

    def return_at_once(self, result: int) -> None:
        """At a function's first instruction, in a code hook: return `result` (signed) to its caller instead of it."""
        cpu, root = self._machine.cpu, self.kernel_root
        caller = self._memory.word_at(root, cpu.regs[registers.RSP])
        cpu.regs[registers.RSP] += 8
        cpu.regs[registers.RAX] = result & U64
        cpu.jump(caller)

    def result_of(self, regs_paddr: int, user_ip: int, name: str) -> int:
        """Return what the call `name` returned, signed, from its pt_regs; `user_ip` is where it was to return to.

        Where a signal's handler runs first, RAX is that handler's already, and the result stands in the signal
        frame (arch/x86/kernel/signal.c, `setup_rt_frame`).
        """
        quads = self._memory.words
        value = quads[(regs_paddr + self.ax_offset) >> 3]
        if value or quads[(regs_paddr + self.ip_offset) >> 3] == user_ip or name in _NEW_PROGRAM:
            return value
        frame = quads[(regs_paddr + self.sp_offset) >> 3] + self.frame_ax_offset
        paddr = paging.translate(quads, self._memory.guest_bytes, self.kernel_root, frame)
        return value if paddr < 0 or paddr & 7 else quads[paddr >> 3]

    def stack_of(self, task: int, root: int) -> int:
        """Return the lowest address of a task's kernel stack."""
        return self.read_u64(task + self.stack_offset, root)

    def pid_of(self, task: int, root: int) -> int:
        """Return a task's thread id, as the kernel's first pid namespace counts."""
        return self.read_u32(task + self.pid_offset, root)

    def _find_stack_bytes(self, end_at: int, root: int) -> int:
        """THREAD_SIZE, from where the kernel itself says the running task's stack ends."""
        # In the task state segment that word is not aligned (arch/x86/include/asm/processor.h, struct x86_hw_tss).
        end = int.from_bytes(self._memory.read_virtual(root, to_signed(end_at), 8), "little")
        # TOP_OF_KERNEL_STACK_PADDING is 0 on x86-64 until FRED, then 16 bytes.
        size = page_align_up(end - self.stack_of(self.current, root))
        if not PAGE_BYTES <= size <= _MOST_STACK_BYTES:
            raise MachineError(f"the running task's kernel stack would be {size} bytes; this kernel is built otherwise")
        return size
