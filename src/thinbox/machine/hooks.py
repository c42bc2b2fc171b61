"""The compiled hooks: what happens on every block, fault, system call and return from interrupt.

Why it exists: a Python hook on every block costs forty times the emulation itself; these cost next to
nothing, and they deliver exceptions and system calls without stopping the CPU. Decisions stay in
Python: a hook acts alone only on what `isolation.fault` says is decided already.

Rules of this file:
- Compiled with Numba, cached on disk; `core` is the array of `slots`.
- A hook never blocks and never raises.
- The CPU state is read and written in place; only CR3 and RFLAGS go through Unicorn's own functions,
  for the first flushes the TLB and the second is kept in pieces.
"""

from numba import cfunc, njit, types
from unicorn import x86_const

from thinbox import paging
from thinbox.isolation import fault, pagetable
from thinbox.machine import slots
from thinbox.machine.compiled import CACHE_COMPILED, compiled
from thinbox.machine.intrinsics import address_of, call3, load32, load64, store32, store64, words_at

REG_CR3 = int(x86_const.UC_X86_REG_CR3)
REG_EFLAGS = int(x86_const.UC_X86_REG_EFLAGS)

CPL_MASK = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32_SS32 = (1 << 4) | (1 << 5)
HF_ADDSEG = 1 << 6
HF_CS64 = 1 << 15
"""Bits of QEMU's `hflags` (target/i386/cpu.h, HF_*_SHIFT)."""

RF, NT, TF, IF, VM = 1 << 16, 1 << 14, 1 << 8, 1 << 9, 1 << 17
"""Bits of RFLAGS (SDM vol. 1, 3.4.3)."""

CODE64 = 0x00AF9B00
STACK = 0x00CF9300
"""Descriptor attributes `syscall` loads without reading a descriptor (SDM vol. 2B, SYSCALL)."""

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = (8 * i for i in range(8))
R8, R9, R10, R11 = (8 * i for i in range(8, 12))
"""Offsets of the general registers in the CPU state, in encoding order."""

SEG_BYTES = 24
CS, SS = 1, 2
DPL3 = 3 << 45

PAGE_FAULT = 14
DOUBLE_FAULT = 8
SEGMENT_NOT_PRESENT = 11
GENERAL_PROTECTION = 13
BREAKPOINT = 3
INT3 = 0xCC
EXTERNAL = 1
INVALID_OPCODE = 6
INT80 = 0x80
PUSHES_ERROR = (1 << 8) | (1 << 10) | (1 << 11) | (1 << 12) | (1 << 13) | (1 << 14) | (1 << 17) | (1 << 21)
IS_FAULT = (1 << 0) | (1 << 5) | (1 << 6) | (1 << 7) | (0b11111 << 10) | (1 << 16) | (1 << 17) | (1 << 19)
"""Vectors that push an error code, and those that are faults (SDM vol. 3A, table 6-1)."""
NO_ERROR = -1

_njit = njit(error_model="numpy")

walk_leaf = compiled(paging.walk_leaf)
translate = compiled(paging.translate)
mark_written = compiled(paging.mark_written)
classify = compiled(fault.classify)
grant = compiled(fault.grant)
needs_judgement = compiled(fault.needs_judgement)
sync_user_half = compiled(pagetable.sync_user_half)


@_njit
def write_cr3(uc, core, value):
    """Load CR3 through Unicorn, which flushes its TLB (no PCID: nothing survives)."""
    core[slots.SCRATCH] = value
    call3(core[slots.REG_WRITE], uc, REG_CR3, address_of(core) + 8 * slots.SCRATCH)


@_njit
def read_flags(uc, core):
    """Return RFLAGS, put together from the pieces Unicorn keeps it in."""
    core[slots.SCRATCH] = 0
    call3(core[slots.REG_READ], uc, REG_EFLAGS, address_of(core) + 8 * slots.SCRATCH)
    return core[slots.SCRATCH] & 0xFFFFFFFF


@_njit
def write_flags(uc, core, value):
    """Load RFLAGS."""
    core[slots.SCRATCH] = value
    call3(core[slots.REG_WRITE], uc, REG_EFLAGS, address_of(core) + 8 * slots.SCRATCH)


@_njit
def stop(uc, core, reason):
    """Stop the CPU before its next block, and say why."""
    core[slots.STOP] = reason
    call3(core[slots.EMU_STOP], uc, 0, 0)


@_njit
def load_segment(core, number, selector, attributes):
    """Fill a segment register's cached descriptor with a flat one."""
    segment = core[slots.ENV] + core[slots.OFF_SEGS] + SEG_BYTES * number
    store32(segment, selector)
    store64(segment + 8, 0)
    store32(segment + 16, 0xFFFFFFFF)
    store32(segment + 20, attributes)


