"""The compiled part of coverage: which blocks of kernel text a call executes.

Why it exists: it runs on every block while coverage is on, and not at all while it is off: `on_covered_block`
takes the place of `hooks.on_block`, so a run without coverage pays nothing.

Rules of this file:
- Compiled with Numba, cached on disk; `cov` is an array of its own, `coverage_slots`.
- A block, known by its start and its length, gets a number when it is first executed, and keeps it.
- A call's log has each block once. Whoever empties the log takes the marks of its blocks back, so that
  emptying costs what the call executed and not what the kernel is long.
"""

from numba import cfunc, types

from thinbox.machine.coverage_slots import (
    BLOCK_COUNT,
    BLOCKS,
    BYTES_BITS,
    BYTES_MASK,
    CALL_LOG,
    CAPACITY,
    CORE,
    ENV,
    IN_CALL,
    IN_INTERRUPT,
    INTERRUPT_RSP,
    IRQ_LOG,
    KNOWN,
    LOST,
    MARKS_BITS,
    NUMBER_SHIFT,
    RECORDING,
    TEXT_BYTES,
    TEXT_START,
)
from thinbox.machine.delivery import RSP, native
from thinbox.machine.hooks import count_block
from thinbox.machine.intrinsics import load64, store32, store64, words_at


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


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)))
def on_covered_block(uc, vaddr, size, cov):
    """UC_HOOK_BLOCK: what `hooks.on_block` does, and the marks. A block at which the CPU stops is not marked."""
    if not count_block(uc, vaddr, size, words_at(cov[CORE])) or not cov[RECORDING]:
        return
    offset = vaddr - cov[TEXT_START]
    if 0 <= offset < cov[TEXT_BYTES]:
        note_block(cov, offset, min(types.int64(size), BYTES_MASK))


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)))
def on_interrupt_end(_uc, _vaddr, _size, cov):
    """Code hook at `iretq`: the interrupt that arrived inside the call is over."""
    if cov[INTERRUPT_RSP] and load64(cov[ENV] + RSP) == cov[INTERRUPT_RSP]:
        cov[INTERRUPT_RSP] = 0
