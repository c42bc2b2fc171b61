"""Static programs that make a list of calls and write each result, eight bytes each, to stdout.

Code and data are in segments of their own, so that the data is not executable.
"""

import struct

from thinbox.planning.microbench import RESULT, Step, build_elf, build_step

DATA = 0x410000
RESULTS = DATA + 2048
CODE = 0x400000


def build_program(*steps, data=None):
    """`Step`s, or bytes of code that leave a result in RAX; `data` goes to `DATA` by offset, 256 to 2047."""
    code = b""
    for number, step in enumerate(steps):
        code += step if isinstance(step, bytes) else build_step(step)
        code += b"\x48\x89\x04\x25" + struct.pack("<I", RESULTS + 8 * number)  # mov [abs], rax
    code += build_step(Step("write", (1, RESULTS, 8 * len(steps)))) + build_step(Step("exit_group", (0,)))
    return build_elf(code, data)


def raw_call(rax: int) -> bytes:
    return b"\x48\xb8" + struct.pack("<Q", rax) + b"\x0f\x05"


def load_word(vaddr: int) -> bytes:
    return b"\x48\x8b\x04\x25" + struct.pack("<I", vaddr)


def results(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 8}q", data))


__all__ = ["CODE", "DATA", "RESULT", "RESULTS", "Step", "build_program", "load_word", "raw_call", "results"]