@_njit
def enter_ring0(core, code_selector):
    """Make CS a 64-bit ring 0 code segment, and the mode bits agree with it."""
    hflags = core[slots.ENV] + core[slots.OFF_HFLAGS]
    store32(hflags, (load32(hflags) & ~(CPL_MASK | HF_ADDSEG | HF_INHIBIT_IRQ)) | HF_CS32_SS32 | HF_CS64)
    load_segment(core, CS, code_selector, CODE64)


@_njit
def load_virtual(core, root, vaddr):
    """Return the word at guest-virtual `vaddr` (8-byte aligned, or inside one page), and whether it is mapped."""
    paddr = translate(words_at(core[slots.WORDS]), core[slots.FRAME_END], root, vaddr)
    if paddr < 0 or paddr + 8 > core[slots.FRAME_END]:
        return 0, False
    return load64(core[slots.WORDS] + paddr), True


@_njit
def push_frame(core, root, rsp, frame, count):
    """Store `count` words of `frame` from `rsp` upwards; False, and nothing stored, if a page refuses it."""
    words = words_at(core[slots.WORDS])
    for i in range(count):
        leaf = walk_leaf(words, core[slots.FRAME_END], root, rsp + 8 * i)
        if leaf == 0 or not leaf & paging.WRITABLE or (leaf & paging.FRAME_MASK) + 4096 > core[slots.FRAME_END]:
            return False
    for i in range(count):
        vaddr = rsp + 8 * i
        mark_written(words, core[slots.FRAME_END], root, vaddr)
        store64(core[slots.WORDS] + translate(words, core[slots.FRAME_END], root, vaddr), frame[i])
    return True


@_njit
def pick_stack(core, root, ist, cpl):
    """Return the RSP the handler starts from, and whether the TSS gave it readably (SDM vol. 3A, 6.14.2, 6.14.5)."""
    if ist == 0 and cpl == 0:
        return load64(core[slots.ENV] + RSP) & ~15, True
    # RSP0 is at byte 4 of the TSS, IST1 at byte 36: both 4 modulo 8, so the value spans two words.
    offset = 0
    if ist:
        offset = 32 + 8 * (ist - 1)
    field = load64(core[slots.ENV] + core[slots.OFF_TR] + 8) + offset
    first, ok_first = load_virtual(core, root, field)
    second, ok_second = load_virtual(core, root, field + 8)
    return (((first >> 32) & 0xFFFFFFFF) | (second << 32)) & ~15, ok_first and ok_second


@_njit
def deliver_once(uc, core, vector, error, software):
    """Enter the handler of `vector` as SDM vol. 3A, 6.14 says; return the vector of a new fault, or -1.

    1. read the gate; 2. choose the stack; 3. push the frame; 4. load CS, SS, RSP, RIP, RFLAGS. A fault
    in 1 to 3 leaves the CPU untouched, so that the caller can deliver that fault instead.
    """
    env = core[slots.ENV]
    root = load64(env + core[slots.OFF_CR] + 24)
    idt = load64(env + core[slots.OFF_IDT] + 8)
    if 16 * vector + 15 > load32(env + core[slots.OFF_IDT] + 16):
        return GENERAL_PROTECTION
    low, ok_low = load_virtual(core, root, idt + 16 * vector)
    high, ok_high = load_virtual(core, root, idt + 16 * vector + 8)
    if not ok_low or not ok_high:
        return GENERAL_PROTECTION
    cpl = load32(env + core[slots.OFF_HFLAGS]) & CPL_MASK
    if software and cpl == 3 and low & DPL3 != DPL3:
        return GENERAL_PROTECTION
    if not low & (1 << 47):
        return SEGMENT_NOT_PRESENT
    ist = (low >> 32) & 7
    target, ok_stack = pick_stack(core, root, ist, cpl)
    if not ok_stack:
        return DOUBLE_FAULT
    flags = read_flags(uc, core)
    saved = flags
    if not software and vector < 32 and (IS_FAULT >> vector) & 1:
        saved |= RF
    segments = env + core[slots.OFF_SEGS]
    frame = words_at(address_of(core) + 8 * slots.FRAME)
    count = 0
    if error != NO_ERROR:
        frame[0] = error
        count = 1
    frame[count] = load64(env + core[slots.OFF_EIP])
    frame[count + 1] = load32(segments + SEG_BYTES * CS)
    frame[count + 2] = saved
    frame[count + 3] = load64(env + RSP)
    frame[count + 4] = load32(segments + SEG_BYTES * SS)
    count += 5
    target -= 8 * count
    if not push_frame(core, root, target, frame, count):
        return DOUBLE_FAULT
    enter_ring0(core, (low >> 16) & 0xFFFC)
    if ist != 0 or cpl != 0:
        load_segment(core, SS, 0, STACK)
    store64(env + RSP, target)
    store64(env + core[slots.OFF_EIP], (low & 0xFFFF) | ((low >> 32) & 0xFFFF0000) | (high << 32))
    flags &= ~(TF | NT | RF | VM)
    if (low >> 40) & 15 == 14:
        flags &= ~IF
    write_flags(uc, core, flags)
    return -1


