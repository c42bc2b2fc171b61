"""The words shared between Python and the compiled part of coverage: names only, for no Numba is imported here."""

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
