"""The compiled hooks: what happens on every block, fault, system call and return from interrupt.

Why it exists: a Python hook on every block costs forty times the emulation itself; these cost next to
nothing, and they deliver exceptions and system calls without stopping the CPU. Decisions stay in
Python: a hook acts alone only on what `isolation.fault` says is decided already.

Rules of this file:
- Compiled with Numba by `native`, which is asked for their addresses; `core` is the array of `slots`.
- A hook never blocks and never raises.
- The CPU state is read and written in place; only CR3 and RFLAGS go through Unicorn's own functions,
  for the first flushes the TLB and the second is kept in pieces.
"""

from numba import cfunc, types

from thinbox import paging
from thinbox.machine import slots
from thinbox.machine.call_arguments import keep_int80_arguments, keep_syscall_arguments
from thinbox.machine.delivery import (
    DEBUG,
    EXCEPTION,
    GENERAL_PROTECTION,
    INT80,
    INTERRUPT,
    INVALID_OPCODE,
    NO_ERROR,
    PAGE_FAULT,
    PUSHES_ERROR,
    R11,
    RAX,
    RCX,
    RDX,
    REG_RIP,
    RSP,
    SOFTWARE,
    SS,
    STACK,
    deliver,
    enter_ring0,
    load_segment,
    load_virtual,
    native,
    read_flags,
    stop,
    write_cr3,
    write_flags,
)
from thinbox.machine.granting import active_root, grant_now, prefault_page
from thinbox.machine.intrinsics import address_of, call3, load32, load64, store32, store64, words_at
from thinbox.machine.sci_faults import activate, isolated_fault, uncount_block
from thinbox.machine.state_bits import CPL_MASK, DEBUG_WORDS, DR6, HF_CS64, HF_INHIBIT_IRQ, IF, RF


@native
def forget_user_pages(uc, core):
    """User code is left for the kernel: behind it, what it may reach is judged anew, for pages may change hands."""
    if core[slots.WALL_TENANT] and core[slots.WALL_FLUSHES]:
        write_cr3(uc, core, load64(core[slots.ENV] + core[slots.OFF_CR] + 24))


@native
def deliver_from(uc, core, vector, error, origin):
    """Deliver, leaving the SCI table first if the CPU is on it (rule 4), and remember the way back.

    A fault on the way may replace what was to be delivered: the frame says where the call goes on.
    With undo the handler runs on the undo table, which maps what the kernel's does and saves what is written.
    """
    core[slots.COUNT_DELIVERED] += 1
    if load32(core[slots.ENV] + core[slots.OFF_HFLAGS]) & CPL_MASK == 3:
        if origin == INTERRUPT:
            core[slots.COUNT_USER_INTERRUPTS] += 1
        elif vector == PAGE_FAULT:
            core[slots.COUNT_USER_FAULTS] += 1
        else:
            core[slots.COUNT_USER_EXCEPTIONS] += 1
        forget_user_pages(uc, core)
    nested = core[slots.ACTIVE]
    if nested:
        core[slots.ACTIVE] = 0
        write_cr3(uc, core, core[slots.KERNEL_ROOT])
    below = deliver(uc, core, vector, error, origin)
    if nested == slots.ON_SCI:
        core[slots.RESUME_BLOCK_START] = core[slots.BLOCK_START]
        core[slots.RESUME_BLOCK_END] = core[slots.BLOCK_END]
        core[slots.RESUME_RIP] = core[slots.FRAME + (below >> 3)]
        core[slots.RESUME_RSP] = load64(core[slots.ENV] + RSP) + below
    if nested and core[slots.UNDO_MODE]:
        core[slots.ACTIVE] = slots.ON_UNDO
        core[slots.UNDO_CR2] = load64(core[slots.ENV] + core[slots.OFF_CR] + 16)
        write_cr3(uc, core, core[slots.UNDO_ROOT])


@native
def is_stuck(uc, core):
    """Tell whether exceptions follow one another and no code runs between: handlers that cannot be fetched, on a stack
    without end, would keep the CPU here for ever, and no deadline would ever be looked at."""
    if core[slots.CLOCK] != core[slots.STUCK_CLOCK]:
        core[slots.STUCK_CLOCK] = core[slots.CLOCK]
        core[slots.STUCK_COUNT] = 0
    core[slots.STUCK_COUNT] += 1
    if core[slots.STUCK_COUNT] <= core[slots.STUCK_LIMIT]:
        return False
    core[slots.STUCK_COUNT] = 0
    stop(uc, core, slots.STOP_TRIPLE_FAULT)
    return True


