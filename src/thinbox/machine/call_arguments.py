"""Number and arguments of a call, out of the registers of each call instruction, compiled.

Why it exists: records and plans must see the number and the arguments that the kernel will take.
"""

from thinbox.machine import slots
from thinbox.machine.delivery import R8, R9, R10, RAX, RBP, RBX, RCX, RDI, RDX, RSI, native
from thinbox.machine.intrinsics import load64


@native
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


@native
def keep_syscall_arguments(core, compat):
    """Keep number and arguments of a `syscall`; the kernel takes EAX, its sign extended (entry_64.S, `movslq`)."""
    env = core[slots.ENV]
    if compat:
        # ECX is the return address: the second argument comes in EBP, the sixth on the user's stack
        # (arch/x86/entry/entry_64_compat.S, entry_SYSCALL_compat).
        keep_int80_arguments(core)
        core[slots.CALL_ARG1] = core[slots.CALL_ARG5]
        core[slots.CALL_ARG5] = 0
        return
    number = load64(env + RAX) & 0xFFFFFFFF
    core[slots.CALL_NR] = number - ((number >> 31) << 32)
    core[slots.CALL_ARG0] = load64(env + RDI)
    core[slots.CALL_ARG1] = load64(env + RSI)
    core[slots.CALL_ARG2] = load64(env + RDX)
    core[slots.CALL_ARG3] = load64(env + R10)
    core[slots.CALL_ARG4] = load64(env + R8)
    core[slots.CALL_ARG5] = load64(env + R9)
