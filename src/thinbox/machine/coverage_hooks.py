"""The compiled part of coverage: which blocks of kernel text a call executes.

Why it exists: it runs on every block while coverage is on, and not at all while it is off: `on_block` here
takes the place of `hooks.on_block`, so a run without coverage pays nothing.

Rules of this file:
- Compiled with Numba, cached on disk; `cov` is an array of its own with the slots named here.
- A block, known by its start and its length, gets a number when it is first executed, and keeps it.
- A call's log has each block once. Whoever empties the log takes the marks of its blocks back, so that
  emptying costs what the call executed and not what the kernel is long.
"""

from numba import cfunc, types

from thinbox.machine.compiled import CACHE_COMPILED
from thinbox.machine.delivery import RSP, native
from thinbox.machine.hooks import count_block
from thinbox.machine.intrinsics import load64, store32, store64, words_at

(
    ENV,  # host address of the live CPU state
    CORE,  # host address of the array of `slots`
    TEXT_START,  # first address of kernel text
    TEXT_BYTES,
    RECORDING,  # 1 while the tenant's task runs inside a call
    INTERRUPT_RSP,  # RSP of the iretq that ends the interrupt which arrived inside the call, 0 if none
    KNOWN,  # host address of one word for each byte of text: number << 24 | bytes << 8 | marks, 0 if none starts there
    BLOCKS,  # host address of the blocks by number: (offset from TEXT_START) << 16 | bytes
    BLOCK_COUNT,
    CALL_LOG,  # host address of the log of the call: 32-bit block numbers
    CALL_COUNT,
    IRQ_LOG,  # the same for interrupts that arrived inside calls; never emptied
    IRQ_COUNT,
    CAPACITY,  # entries of BLOCKS and of each log
    LOST,  # blocks that found no room
) = range(15)
SLOT_COUNT = 15

BYTES_BITS = 16
BYTES_MASK = (1 << BYTES_BITS) - 1
MARKS_BITS = 8
NUMBER_SHIFT = BYTES_BITS + MARKS_BITS
IN_CALL, IN_INTERRUPT = 1, 2
"""Marks: the block is in the call's log, in the interrupts' log."""


@native
def note_block(cov, offset, size):
    """Mark and log the block in the call, or in the interrupt that arrived inside it."""
    at = cov[KNOWN] + 8 * offset
    known = load64(at)
    mark, log = IN_CALL, CALL_LOG
    if cov[INTERRUPT_RSP]:
        mark, log = IN_INTERRUPT, IRQ_LOG
    if (known >> MARKS_BITS) & BYTES_MASK == size:
        if known & mark:
            return
    else:
        # New here, or the text was patched and the block ends elsewhere now: another block.
        number = cov[BLOCK_COUNT]
        if number >= cov[CAPACITY]:
            cov[LOST] += 1
            return
        store64(cov[BLOCKS] + 8 * number, (offset << BYTES_BITS) | size)
        cov[BLOCK_COUNT] = number + 1
        known = (number << NUMBER_SHIFT) | (size << MARKS_BITS)
    count = cov[log + 1]
    if count >= cov[CAPACITY]:
        cov[LOST] += 1
        return
    store64(at, known | mark)
    store32(cov[log] + 4 * count, known >> NUMBER_SHIFT)
    cov[log + 1] = count + 1


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_block(uc, vaddr, size, cov):
    """UC_HOOK_BLOCK: what `hooks.on_block` does, and the marks. A block at which the CPU stops is not marked."""
    if not count_block(uc, vaddr, size, words_at(cov[CORE])) or not cov[RECORDING]:
        return
    offset = vaddr - cov[TEXT_START]
    if 0 <= offset < cov[TEXT_BYTES]:
        note_block(cov, offset, min(types.int64(size), BYTES_MASK))


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_interrupt_end(_uc, _vaddr, _size, cov):
    """Code hook at `iretq`: the interrupt that arrived inside the call is over."""
    if cov[INTERRUPT_RSP] and load64(cov[ENV] + RSP) == cov[INTERRUPT_RSP]:
        cov[INTERRUPT_RSP] = 0
