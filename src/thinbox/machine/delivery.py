"""Delivering exceptions and interrupts, compiled: SDM vol. 3A, chapter 6, for 64-bit mode.

Why it exists: Unicorn raises exceptions but never enters a handler. This does what the CPU would: gate,
stack, frame, mode; and what a fault on the way becomes.

Rules of this file:
- Compiled with Numba; `core` is the array of `slots`.
- The CPU state is changed only after everything that can fail has succeeded.
"""

from numba import njit
from unicorn import x86_const

from thinbox import paging
from thinbox.isolation import undo
from thinbox.machine import slots
from thinbox.machine.compiled import compiled
from thinbox.machine.intrinsics import address_of, call3, load32, load64, store32, store64, words_at
from thinbox.machine.state_bits import (
    AC,
    CPL_MASK,
    CR4_SMAP,
    HF_ADDSEG,
    HF_CS32_SS32,
    HF_CS64,
    HF_INHIBIT_IRQ,
    IF,
    NT,
    RF,
    TF,
    VM,
)

REG_CR3 = int(x86_const.UC_X86_REG_CR3)
REG_RIP = int(x86_const.UC_X86_REG_RIP)
REG_EFLAGS = int(x86_const.UC_X86_REG_EFLAGS)

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
STACK_FAULT = 12
GENERAL_PROTECTION = 13
CONTRIBUTORY = (1 << 0) | (1 << 10) | (1 << 11) | (1 << 12) | (1 << 13) | (1 << 21)
"""Vectors of contributory exceptions (SDM vol. 3A, table 6-4; #CP by its later editions)."""
DEBUG, BREAKPOINT = 1, 3
INT3 = 0xCC
EXTERNAL = 1
"""EXT of an error code: what could not be delivered was no `int n` (SDM vol. 3A, 6.13)."""
EXCEPTION, SOFTWARE, INTERRUPT = 0, 1, 2
"""Where what is delivered comes from: the CPU, `int n`, a device. The last two are benign, whatever their vector."""
INVALID_OPCODE = 6
INT80 = 0x80
PUSHES_ERROR = (1 << 8) | (1 << 10) | (1 << 11) | (1 << 12) | (1 << 13) | (1 << 14) | (1 << 17) | (1 << 21)
IS_FAULT = (1 << 0) | (1 << 5) | (1 << 6) | (1 << 7) | (0b11111 << 10) | (1 << 16) | (1 << 17) | (1 << 19)
"""Vectors that push an error code, and those that are faults (SDM vol. 3A, table 6-1)."""
NO_ERROR = -1

native = njit(error_model="numpy")

walk_leaf = compiled(paging.walk_leaf)
translate = compiled(paging.translate)
mark_written = compiled(paging.mark_written)
save_page = compiled(undo.save_page)
next_unmarked = compiled(undo.next_unmarked)


@native
def write_cr3(uc, core, value):
    """Load CR3 through Unicorn, which flushes its TLB (no PCID: nothing survives)."""
    core[slots.SCRATCH] = value
    call3(core[slots.REG_WRITE], uc, REG_CR3, address_of(core) + 8 * slots.SCRATCH)


@native
def read_flags(uc, core):
    """Return RFLAGS, put together from the pieces Unicorn keeps it in."""
    core[slots.SCRATCH] = 0
    call3(core[slots.REG_READ], uc, REG_EFLAGS, address_of(core) + 8 * slots.SCRATCH)
    return core[slots.SCRATCH] & 0xFFFFFFFF


@native
def write_flags(uc, core, value):
    """Load RFLAGS."""
    core[slots.SCRATCH] = value
    call3(core[slots.REG_WRITE], uc, REG_EFLAGS, address_of(core) + 8 * slots.SCRATCH)


@native
def stop(uc, core, reason):
    """Stop the CPU before its next block, and say why."""
    core[slots.STOP] = reason
    call3(core[slots.EMU_STOP], uc, 0, 0)


@native
def load_segment(core, number, selector, attributes):
    """Fill a segment register's cached descriptor with a flat one."""
    segment = core[slots.ENV] + core[slots.OFF_SEGS] + SEG_BYTES * number
    store32(segment, selector)
    store64(segment + 8, 0)
    store32(segment + 16, 0xFFFFFFFF)
    store32(segment + 20, attributes)


@native
def enter_ring0(core, code_selector):
    """Make CS a 64-bit ring 0 code segment, and the mode bits agree with it."""
    hflags = core[slots.ENV] + core[slots.OFF_HFLAGS]
    store32(hflags, (load32(hflags) & ~(CPL_MASK | HF_ADDSEG | HF_INHIBIT_IRQ)) | HF_CS32_SS32 | HF_CS64)
    load_segment(core, CS, code_selector, CODE64)


@native
def load_virtual(core, root, vaddr):
    """Return the word at guest-virtual `vaddr` (8-byte aligned, or inside one page), and whether it is mapped."""
    paddr = translate(words_at(core[slots.WORDS]), core[slots.GUEST_END], root, vaddr)
    if paddr < 0 or paddr + 8 > core[slots.GUEST_END]:
        return 0, False
    return load64(core[slots.WORDS] + paddr), True


