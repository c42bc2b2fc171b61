"""A static program that runs hostile programs one after another, each in a child of its own: the guest's fuzzer.

Each child makes its code's page writable and executable, and jumps to it; its parent lets it run for some virtual time,
kills it and waits. The last line of output says that all were tried.
"""

import struct

from tests.support.hostile_code import random_program
from tests.support.static_elf import build_elf64, code_vaddr
from thinbox.machine.slots import HYPERCALL_NR
from thinbox.syscalls.table import call_number

DONE = b"all tried\n"
LETS_RUN_NS = 2_000_000
_MAGIC = b"\xb8" + struct.pack("<I", HYPERCALL_NR) + b"\x0f\x05"
_LOADS = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba")


def _call(name, *arguments, child=False):
    code = b"\x4c\x89\xe7" if child else b""  # mov rdi, r12
    for load, value in list(zip(_LOADS, arguments, strict=False))[1 if child else 0 :]:
        code += load + struct.pack("<Q", value & (1 << 64) - 1)
    return code + b"\xb8" + struct.pack("<I", call_number(name)) + b"\x0f\x05"


def build_fuzzer(seeds, places=()):
    """Return the program; `places` are addresses that the hostile programs touch besides their usual ones."""
    programs = [(_MAGIC if seed % 7 == 0 else b"") + random_program(seed, places) for seed in seeds]

    def whole(starts, time_at, done_at):
        code = b""
        for start in starts:
            parent = b"\x49\x89\xc4"  # mov r12, rax
            parent += _call("nanosleep", time_at, 0) + _call("kill", 0, 9, child=True)
            parent += _call("wait4", 0, 0, 0, 0, child=True)
            child = b"\x48\xb8" + struct.pack("<Q", start) + b"\xff\xe0"  # jmp rax
            code += _call("fork") + b"\x85\xc0\x0f\x85" + struct.pack("<i", len(child)) + child + parent
        return code + _call("write", 1, done_at, len(DONE)) + _call("exit_group", 0)

    size = len(whole([0] * len(programs), 0, 0))
    time_at = code_vaddr(64) + size
    done_at = time_at + 16
    starts, at = [], done_at + len(DONE)
    for program in programs:
        starts.append(at)
        at += len(program)
    data = struct.pack("<qq", 0, LETS_RUN_NS) + DONE + b"".join(programs)
    return build_elf64(whole(starts, time_at, done_at) + data)
