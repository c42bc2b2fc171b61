"""A program of a few instructions, written by the guest's own shell: it does one system call many times."""

import struct

BASE = 0x400000


def loop_program(number: int, times: int) -> bytes:
    """Return an ELF that makes system call `number`, without arguments, `times` times and exits with status 0."""
    code = b"\xbb" + struct.pack("<I", times)  # mov ebx, times
    loop = b"\xb8" + struct.pack("<I", number) + b"\x0f\x05" + b"\xff\xcb"  # mov eax, number; syscall; dec ebx
    code += loop + b"\x75" + struct.pack("<b", -(len(loop) + 2))  # jnz loop
    code += b"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05"  # mov eax, 60; xor edi, edi; syscall
    size = 120 + len(code)
    head = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, BASE + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 4096) + code


def loop_command(number: int, times: int) -> list[str]:
    """Return a command that writes the program to /tmp and runs it."""
    text = "".join(f"\\{byte:03o}" for byte in loop_program(number, times))
    return ["sh", "-c", f"printf '{text}' >/tmp/loop; chmod 755 /tmp/loop; exec /tmp/loop"]
