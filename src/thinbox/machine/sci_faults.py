"""Page faults on an SCI table, compiled: whose fault it is, whether somebody has to be asked, and the way onto a table.

Why it exists: it runs some sixty times in every isolated call. It acts alone only on what `isolation.fault` says is
decided already; the rest is asked of Python.

Rules of this file: compiled with Numba; `core` is the array of `slots`.
"""

from thinbox import paging
from thinbox.isolation import fault, pagetable, stack
from thinbox.machine import slots
from thinbox.machine.compiled import compiled
from thinbox.machine.delivery import (
    RBP,
    RSP,
    native,
    walk_leaf,
    write_cr3,
)
from thinbox.machine.granting import grant_now
from thinbox.machine.intrinsics import call3, load64, words_at
from thinbox.machine.view_hooks import is_others_file, may_touch

classify = compiled(fault.classify)
classify_user = compiled(fault.classify_user)
is_write_upgrade = compiled(fault.is_write_upgrade)
needs_judgement = compiled(fault.needs_judgement)
is_approved_while_mapped = compiled(fault.is_approved_while_mapped)
is_approved = compiled(stack.is_approved)
is_stack_approved = compiled(stack.is_stack_approved)
sync_user_half = compiled(pagetable.sync_user_half)


@native
def uncount_block(core, rip):
    """Take back the part of the current block that is about to run, and be counted, once more.

    What is left of it has begun: no interrupt comes before it that would not come un-isolated (hooks.count_block).
    """
    if core[slots.BLOCK_START] <= rip < core[slots.BLOCK_END]:
        core[slots.CLOCK] -= core[slots.BLOCK_END] - rip
        core[slots.BLOCK_END] = rip
        core[slots.CUT_RIP] = rip
        core[slots.CUT_CLOCK] = core[slots.CLOCK]


@native
def is_condition_met(core, vaddr):
    """Tell whether the policy has approved of the fetch as long as certain pages are mapped, and they are."""
    if core[slots.CONDITIONS] == 0:
        return False
    conditions, mask = words_at(core[slots.CONDITIONS]), core[slots.CONDITIONS_MASK]
    words, end, root = words_at(core[slots.WORDS]), core[slots.FRAME_END], core[slots.SCI_ROOT]
    return is_approved_while_mapped(words, end, root, conditions, mask, vaddr)


@native
def fetch_needs_judgement(core, vaddr, rip):
    """Tell whether the policy must be asked for a fetch that is not approved by its address alone.

    A fetch that misses elsewhere than at RIP is the engine reading on, in a straight line, from the block at RIP.
    """
    rows, mask = words_at(core[slots.ROWS]), core[slots.ROWS_MASK]
    start, end = core[slots.BLOCK_START], core[slots.BLOCK_END]
    if vaddr != rip:
        start, end = rip, vaddr
    return not is_approved(rows, mask, vaddr, start, end, core[slots.CALL_KEY], core[slots.ROW_KINDS])


@native
def stack_needs_judgement(core, root, kernel_root, rip):
    """Tell whether the stack under the instruction at `rip` holds a frame that was not approved yet."""
    env = core[slots.ENV]
    return not is_stack_approved(
        words_at(core[slots.WORDS]),
        core[slots.GUEST_END],
        core[slots.FRAME_END],
        root,
        kernel_root,
        words_at(core[slots.ORC_IPS]),
        words_at(core[slots.ORC]),
        core[slots.ORC_COUNT],
        words_at(core[slots.STARTS]),
        core[slots.STARTS_COUNT],
        words_at(core[slots.BOTTOMS]),
        core[slots.BOTTOMS_COUNT],
        words_at(core[slots.ROWS]),
        core[slots.ROWS_MASK],
        rip,
        load64(env + RSP),
        load64(env + RBP),
        words_at(core[slots.WALK]),
    )


@native
def isolated_fault(uc, core, error, rip):
    """Answer a page fault on an SCI table; return `RETRY`, `DELIVER` or `REDIRECTED`."""
    vaddr = load64(core[slots.ENV] + core[slots.OFF_CR] + 16)
    words = words_at(core[slots.WORDS])
    end = core[slots.GUEST_END]
    undo_mode = core[slots.UNDO_MODE]
    if undo_mode and vaddr >= 0:
        kind = classify_user(words, end, core[slots.KERNEL_ROOT], vaddr, error)
    else:
        kind = classify(words, end, core[slots.SCI_ROOT], core[slots.KERNEL_ROOT], vaddr, error)
    if kind == fault.SYNC:
        sync_user_half(words, end, core[slots.SCI_ROOT], core[slots.KERNEL_ROOT])
        write_cr3(uc, core, core[slots.SCI_ROOT])
        return slots.RETRY
    if kind == fault.GUEST:
        return slots.DELIVER
    kernel_root, approved = core[slots.KERNEL_ROOT], words_at(core[slots.APPROVED])
    mask, cacheable = core[slots.APPROVED_MASK], core[slots.CACHEABLE_DATA]
    root, asked = core[slots.SCI_ROOT], False
    if kind != fault.USER_PAGE and core[slots.ACTIVE] == slots.ON_SCI:
        known = undo_mode and is_write_upgrade(words, end, core[slots.FRAME_END], root, kernel_root, vaddr, error)
        asked = not known and needs_judgement(words, end, kernel_root, approved, mask, cacheable, vaddr, error)
        if error & paging.FAULT_FETCH:
            asked = asked and not is_condition_met(core, vaddr)
            if asked and core[slots.ROW_KINDS]:
                asked = fetch_needs_judgement(core, vaddr, rip)
            if not asked and core[slots.STACK_JUDGED]:
                asked = stack_needs_judgement(core, root, kernel_root, rip)
        elif not asked and core[slots.VIEW]:
            leaf = walk_leaf(words, end, kernel_root, vaddr)
            asked = not known and not may_touch(core, kernel_root, leaf, vaddr)
            if error & paging.FAULT_WRITE and not asked:
                asked = is_others_file(core, kernel_root, leaf)
    room = core[slots.LOG_COUNT] < core[slots.LOG_CAPACITY]
    if not asked and room and grant_now(uc, core, vaddr, error, rip) == fault.GRANTED:
        return slots.RETRY
    return call3(core[slots.ON_JUDGE], vaddr, error, rip)


@native
def activate(uc, core):
    """Switch from the kernel's table to the current task's SCI table, user half brought up to date."""
    if core[slots.ACTIVE] != slots.ON_UNDO:
        core[slots.KERNEL_ROOT] = load64(core[slots.ENV] + core[slots.OFF_CR] + 24)
    if not core[slots.UNDO_MODE]:
        sync_user_half(
            words_at(core[slots.WORDS]), core[slots.GUEST_END], core[slots.SCI_ROOT], core[slots.KERNEL_ROOT]
        )
    write_cr3(uc, core, core[slots.SCI_ROOT])
    core[slots.ACTIVE] = slots.ON_SCI