@_njit
def deliver(uc, core, vector, error, software):
    """Deliver an exception or interrupt; a fault on the way becomes #GP or #NP, #DF, then a triple fault."""
    second = deliver_once(uc, core, vector, error, software)
    if second < 0:
        return
    env = core[slots.ENV]
    if second != DOUBLE_FAULT and vector != DOUBLE_FAULT:
        source = vector * 8 + 2 + EXTERNAL
        if software:
            # The fault points at `int n`, not behind it.
            source -= EXTERNAL
            rip = load64(env + core[slots.OFF_EIP])
            code, _mapped = load_virtual(core, load64(env + core[slots.OFF_CR] + 24), rip - 1)
            length = 1 if vector == BREAKPOINT and code & 0xFF == INT3 else 2
            store64(env + core[slots.OFF_EIP], rip - length)
        if deliver_once(uc, core, second, source, 0) < 0:
            return
    if vector == DOUBLE_FAULT or deliver_once(uc, core, DOUBLE_FAULT, 0, 0) >= 0:
        core[slots.STOP_DETAIL] = vector
        stop(uc, core, slots.STOP_TRIPLE_FAULT)


@_njit
def deliver_from(uc, core, vector, error, software):
    """Deliver, leaving the SCI table first if the CPU is on it (rule 4), and remember the way back."""
    nested = core[slots.ACTIVE]
    if nested:
        core[slots.ACTIVE] = 0
        write_cr3(uc, core, core[slots.KERNEL_ROOT])
    deliver(uc, core, vector, error, software)
    if nested:
        resume = load64(core[slots.ENV] + RSP)
        if error != NO_ERROR:
            resume += 8
        core[slots.RESUME_RSP] = resume


@_njit
def uncount_block(core, rip):
    """Take back the part of the current block that is about to run, and be counted, once more."""
    if core[slots.BLOCK_START] <= rip < core[slots.BLOCK_END]:
        core[slots.CLOCK] -= core[slots.BLOCK_END] - rip
        core[slots.BLOCK_END] = rip


@_njit
def grant_now(uc, core, vaddr, error, rip):
    """Grant the page of `vaddr` and log it; return what `fault.grant` returns."""
    row = words_at(core[slots.LOG] + 8 * fault.LOG_COLUMNS * core[slots.LOG_COUNT])
    words, pool = words_at(core[slots.WORDS]), words_at(core[slots.POOL])
    end = core[slots.FRAME_END]
    result = grant(words, end, pool, core[slots.SCI_ROOT], core[slots.KERNEL_ROOT], vaddr, error, rip, row)
    if result == fault.GRANTED:
        core[slots.LOG_COUNT] += 1
        if row[fault.LOG_REPLACED] & paging.PRESENT:
            # The old translation may be cached; a table that only grew needs no flush.
            write_cr3(uc, core, core[slots.SCI_ROOT])
    return result


@_njit
def isolated_fault(uc, core, error, rip):
    """Answer a page fault on an SCI table; return `RETRY`, `DELIVER` or `REDIRECTED`."""
    vaddr = load64(core[slots.ENV] + core[slots.OFF_CR] + 16)
    words = words_at(core[slots.WORDS])
    end = core[slots.FRAME_END]
    kind = classify(words, end, core[slots.SCI_ROOT], core[slots.KERNEL_ROOT], vaddr, error)
    if kind == fault.SYNC:
        sync_user_half(words, core[slots.SCI_ROOT], core[slots.KERNEL_ROOT])
        write_cr3(uc, core, core[slots.SCI_ROOT])
        return slots.RETRY
    if kind == fault.GUEST:
        return slots.DELIVER
    asked = needs_judgement(
        words,
        end,
        core[slots.KERNEL_ROOT],
        words_at(core[slots.APPROVED]),
        core[slots.APPROVED_MASK],
        core[slots.STANDING_DATA],
        vaddr,
        error,
    )
    room = core[slots.LOG_COUNT] < core[slots.LOG_CAPACITY]
    if not asked and room and grant_now(uc, core, vaddr, error, rip) == fault.GRANTED:
        return slots.RETRY
    return call3(core[slots.ON_JUDGE], vaddr, error, rip)


