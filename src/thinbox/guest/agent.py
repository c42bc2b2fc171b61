"""The program that runs as process 1 of the guest: it makes whatever system call thinbox asks for next.

Why it exists: starting tenants, moving bytes in and out, waiting and killing are ordinary system calls.
Instead of a second program with a protocol of its own, the agent is one loop: it executes `syscall` with a
number the kernel does not have; the machine's hook sees it, and fills the registers with the next real
call. All logic is Python on the outside (`conversation`), and data moves by copying guest pages.
Why not a UART or /dev/mem, with figures: docs/decisions/0004-agent.md.
"""

import struct
from functools import cache

from thinbox.machine.slots import HYPERCALL_NR

_CODE = b"".join(
    (
        b"\x31\xdb",  # xor ebx, ebx         the first call has no result to hand over
        b"\xb8" + HYPERCALL_NR.to_bytes(4, "little"),  # mov eax, HYPERCALL_NR
        b"\x48\x89\xdf",  # mov rdi, rbx     the last result
        b"\x0f\x05",  # syscall              answered by thinbox: fills the registers
        b"\x0f\x05",  # syscall              the real one
        b"\x48\x89\xc3",  # mov rbx, rax
        b"\xeb\xef",  # jmp to the mov eax
    )
)
"""Seven instructions; a test disassembles them with Capstone."""
_VADDR = 0x400000
_HEADERS_BYTES = 64 + 56
LOOP_VADDR = _VADDR + _HEADERS_BYTES
"""Where the loop begins."""


def agent_code() -> bytes:
    """Return the loop as it lies at `LOOP_VADDR`."""
    return _CODE


@cache
def build_agent() -> bytes:
    """Return the agent as a static ELF executable."""
    code = _CODE
    size = _HEADERS_BYTES + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        2,
        62,
        1,
        LOOP_VADDR,
        64,
        0,
        0,
        64,
        56,
        1,
        0,
        0,
        0,
    )
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _VADDR, _VADDR, size, size, 0x1000) + code
