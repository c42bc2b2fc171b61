"""A static program that traces its child and puts another call in the place of one of the child's.

The child makes `wish` (a number without arguments); its tracer writes `nr` and two arguments over it while the call is
stopped at its entry (ptrace(2), PTRACE_POKEUSER), lets it go on, and ends with status 1 if the folder PATH exists then.
"""

import struct

from thinbox.syscalls.table import call_number
from tests.support.static_elf import build_elf64, code_vaddr

PATH = b"/made\0"
TRACEME, CONT, SYSCALL, POKEUSER = 0, 7, 24, 6
ORIG_RAX, RSI, RDI = 8 * 15, 8 * 13, 8 * 14
"""struct user (arch/x86/include/asm/user_64.h)."""
SIGSTOP = 19
CHILD = None
"""As an argument: the child's number."""
_LOAD = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba")  # movabs rdi, rsi, rdx, r10
_CHILD_AS = (b"\x4c\x89\xe7", b"\x4c\x89\xe6")  # mov rdi, r12; mov rsi, r12


def call(name, *arguments):
    code = b""
    for place, value in enumerate(arguments):
        code += _CHILD_AS[place] if value is CHILD else _LOAD[place] + struct.pack("<Q", value & (1 << 64) - 1)
    return code + b"\xb8" + struct.pack("<I", call_number(name)) + b"\x0f\x05"


def build_traced_program(wish, nr, second=0o755):
    wait = call("wait4", CHILD, 0, 0, 0)
    path = [0]

    def whole():
        child = call("ptrace", TRACEME, 0, 0, 0) + call("getpid") + b"\x48\x89\xc7"  # mov rdi, rax
        child += b"\xbe" + struct.pack("<I", SIGSTOP) + b"\xb8" + struct.pack("<I", call_number("kill")) + b"\x0f\x05"
        child += call(wish) + b"\x89\xc7" + b"\xb8" + struct.pack("<I", call_number("exit_group")) + b"\x0f\x05"
        parent = b"\x49\x89\xc4" + wait  # mov r12, rax
        parent += call("ptrace", SYSCALL, CHILD, 0, 0) + wait
        for place, value in ((ORIG_RAX, nr), (RDI, path[0]), (RSI, second)):
            parent += call("ptrace", POKEUSER, CHILD, place, value)
        parent += call("ptrace", CONT, CHILD, 0, 0) + wait
        # access() is 0 if the folder is there: setz dil; movzx edi, dil
        parent += call("access", path[0], 0) + b"\x85\xc0\x40\x0f\x94\xc7\x40\x0f\xb6\xff"
        parent += b"\xb8" + struct.pack("<I", call_number("exit_group")) + b"\x0f\x05"
        # test eax, eax; jz child
        return call("fork") + b"\x85\xc0\x0f\x84" + struct.pack("<i", len(parent)) + parent + child

    path[0] = code_vaddr(64) + len(whole())
    return build_elf64(whole() + PATH)
