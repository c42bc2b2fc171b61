"""Programs that enter the kernel by its 32-bit entries: the same output isolated, and every call isolated."""

import struct

import pytest
from tests.support.static_elf import build_elf32, build_elf64, code_vaddr
from thinbox.session.session import RunOptions, run

TEXT = b"hello from the 32-bit entry\n"
WRITE, EXIT, GETPID = 4, 1, 20
"""arch/x86/entry/syscalls/syscall_32.tbl"""


def mov(register: int, value: int) -> bytes:
    """`mov r32, imm32`: eax 0, ecx 1, edx 2, ebx 3; the same bytes in 32-bit and in 64-bit code."""
    return bytes((0xB8 + register,)) + struct.pack("<I", value)


def call(number: int, enter: bytes, *arguments: int) -> bytes:
    return b"".join(mov(r, v) for r, v in zip((3, 1, 2), arguments, strict=False)) + mov(0, number) + enter


def program(bits: int, enter: bytes, before: bytes = b"") -> bytes:
    """`before`; getpid(); write(1, TEXT); exit(7)."""
    length = len(before + call(GETPID, enter) + call(WRITE, enter, 1, 0, 0) + call(EXIT, enter, 7))
    text_at = code_vaddr(bits) + length
    calls = call(GETPID, enter) + call(WRITE, enter, 1, text_at, len(TEXT)) + call(EXIT, enter, 7)
    return {32: build_elf32, 64: build_elf64}[bits](before + calls + TEXT)


INT80 = b"\xcd\x80"
# mov esi, esp / lodsd (argc) / lea esi, [esi + 4 * eax + 4]; skip the environment: lodsd / test eax, eax / jnz;
# find AT_SYSINFO (32) in the auxiliary vector: lodsd / cmp eax, 32 / lodsd / jne; mov ebp, eax
FIND_VSYSCALL = bytes.fromhex("89e6 ad 8d748604 ad 85c0 75fb ad 83f820 ad 75f9 89c5")
CALL_VSYSCALL = b"\xff\xd5"  # call ebp
SYSENTER = b"\x0f\x34"


@pytest.fixture
def run_both(guest, tmp_path):
    def start(image: bytes):
        path = tmp_path / "program"
        path.write_bytes(image)
        path.chmod(0o755)
        isolated = run(guest, ["/program"], RunOptions(rootfs=tmp_path))
        plain = run(guest, ["/program"], RunOptions(rootfs=tmp_path, isolate="none"))
        assert (isolated.stdout, isolated.stderr, isolated.exit_code) == (plain.stdout, plain.stderr, plain.exit_code)
        totals = isolated.record.totals
        assert totals["killed"] == 0
        assert totals["calls"] == totals["isolated"]
        assert totals["tables_made"] == totals["tables_freed"]
        assert plain.record.totals["isolated"] == 0
        return isolated

    return start


def require_the_calls(result) -> None:
    assert (result.stdout, result.exit_code) == (TEXT, 7)
    execve, getpid, write, leave = result.record.calls
    assert [call.name for call in (execve, getpid, write, leave)] == [
        "execve",
        f"i386#{GETPID}",
        f"i386#{WRITE}",
        f"i386#{EXIT}",
    ]
    assert getpid.ret == getpid.pid
    assert write.ret == len(TEXT)
    assert (write.args[0], write.args[2], leave.args[0]) == (1, len(TEXT), 7)
    assert all(call.isolated and call.verdict == "granted" for call in result.record.calls)
    assert write.code_faults > 0


@pytest.mark.parametrize("bits", [32, 64])
def test_int_80_is_isolated_in_a_program_of(bits, run_both):
    require_the_calls(run_both(program(bits, INT80)))


def test_the_vdso_s_fast_entry_is_isolated(run_both):
    """On this CPU model (AMD) it is `syscall` in compatibility mode."""
    require_the_calls(run_both(program(32, CALL_VSYSCALL, FIND_VSYSCALL)))


def test_sysenter_does_not_enter_the_kernel(run_both):
    """AMD64 manual, vol. 3, SYSENTER: #UD in long mode. Unicorn makes it a jump; it is no way in, either."""
    result = run_both(program(32, SYSENTER))
    assert result.exit_code != 7
    assert result.stdout == b""
    assert [call.name for call in result.record.calls] == ["execve"]


def test_a_chosen_set_of_calls_includes_the_32_bit_entries(guest, tmp_path):
    """A 32-bit number is not looked up among the 64-bit names: nothing slips by."""
    path = tmp_path / "program"
    path.write_bytes(program(32, INT80))
    path.chmod(0o755)
    result = run(guest, ["/program"], RunOptions(rootfs=tmp_path, isolate="getuid"))
    assert [call.name for call in result.record.calls if call.isolated] == [f"i386#{n}" for n in (GETPID, WRITE, EXIT)]