@native
def has_smap(core):
    """Whether CR4.SMAP is set."""
    return load64(core[slots.ENV] + core[slots.OFF_CR] + 32) & CR4_SMAP != 0


@native
def load_system(core, root, vaddr):
    """`load_virtual` for the CPU's own structures: with SMAP, never from user memory (SDM vol. 3A, 4.6.1)."""
    if has_smap(core) and walk_leaf(words_at(core[slots.WORDS]), core[slots.GUEST_END], root, vaddr) & paging.USER:
        return 0, False
    return load_virtual(core, root, vaddr)


@native
def note_fault(core, vaddr, error):
    """Leave a page fault met on the way to a handler where `deliver` finds it."""
    core[slots.FAULT_VADDR] = vaddr
    core[slots.FAULT_ERROR] = error


@native
def note_system_fault(core, root, vaddr):
    """`note_fault` for what `load_system` refused."""
    leaf = walk_leaf(words_at(core[slots.WORDS]), core[slots.GUEST_END], root, vaddr)
    note_fault(core, vaddr, leaf & paging.FAULT_PRESENT if leaf & paging.USER else 0)


@native
def load_unaligned(core, root, vaddr):
    """Return the word at any guest-virtual `vaddr`, read by the CPU itself for ring 0, and whether it is mapped.

    If it is not, the first byte that is missing is noted.
    """
    first, ok_first = load_system(core, root, vaddr & ~7)
    if not ok_first:
        note_system_fault(core, root, vaddr)
        return 0, False
    shift = 8 * (vaddr & 7)
    if shift == 0:
        return first, True
    second, ok_second = load_system(core, root, (vaddr & ~7) + 8)
    if not ok_second:
        note_system_fault(core, root, (vaddr & ~7) + 8)
        return 0, False
    return ((first >> shift) & ((1 << (64 - shift)) - 1)) | (second << (64 - shift)), True


@native
def save_for_undo(core, paddr):
    """Save the page at `paddr` before its first write in this call; with no room left, the log is lost."""
    if not core[slots.UNDO] or paddr + 4096 > core[slots.GUEST_END]:
        return
    count = save_page(
        words_at(core[slots.WORDS]),
        words_at(core[slots.UNDO_POOL]),
        words_at(core[slots.UNDO_LOG]),
        core[slots.UNDO_CAPACITY],
        words_at(core[slots.UNDO_SAVED]),
        core[slots.UNDO_COUNT],
        paddr,
    )
    if count < 0:
        core[slots.UNDO] = 0
    else:
        core[slots.UNDO_COUNT] = count


@native
def mark_touched(core, root, vaddr, write):
    """Set ACCESSED and DIRTY in the kernel's own table as the CPU would, the table pages saved first."""
    words = words_at(core[slots.WORDS])
    found = next_unmarked(words, core[slots.GUEST_END], root, vaddr, write)
    while found >= 0:
        index = found >> 1
        save_for_undo(core, (index << 3) & ~0xFFF)
        words[index] |= paging.ACCESSED
        if found & 1 and write:
            words[index] |= paging.DIRTY
        found = next_unmarked(words, core[slots.GUEST_END], root, vaddr, write)


@native
def push_frame(core, root, rsp, frame, count, spares_users):
    """Store `count` words of `frame` from `rsp` upwards, and return -1; nothing is stored if a page refuses it, as one
    of user memory does if `spares_users`.

    Then the new fault's vector is returned. The CPU pushes downwards, so the highest word that has no page faults.
    """
    words = words_at(core[slots.WORDS])
    for i in range(count - 1, -1, -1):
        vaddr = rsp + 8 * i
        if vaddr >> 47 != 0 and vaddr >> 47 != -1:
            return STACK_FAULT
        leaf = walk_leaf(words, core[slots.GUEST_END], root, vaddr)
        if leaf == 0 or not leaf & paging.WRITABLE or (leaf & paging.FRAME_MASK) + 4096 > core[slots.GUEST_END]:
            note_fault(core, vaddr, paging.FAULT_WRITE | (leaf & paging.FAULT_PRESENT))
            return PAGE_FAULT
        if core[slots.WALL_SEALS] and words_at(core[slots.WALL_SEALS])[(leaf & paging.FRAME_MASK) >> 12]:
            note_fault(core, vaddr, paging.FAULT_WRITE | paging.FAULT_PRESENT)
            return PAGE_FAULT
        if spares_users and leaf & paging.USER:
            note_fault(core, vaddr, paging.FAULT_WRITE | paging.FAULT_PRESENT)
            return PAGE_FAULT
    for i in range(count):
        vaddr = rsp + 8 * i
        paddr = translate(words, core[slots.GUEST_END], root, vaddr)
        if paddr < 0:
            # A stack that lies in its own page tables: the words before have unmapped it.
            continue
        if core[slots.UNDO]:
            mark_touched(core, root, vaddr, 1)
            save_for_undo(core, paddr & ~0xFFF)
        else:
            mark_written(words, core[slots.GUEST_END], root, vaddr)
        store64(core[slots.WORDS] + paddr, frame[i])
    return -1


