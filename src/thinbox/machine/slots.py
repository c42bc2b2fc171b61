"""The words shared between Python and the compiled hooks: one `int64` array, each slot named here.

Why it exists: a hook gets a single pointer. Whatever it needs (addresses of the CPU state and of RAM,
the clock, which table is active) lives in this array, so both sides see the same thing at the same time.

Rules of this file: names only. Offsets into the CPU state are filled by `layout_probe`.
"""

(
    ENV,  # host address of the live CPU state (CPUX86State)
    REG_READ,  # host address of uc_reg_read
    REG_WRITE,  # host address of uc_reg_write
    EMU_STOP,  # host address of uc_emu_stop
    WORDS,  # host address of guest RAM
    FRAME_END,  # guest-physical end of all RAM, hidden part included (bytes): the bound of our own tables
    GUEST_END,  # guest-physical end of the RAM that is the guest's (bytes): the bound of all that the guest names
    # offsets into the CPU state, in bytes
    OFF_EIP,
    OFF_EFLAGS,
    OFF_HFLAGS,
    OFF_SEGS,
    OFF_TR,
    OFF_IDT,
    OFF_CR,
    OFF_STAR,
    OFF_LSTAR,
    OFF_CSTAR,
    OFF_FMASK,
    OFF_TSC_AUX,
    OFF_ERROR,
    OFF_IS_INT,
    OFF_OLD,
    # virtual time
    CLOCK,  # virtual time in ns: bytes of code executed, plus time slept
    SLEPT,  # the part of CLOCK that was slept in HLT (ns)
    DEADLINE,  # stop at the first block at or after this time (ns)
    BLOCK_START,
    BLOCK_END,
    CUT_RIP,  # where a block goes on that a fault cut in two, and the CLOCK of that moment
    CUT_CLOCK,
    BRIEF_START,  # blocks of this code (vaddr) do not stop at DEADLINE, but at BRIEF_DEADLINE
    BRIEF_END,
    BRIEF_DEADLINE,
    ATTENTION,  # CLOCK from which the block hook has to look: DEADLINE, or 0 while IRQ_WAITING
    IRQ_WAITING,  # an unmasked interrupt waits: stop at the first block that may take it
    STOP,  # why the CPU stopped, see STOP_*
    STOP_DETAIL,
    # the system call instruction
    CALL_NR,
    CALL_ARG0,
    CALL_ARG1,
    CALL_ARG2,
    CALL_ARG3,
    CALL_ARG4,
    CALL_ARG5,
    CURRENT_PADDR,  # guest-physical address of the per-CPU `current_task`, 0 before it is known
    # callbacks into Python (host addresses)
    ON_HYPERCALL,
    ON_JUDGE,
    ON_CALL,  # asked at each call instruction of user code (1: a 32-bit one) if a plan is in force, else 0
    # isolation
    ACTIVE,  # ON_SCI while the CPU runs on an SCI table, ON_UNDO on the undo table, 0 on the kernel's
    SCI_ROOT,  # the SCI root of the current task's isolated call, 0 if it is not in one
    KERNEL_ROOT,  # what the kernel believes CR3 holds, while ACTIVE
    RESUME_RSP,  # RSP of the iretq that goes back into the interrupted isolated call, 0 if none
    POOL,  # host address of the pool of free table frames
    APPROVED,  # host address of the table of approved fetch addresses
    APPROVED_MASK,
    CONDITIONS,  # host address of the table of fetch addresses approved on a condition (`fault.condition_slot`)
    CONDITIONS_MASK,
    CACHEABLE_DATA,  # 1 if the policy grants kernel data for good
    VIEW,  # host address of the words of `isolation.view_rules`, 0 if the current tenant's view hides nothing
    # undo (isolation.undo)
    UNDO_MODE,  # 1: pages are granted read-only at first, the user half is mapped on demand
    UNDO,  # 1 while the log of the current call is whole
    UNDO_ROOT,  # the table on which exceptions inside a call run: everything granted, first writes saved
    UNDO_CR2,  # what the guest must find in CR2 while its handler runs on the undo table
    UNDO_POOL,  # host address of the pool of frames for copies and for that table
    UNDO_LOG,
    UNDO_COUNT,
    UNDO_CAPACITY,
    UNDO_SAVED,  # host address of the bits of pages saved
    LOG,  # host address of the fault log
    LOG_COUNT,
    LOG_CAPACITY,
    TRACK_USE,  # 1: granted entries start without A and D, so that the CPU marks what is used (coverage)
    SCRATCH,
    CALL_KEY,  # the number of the current task's isolated call, as `isolation.stack` keeps approvals by call
    ROWS,  # host address of the table of approvals by block, by call number, and of stack frames
    ROWS_MASK,
    ROW_KINDS,  # which kinds of approval the table holds, see `isolation.stack.is_approved`
    STACK_JUDGED,  # 1 if no fetch is granted without asking unless every frame of the stack was approved
    ORC_IPS,
    ORC,
    ORC_COUNT,
    STARTS,  # host address of the starts of functions
    STARTS_COUNT,
    BOTTOMS,  # host address of the return addresses below which there is no call
    BOTTOMS_COUNT,
    WALK,  # host address of three words for the walk
    # the interrupted isolated call: its last block, and where it goes on
    RESUME_BLOCK_START,
    RESUME_BLOCK_END,
    RESUME_RIP,
    # exceptions without progress
    STUCK_CLOCK,  # CLOCK at the last exception
    STUCK_COUNT,  # exceptions since it last moved
    STUCK_LIMIT,  # so many are a machine that hangs: it is stopped
    COUNT_FAULTS,
    COUNT_SYSCALLS,
    COUNT_IRQS,
    COUNT_BLOCKS,
    COUNT_DELIVERED,  # exceptions and interrupts delivered through the guest's IDT
    COUNT_GRANTS,  # pages the policy put into SCI tables
    COUNT_USER_FAULTS,  # page faults, other exceptions and interrupts that interrupted user code
    COUNT_USER_EXCEPTIONS,
    COUNT_USER_INTERRUPTS,
    # translated code and stores, see `coherence`
    UC,  # Unicorn's handle
    TLB_FILL,  # host addresses of functions of Unicorn
    TLB_SET_PAGE,
    TLB_FLUSH,
    RAISE,
    DROP_CODE,
    PAGE_MARKS,  # host address of one word for each page of the guest's RAM
    ENTRY_PLACE,  # where the last entry of a walk stands
    # a page fault on the way to a handler
    FAULT_VADDR,
    FAULT_ERROR,
    # data breakpoints, see `watch_hooks`
    WATCH_HIT,  # the breakpoints that the last instruction hit, as in DR6; its #DB is to be delivered
    WATCH_RIP,  # where that instruction is
    # the wall, see `wall_hooks`
    WALL_SEALS,  # host address of one word for each page (`isolation.wall_rules`), 0 while there is no wall
    WALL_ROOT,  # the kernel's own table, by which `struct page` is found
    WALL_VIEW,  # host address of the words of `isolation.view_rules`
    WALL_SEEN,  # host address of `wall_rules.SEEN_WORDS` for each page: what was judged of it
    WALL_TENANT,  # the number of the tenant on the CPU, 0 if nothing is hidden from it
    WALL_TASK,  # the number of its task: no two have the same
    WALL_POKING,  # the root of the address space by which the kernel patches its text
    WALL_PATCHING,  # 1 while the kernel patches its text (`__text_poke`)
    WALL_TEXT,  # the kernel's text: first address, address behind it, frame of the first
    WALL_TEXT_END,
    WALL_TEXT_FRAME,
    WALL_FLUSHES,  # 1: no switch of tables flushes the TLB when user code is left, so the wall does
    WALL_HIT,  # the rule that the access to be asked about met, 0 for none
    WALL_CR2,  # what the guest must find in CR2 behind it
    WALL_FRAME,  # the frame that it would reach
    WALL_PASS,  # page and kind of the access that was asked about and may be, to `WALL_FRAME`
    WALL_BUS,  # page and kind of the access that is to reach the empty bus
    ON_WALL,  # asked about it
    FRAME,  # eight words: the exception frame being built
) = range(131)

SLOT_COUNT = FRAME + 8

STOP_NONE = 0
STOP_DEADLINE = 1
STOP_IRQ_WINDOW = 2
STOP_PYTHON = 3
STOP_TRIPLE_FAULT = 4

ON_SCI = 1
ON_UNDO = 2

RETRY = 0
"""The fault was dealt with: run the instruction again."""
DELIVER = 1
"""The fault is the guest's own: leave the SCI table and deliver it."""
REDIRECTED = 2
"""Python changed where the CPU goes on."""

ENTER = 0
"""The call goes on into the kernel."""
ANSWERED = 1
"""The call was answered outside: RAX has the result, the kernel is not entered."""
ENTER_AND_REPEAT = 2
"""The registers hold another call; when it returns, the call instruction runs again."""

HYPERCALL_NR = 0x7B0C5
"""System call number by which the agent calls thinbox; the kernel has no call of that number."""