@_njit
def keep_int80_arguments(core):
    """Keep number and arguments of an `int $0x80` for the record (arch/x86/entry/entry_64_compat.S)."""
    env = core[slots.ENV]
    core[slots.CALL_NR] = load64(env + RAX) & 0xFFFFFFFF
    core[slots.CALL_ARG0] = load64(env + RBX) & 0xFFFFFFFF
    core[slots.CALL_ARG1] = load64(env + RCX) & 0xFFFFFFFF
    core[slots.CALL_ARG2] = load64(env + RDX) & 0xFFFFFFFF
    core[slots.CALL_ARG3] = load64(env + RSI) & 0xFFFFFFFF
    core[slots.CALL_ARG4] = load64(env + RDI) & 0xFFFFFFFF
    core[slots.CALL_ARG5] = load64(env + RBP) & 0xFFFFFFFF


@_njit
def activate(uc, core):
    """Switch from the kernel's table to the current task's SCI table, user half brought up to date."""
    core[slots.KERNEL_ROOT] = load64(core[slots.ENV] + core[slots.OFF_CR] + 24)
    sync_user_half(words_at(core[slots.WORDS]), core[slots.SCI_ROOT], core[slots.KERNEL_ROOT])
    write_cr3(uc, core, core[slots.SCI_ROOT])
    core[slots.ACTIVE] = 1