@native
def report_hit(uc, core):
    """Deliver the #DB of the data breakpoints that were hit (SDM vol. 3B, 17.3.1: a trap)."""
    env = core[slots.ENV]
    dr6 = env + core[slots.OFF_OLD] - 8 * DEBUG_WORDS + 8 * DR6
    store64(dr6, load64(dr6) & ~15 | core[slots.WATCH_HIT])
    core[slots.WATCH_HIT] = 0
    deliver_from(uc, core, DEBUG, NO_ERROR, EXCEPTION)


@cfunc(types.void(types.int64, types.CPointer(types.int64)))
def report_breakpoints(uc, core):
    """`report_hit` for Python, between two runs."""
    report_hit(uc, core)


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)))
def on_watch_code(uc, vaddr, _size, core):
    """Code hook at every instruction while data breakpoints are switched on: what the one before has hit."""
    if core[slots.WATCH_HIT]:
        report_hit(uc, core)
        core[slots.SCRATCH] = load64(core[slots.ENV] + core[slots.OFF_EIP])
        call3(core[slots.REG_WRITE], uc, REG_RIP, address_of(core) + 8 * slots.SCRATCH)
    else:
        core[slots.WATCH_RIP] = vaddr


@native
def is_trap_first(uc, core, rip):
    """Deliver the #DB of the instruction before the one at `rip`, if it is that which was hit: tell whether."""
    if rip != core[slots.WATCH_RIP]:
        # Its trap goes first, and this fault will be again.
        report_hit(uc, core)
        return True
    # The one that hit did not end, and will hit again.
    core[slots.WATCH_HIT] = 0
    return False


@native
def ask_wall(uc, core, rule, vaddr, error, rip):
    """Put an access that met a rule of the wall before Python; what it refuses and nobody is killed for here is a
    general protection fault."""
    core[slots.WALL_HIT] = rule
    action = call3(core[slots.ON_WALL], vaddr, error, rip)
    core[slots.WALL_HIT] = 0
    if action == slots.RETRY and not error & paging.FAULT_FETCH:
        uncount_block(core, rip)
    if action == slots.DELIVER:
        deliver_from(uc, core, GENERAL_PROTECTION, 0, EXCEPTION)


@cfunc(types.void(types.int64, types.uint32, types.CPointer(types.int64)))
def on_exception(uc, vector, core):
    """UC_HOOK_INTR: every exception and software interrupt."""
    env = core[slots.ENV]
    error = load32(env + core[slots.OFF_ERROR])
    origin = SOFTWARE if load32(env + core[slots.OFF_IS_INT]) else EXCEPTION
    # Unicorn ends no exception by itself: left set, the next fault would be reported as a double fault.
    store32(env + core[slots.OFF_OLD], 0xFFFFFFFF)
    rip = load64(env + core[slots.OFF_EIP])
    if is_stuck(uc, core):
        core[slots.STOP_DETAIL] = vector
        return
    hit, vaddr = core[slots.WALL_HIT], load64(env + core[slots.OFF_CR] + 16)
    if hit:
        core[slots.WALL_HIT] = 0
        store64(env + core[slots.OFF_CR] + 16, core[slots.WALL_CR2])
    if core[slots.WATCH_HIT] and is_trap_first(uc, core, rip):
        return
    if hit:
        ask_wall(uc, core, hit, vaddr, error, rip)
        return
    if vector == PAGE_FAULT:
        core[slots.COUNT_FAULTS] += 1
        if core[slots.ACTIVE]:
            action = isolated_fault(uc, core, error, rip)
            if action == slots.RETRY and not error & paging.FAULT_FETCH:
                uncount_block(core, rip)
            if action != slots.DELIVER:
                if core[slots.ACTIVE] == slots.ON_UNDO:
                    store64(env + core[slots.OFF_CR] + 16, core[slots.UNDO_CR2])
                return
    if vector == INT80:
        keep_int80_arguments(core)
        if origin == SOFTWARE and core[slots.ON_CALL] != 0 and call3(core[slots.ON_CALL], 1, 0, 0) == slots.ANSWERED:
            return
    if origin == SOFTWARE or not (PUSHES_ERROR >> vector) & 1 or vector >= 32:
        error = NO_ERROR
    deliver_from(uc, core, vector, error, origin)


@cfunc(types.boolean(types.int64, types.CPointer(types.int64)))
def on_invalid(uc, core):
    """UC_HOOK_INSN_INVALID: #UD, `ud2` of BUG and WARN included; and `int $6`, which the engine takes for one."""
    store32(core[slots.ENV] + core[slots.OFF_OLD], 0xFFFFFFFF)
    origin = SOFTWARE if load32(core[slots.ENV] + core[slots.OFF_IS_INT]) else EXCEPTION
    deliver_from(uc, core, INVALID_OPCODE, NO_ERROR, origin)
    return True