@native
def pick_stack(core, root, ist, cpl):
    """Return the RSP the handler starts from, and whether the TSS gave it readably (SDM vol. 3A, 6.14.2, 6.14.5)."""
    if ist == 0 and cpl == 0:
        return load64(core[slots.ENV] + RSP) & ~15, True
    # RSP0 is at byte 4 of the TSS, IST1 at byte 36 (SDM vol. 3A, figure 7-11).
    offset = 4
    if ist:
        offset = 36 + 8 * (ist - 1)
    value, mapped = load_unaligned(core, root, load64(core[slots.ENV] + core[slots.OFF_TR] + 8) + offset)
    return value & ~15, mapped


@native
def deliver_once(uc, core, vector, error, origin):
    """Enter the handler of `vector` as SDM vol. 3A, 6.14 says; return the vector of a new fault, or -1.

    1. read the gate; 2. choose the stack; 3. push the frame; 4. load CS, SS, RSP, RIP, RFLAGS. A fault
    in 1 to 3 leaves the CPU untouched, so that the caller can deliver that fault instead; where a page fault
    was, and its error code, stand in `FAULT_VADDR` and `FAULT_ERROR`.
    """
    env = core[slots.ENV]
    root = load64(env + core[slots.OFF_CR] + 24)
    idt = load64(env + core[slots.OFF_IDT] + 8)
    if 16 * vector + 15 > load32(env + core[slots.OFF_IDT] + 16):
        return GENERAL_PROTECTION
    low, ok_low = load_unaligned(core, root, idt + 16 * vector)
    if not ok_low:
        return PAGE_FAULT
    high, ok_high = load_unaligned(core, root, idt + 16 * vector + 8)
    if not ok_high:
        return PAGE_FAULT
    cpl = load32(env + core[slots.OFF_HFLAGS]) & CPL_MASK
    if origin == SOFTWARE and cpl == 3 and low & DPL3 != DPL3:
        return GENERAL_PROTECTION
    if not low & (1 << 47):
        return SEGMENT_NOT_PRESENT
    ist = (low >> 32) & 7
    target, ok_stack = pick_stack(core, root, ist, cpl)
    if not ok_stack:
        return PAGE_FAULT
    flags = read_flags(uc, core)
    saved = flags
    if origin == EXCEPTION and vector < 32 and (IS_FAULT >> vector) & 1:
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
    spares_users = has_smap(core) and (cpl == 3 or not flags & AC)
    refused = push_frame(core, root, target, frame, count, spares_users)
    if refused >= 0:
        return refused
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


@native
def is_double_fault(first, origin, second):
    """Tell whether fault `second`, met while `first` was delivered, makes #DF of both (SDM vol. 3A, table 6-5)."""
    if origin != EXCEPTION or first >= 32:
        return False
    contributory = (CONTRIBUTORY >> second) & 1
    if first == PAGE_FAULT:
        return second == PAGE_FAULT or contributory != 0
    return (CONTRIBUTORY >> first) & 1 != 0 and contributory != 0


@native
def point_at_int(core, vector):
    """Move RIP from behind an `int n` to it, for a fault of its own."""
    env = core[slots.ENV]
    rip = load64(env + core[slots.OFF_EIP])
    code, _mapped = load_virtual(core, load64(env + core[slots.OFF_CR] + 24), rip - 1)
    length = 1 if vector == BREAKPOINT and code & 0xFF == INT3 else 2
    store64(env + core[slots.OFF_EIP], rip - length)


@native
def deliver(uc, core, vector, error, origin):
    """Deliver an exception or interrupt; return how many bytes lie below RIP in the frame (8: an error code).

    A fault on the way is delivered in its place, or becomes #DF, and during #DF a triple fault (SDM vol. 3A, 6.15,
    "Interrupt 8"). At most five rounds: benign, contributory, #PF, #DF.
    """
    first = vector
    second = deliver_once(uc, core, vector, error, origin)
    while second >= 0:
        if second == PAGE_FAULT:
            # Also on the way to #DF (SDM vol. 3A, 6.15, "Interrupt 14", the footnote on CR2).
            store64(core[slots.ENV] + core[slots.OFF_CR] + 16, core[slots.FAULT_VADDR])
        if vector == DOUBLE_FAULT and origin == EXCEPTION:
            core[slots.STOP_DETAIL] = first
            stop(uc, core, slots.STOP_TRIPLE_FAULT)
            return 8
        if is_double_fault(vector, origin, second):
            second, error = DOUBLE_FAULT, 0
        elif second == PAGE_FAULT:
            error = core[slots.FAULT_ERROR]
        elif second == STACK_FAULT:
            error = 0 if origin == SOFTWARE else EXTERNAL
        else:
            error = vector * 8 + 2 + (0 if origin == SOFTWARE else EXTERNAL)
        if origin == SOFTWARE:
            point_at_int(core, vector)
        vector, origin = second, EXCEPTION
        second = deliver_once(uc, core, vector, error, origin)
    return 0 if error == NO_ERROR else 8