@cfunc(types.void(types.int64, types.uint32, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_exception(uc, vector, core):
    """UC_HOOK_INTR: every exception and software interrupt."""
    env = core[slots.ENV]
    error = load32(env + core[slots.OFF_ERROR])
    software = load32(env + core[slots.OFF_IS_INT])
    # Unicorn ends no exception by itself: left set, the next fault would be reported as a double fault.
    store32(env + core[slots.OFF_OLD], 0xFFFFFFFF)
    rip = load64(env + core[slots.OFF_EIP])
    if vector == PAGE_FAULT:
        core[slots.COUNT_FAULTS] += 1
        if core[slots.ACTIVE]:
            action = isolated_fault(uc, core, error, rip)
            if action == slots.RETRY and not error & paging.FAULT_FETCH:
                uncount_block(core, rip)
            if action != slots.DELIVER:
                return
    if vector == INT80:
        keep_int80_arguments(core)
    if software or not (PUSHES_ERROR >> vector) & 1 or vector >= 32:
        error = NO_ERROR
    deliver_from(uc, core, vector, error, software)


@cfunc(types.boolean(types.int64, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_invalid(uc, core):
    """UC_HOOK_INSN_INVALID: #UD, `ud2` of BUG and WARN included."""
    store32(core[slots.ENV] + core[slots.OFF_OLD], 0xFFFFFFFF)
    deliver_from(uc, core, INVALID_OPCODE, NO_ERROR, 0)
    return True


@cfunc(types.void(types.int64, types.CPointer(types.int64), types.int64), cache=CACHE_COMPILED)
def inject(uc, core, vector):
    """Deliver an external interrupt; called by Python between two runs, never inside one."""
    core[slots.COUNT_IRQS] += 1
    deliver_from(uc, core, vector, NO_ERROR, 0)


@cfunc(types.void(types.int64, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_syscall(uc, core):
    """UC_HOOK_INSN for `syscall`: answer the agent, or enter the kernel (SDM vol. 2B, SYSCALL)."""
    env = core[slots.ENV]
    number = load64(env + RAX)
    if number == slots.HYPERCALL_NR and core[slots.ON_HYPERCALL] != 0 and call3(core[slots.ON_HYPERCALL], 0, 0, 0):
        return
    core[slots.COUNT_SYSCALLS] += 1
    core[slots.CALL_NR] = number
    core[slots.CALL_ARG0] = load64(env + RDI)
    core[slots.CALL_ARG1] = load64(env + RSI)
    core[slots.CALL_ARG2] = load64(env + RDX)
    core[slots.CALL_ARG3] = load64(env + R10)
    core[slots.CALL_ARG4] = load64(env + R8)
    core[slots.CALL_ARG5] = load64(env + R9)
    flags = read_flags(uc, core)
    store64(env + RCX, load64(env + core[slots.OFF_EIP]) + 2)
    store64(env + R11, flags & ~RF)
    entry = load64(env + core[slots.OFF_LSTAR])
    if not load32(env + core[slots.OFF_HFLAGS]) & HF_CS64:
        entry = load64(env + core[slots.OFF_CSTAR])
    selector = (load64(env + core[slots.OFF_STAR]) >> 32) & 0xFFFC
    enter_ring0(core, selector)
    load_segment(core, SS, selector + 8, STACK)
    write_flags(uc, core, flags & ~load64(env + core[slots.OFF_FMASK]) & ~RF)
    # Unicorn adds the length of the instruction after this hook.
    store64(env + core[slots.OFF_EIP], entry - 2)


@cfunc(types.int32(types.int64, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_rdtsc(_uc, core):
    """UC_HOOK_INSN for `rdtsc` and `rdtscp`: virtual time, one tick a nanosecond; CPU 0 of node 0."""
    env = core[slots.ENV]
    store64(env + RAX, core[slots.CLOCK] & 0xFFFFFFFF)
    store64(env + RDX, (core[slots.CLOCK] >> 32) & 0xFFFFFFFF)
    return 1


@cfunc(types.int32(types.int64, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_rdtscp(_uc, core):
    """`rdtscp` also loads RCX with TSC_AUX, which Linux sets to (node << 12) | cpu: 0."""
    env = core[slots.ENV]
    store64(env + RAX, core[slots.CLOCK] & 0xFFFFFFFF)
    store64(env + RDX, (core[slots.CLOCK] >> 32) & 0xFFFFFFFF)
    store64(env + RCX, 0)
    return 1


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_block(uc, vaddr, size, core):
    """UC_HOOK_BLOCK: virtual time, and the first moment a waiting interrupt may be taken.

    A block at which the CPU stops has not run and will be seen again: it is not counted.
    """
    env = core[slots.ENV]
    if core[slots.IRQ_WAITING]:
        inhibited = load32(env + core[slots.OFF_HFLAGS]) & HF_INHIBIT_IRQ
        if load64(env + core[slots.OFF_EFLAGS]) & IF and not inhibited:
            stop(uc, core, slots.STOP_IRQ_WINDOW)
            return
    if core[slots.CLOCK] >= core[slots.DEADLINE]:
        stop(uc, core, slots.STOP_DEADLINE)
        return
    core[slots.CLOCK] += size
    core[slots.BLOCK_START] = vaddr
    core[slots.BLOCK_END] = vaddr + size


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_iretq(uc, _vaddr, _size, core):
    """Code hook at `iretq`: the way back into an interrupted isolated call (rules 4 and 9)."""
    if core[slots.RESUME_RSP] == 0 or load64(core[slots.ENV] + RSP) != core[slots.RESUME_RSP]:
        return
    core[slots.RESUME_RSP] = 0
    activate(uc, core)


@cfunc(types.void(types.int64, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def enter_table(uc, core):
    """`activate` for Python: at `do_syscall_64`, and when a task that slept in its call runs again."""
    activate(uc, core)


@cfunc(types.void(types.int64, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def leave_table(uc, core):
    """Back to the kernel's table: the call ended, or another task is about to run."""
    if core[slots.ACTIVE]:
        core[slots.ACTIVE] = 0
        write_cr3(uc, core, core[slots.KERNEL_ROOT])


@cfunc(
    types.int64(types.int64, types.CPointer(types.int64), types.int64, types.int64, types.int64), cache=CACHE_COMPILED
)
def grant_page(uc, core, vaddr, error, rip):
    """`grant_now` for Python, after the policy has said yes."""
    return grant_now(uc, core, vaddr, error, rip)


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_cr3_written(uc, _vaddr, _size, core):
    """Code hook behind `mov %reg, %cr3`: the kernel changed tables inside an isolated call.

    What it loaded becomes the kernel's table of this call (another mm: execve, text patching); the user
    half follows it, and the CPU goes back to the SCI table.
    """
    if not core[slots.ACTIVE]:
        return
    loaded = load64(core[slots.ENV] + core[slots.OFF_CR] + 24)
    if loaded != core[slots.SCI_ROOT]:
        activate(uc, core)


@_njit
def hide_sci_root(core, register):
    """Replace the SCI root by the kernel's own in a register the kernel just read CR3 into."""
    at = core[slots.ENV] + 8 * register
    if core[slots.ACTIVE] and load64(at) == core[slots.SCI_ROOT]:
        store64(at, core[slots.KERNEL_ROOT])


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_cr3_read(_uc, _vaddr, _size, pair):
    """Code hook behind `mov %cr3, %reg`; `pair` is the address of `core` and the register's number."""
    hide_sci_root(words_at(pair[0]), pair[1])