@cfunc(types.void(types.int64, types.CPointer(types.int64), types.int64))
def inject(uc, core, vector):
    """Deliver an external interrupt; called by Python between two runs, never inside one."""
    core[slots.COUNT_IRQS] += 1
    deliver_from(uc, core, vector, NO_ERROR, INTERRUPT)


@cfunc(types.void(types.int64, types.CPointer(types.int64)))
def on_syscall(uc, core):
    """UC_HOOK_INSN for `syscall`: answer the agent, or enter the kernel (SDM vol. 2B, SYSCALL)."""
    env = core[slots.ENV]
    number = load64(env + RAX)
    if number == slots.HYPERCALL_NR and core[slots.ON_HYPERCALL] != 0 and call3(core[slots.ON_HYPERCALL], 0, 0, 0):
        return
    core[slots.COUNT_SYSCALLS] += 1
    flags = read_flags(uc, core)
    here = load64(env + core[slots.OFF_EIP])
    # It ends its block. Prefixes are part of it (SDM vol. 2A, 2.1): it is 2 to 15 bytes long.
    back = core[slots.BLOCK_END]
    compat = not load32(env + core[slots.OFF_HFLAGS]) & HF_CS64
    keep_syscall_arguments(core, compat)
    if core[slots.ON_CALL] != 0:
        answer = call3(core[slots.ON_CALL], 1 if compat else 0, 0, 0)
        if answer == slots.ANSWERED:
            # As after `sysret`.
            store64(env + RCX, back)
            store64(env + R11, flags & ~RF)
            return
        if answer == slots.ENTER_AND_REPEAT:
            back = here
            keep_syscall_arguments(core, compat)
    forget_user_pages(uc, core)
    store64(env + RCX, back)
    store64(env + R11, flags & ~RF)
    entry = load64(env + core[slots.OFF_LSTAR])
    if compat:
        entry = load64(env + core[slots.OFF_CSTAR])
    selector = (load64(env + core[slots.OFF_STAR]) >> 32) & 0xFFFC
    enter_ring0(core, selector)
    load_segment(core, SS, selector + 8, STACK)
    write_flags(uc, core, flags & ~load64(env + core[slots.OFF_FMASK]) & ~RF)
    # Unicorn adds the length of the instruction after this hook.
    store64(env + core[slots.OFF_EIP], entry - (core[slots.BLOCK_END] - here))


@native
def read_clock(core):
    """Put virtual time into EDX:EAX."""
    env = core[slots.ENV]
    store64(env + RAX, core[slots.CLOCK] & 0xFFFFFFFF)
    store64(env + RDX, (core[slots.CLOCK] >> 32) & 0xFFFFFFFF)


@cfunc(types.int32(types.int64, types.CPointer(types.int64)))
def on_rdtsc(_uc, core):
    """UC_HOOK_INSN for `rdtsc`: virtual time, one tick a nanosecond."""
    read_clock(core)
    return 1


@cfunc(types.int32(types.int64, types.CPointer(types.int64)))
def on_rdtscp(_uc, core):
    """UC_HOOK_INSN for `rdtscp`: as `rdtsc`, and the low half of MSR TSC_AUX (SDM vol. 2B, RDTSCP)."""
    read_clock(core)
    env = core[slots.ENV]
    store64(env + RCX, load32(env + core[slots.OFF_TSC_AUX]) & 0xFFFFFFFF)
    return 1


