"""The compiled part of coverage: which blocks of kernel text a call executes.

Why it exists: it runs on every block of kernel text while coverage is on, and on none at all while it is
off: these hooks are added beside those of `hooks`, so a run without coverage pays nothing.

Rules of this file:
- Compiled with Numba, cached on disk; `cov` is an array of its own with the slots named here.
- A block is logged when it is new, or longer than it was seen before; whoever empties the log forgets its
  blocks, so that emptying costs what the call executed and not what the kernel is long.
"""

from numba import cfunc, types

from thinbox.machine.compiled import CACHE_COMPILED
from thinbox.machine.delivery import RSP, native
from thinbox.machine.intrinsics import load32, load64, store32, store64

(
    ENV,  # host address of the live CPU state
    TEXT_START,  # first address of kernel text
    TEXT_BYTES,
    RECORDING,  # 1 while the tenant's task runs inside a call
    INTERRUPT_RSP,  # RSP of the iretq that ends the interrupt which arrived inside the call, 0 if none
    CALL_SEEN,  # host address of one 32-bit length for each byte of text: the longest block seen from there
    CALL_LOG,  # host address of the log of the call: (offset from TEXT_START) << 16 | bytes
    CALL_COUNT,
    IRQ_SEEN,  # the same for interrupts
    IRQ_LOG,
    IRQ_COUNT,
    LOG_CAPACITY,  # entries, of either log
    LOST,  # blocks that found the log full
) = range(13)
SLOT_COUNT = 13

BYTES_BITS = 16
BYTES_MASK = (1 << BYTES_BITS) - 1


@native
def note_block(cov, offset, size, group):
    """Log a block in `group`, the first of the three slots of the call or of interrupts."""
    length = cov[group] + 4 * offset
    if load32(length) >= size:
        return
    count = cov[group + 2]
    if count >= cov[LOG_CAPACITY]:
        cov[LOST] += 1
        return
    store32(length, size)
    store64(cov[group + 1] + 8 * count, (offset << BYTES_BITS) | size)
    cov[group + 2] = count + 1


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_text_block(_uc, vaddr, size, cov):
    """UC_HOOK_BLOCK on kernel text; behind `hooks.on_block`, and not called for a block at which that stopped."""
    if not cov[RECORDING]:
        return
    offset = vaddr - cov[TEXT_START]
    if offset < 0 or offset >= cov[TEXT_BYTES]:
        return
    length = min(types.int64(size), BYTES_MASK)
    if cov[INTERRUPT_RSP]:
        note_block(cov, offset, length, IRQ_SEEN)
    else:
        note_block(cov, offset, length, CALL_SEEN)


@cfunc(types.void(types.int64, types.int64, types.uint32, types.CPointer(types.int64)), cache=CACHE_COMPILED)
def on_interrupt_end(_uc, _vaddr, _size, cov):
    """Code hook at `iretq`: the interrupt that arrived inside the call is over."""
    if cov[INTERRUPT_RSP] and load64(cov[ENV] + RSP) == cov[INTERRUPT_RSP]:
        cov[INTERRUPT_RSP] = 0