@native
def count_block(uc, vaddr, size, core):
    """Count a block that is about to run; False if the CPU stops before it.

    A block at which the CPU stops has not run and will be seen again: it is not counted. The rest of a block that
    a grant cut in two is no block: the CPU stops where it would have stopped without the grant.
    """
    if core[slots.CUT_RIP] != vaddr or core[slots.CUT_CLOCK] != core[slots.CLOCK]:
        env = core[slots.ENV]
        if core[slots.IRQ_WAITING]:
            inhibited = load32(env + core[slots.OFF_HFLAGS]) & HF_INHIBIT_IRQ
            if load64(env + core[slots.OFF_EFLAGS]) & IF and not inhibited:
                stop(uc, core, slots.STOP_IRQ_WINDOW)
                return False
        is_brief = core[slots.BRIEF_START] <= vaddr and vaddr + size <= core[slots.BRIEF_END]
        if core[slots.CLOCK] >= core[slots.BRIEF_DEADLINE if is_brief else slots.DEADLINE]:
            stop(uc, core, slots.STOP_DEADLINE)
            return False
    core[slots.CLOCK] += size
    core[slots.BLOCK_START] = vaddr
    core[slots.BLOCK_END] = vaddr + size
    return True


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)))
def on_block(uc, vaddr, size, core):
    """UC_HOOK_BLOCK: virtual time, and the first moment a waiting interrupt may be taken."""
    count_block(uc, vaddr, size, core)


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)))
def on_iretq(uc, _vaddr, _size, core):
    """Code hook at `iretq`: the way back into an interrupted isolated call (rules 4 and 9).

    Where the call goes on as if nothing had been, its last block is again the one before the interruption.
    Elsewhere (an exception was fixed up) the transfer is this `iretq`'s own.
    """
    rsp = load64(core[slots.ENV] + RSP)
    if core[slots.RESUME_RSP] == 0 or rsp != core[slots.RESUME_RSP]:
        return
    core[slots.RESUME_RSP] = 0
    rip, _mapped = load_virtual(core, load64(core[slots.ENV] + core[slots.OFF_CR] + 24), rsp)
    if rip == core[slots.RESUME_RIP]:
        core[slots.BLOCK_START] = core[slots.RESUME_BLOCK_START]
        core[slots.BLOCK_END] = core[slots.RESUME_BLOCK_END]
    activate(uc, core)


@cfunc(types.void(types.int64, types.CPointer(types.int64)))
def enter_table(uc, core):
    """`activate` for Python: at `do_syscall_64`, and when a task that slept in its call runs again."""
    activate(uc, core)


@cfunc(types.void(types.int64, types.CPointer(types.int64)))
def leave_table(uc, core):
    """Back to the kernel's table: the call ended, or another task is about to run."""
    if core[slots.ACTIVE]:
        core[slots.ACTIVE] = 0
        write_cr3(uc, core, core[slots.KERNEL_ROOT])


@cfunc(types.void(types.int64, types.CPointer(types.int64)))
def leave_for_deferred_work(uc, core):
    """The running call leaves its SCI table for work that is not its own, as for an interrupt: to the kernel's table,
    or with undo to the table that saves what is written."""
    write_cr3(uc, core, core[slots.KERNEL_ROOT])
    core[slots.ACTIVE] = 0
    if core[slots.UNDO_MODE]:
        core[slots.ACTIVE] = slots.ON_UNDO
        core[slots.UNDO_CR2] = load64(core[slots.ENV] + core[slots.OFF_CR] + 16)
        write_cr3(uc, core, core[slots.UNDO_ROOT])


@cfunc(types.int64(types.int64, types.CPointer(types.int64), types.int64, types.int64, types.int64))
def grant_page(uc, core, vaddr, error, rip):
    """`grant_now` for Python, after the policy has said yes."""
    return grant_now(uc, core, vaddr, error, rip)


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)))
def on_cr3_written(uc, _vaddr, _size, core):
    """Code hook behind `mov %reg, %cr3`: the kernel changed tables inside an isolated call.

    What it loaded becomes the kernel's table of this call (another mm: execve, text patching); the user
    half follows it, and the CPU goes back to the SCI table.
    """
    if not core[slots.ACTIVE]:
        return
    loaded = load64(core[slots.ENV] + core[slots.OFF_CR] + 24)
    if loaded == active_root(core):
        return
    if loaded != core[slots.KERNEL_ROOT]:
        # Another address space: what is written from here on is not saved.
        core[slots.UNDO] = 0
    if core[slots.ACTIVE] == slots.ON_SCI:
        activate(uc, core)
    elif loaded == core[slots.KERNEL_ROOT]:
        write_cr3(uc, core, core[slots.UNDO_ROOT])
    else:
        core[slots.ACTIVE] = 0


@native
def hide_sci_root(core, register):
    """Replace the SCI root by the kernel's own in a register the kernel just read CR3 into."""
    at = core[slots.ENV] + 8 * register
    if core[slots.ACTIVE] and load64(at) == active_root(core):
        store64(at, core[slots.KERNEL_ROOT])


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)))
def on_cr3_read(_uc, _vaddr, _size, pair):
    """Code hook behind `mov %cr3, %reg`; `pair` is the address of `core` and the register's number."""
    hide_sci_root(words_at(pair[0]), pair[1])


@cfunc(types.void(types.int64, types.CPointer(types.int64), types.int64, types.int64))
def prefault(uc, core, pages, count):
    """Map the pages listed at host address `pages`: `count` pairs of address and error code."""
    pairs = words_at(pages)
    for i in range(count):
        prefault_page(uc, core, pairs[2 * i], pairs[2 * i + 1])
