"""What the CPU offers: said by CPUID, executed as the host's own CPU does, and the same in every run."""

import random
import struct
import subprocess

import pytest
from tests.support.static_elf import build_elf64, code_vaddr
from thinbox.boot.params import BootParams
from thinbox.boot.ready import prepare
from thinbox.errors import InputError
from thinbox.machine.cpu_model import DEFAULT_CPU, MODELS, cpu_model
from thinbox.session.session import RunOptions, run
from thinbox.syscalls.table import call_number

V2 = {"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"}
"""x86-64-v2 (psABI 3.1.1), by the names of /proc/cpuinfo."""
KERNELS = {"smep", "smap", "fsgsbase", "rdtscp"}
"""What the kernel uses of the CPU for itself and its programs."""
UNDETERMINED = {"rdrand", "rdseed"}
VECTOR = {
    # SSSE3, SSE4.1 and SSE4.2 on xmm0, xmm1
    "pshufb": "660f3800c1", "phaddw": "660f3801c1", "phaddd": "660f3802c1", "phaddsw": "660f3803c1",
    "pmaddubsw": "660f3804c1", "phsubw": "660f3805c1", "phsubd": "660f3806c1", "phsubsw": "660f3807c1",
    "psignb": "660f3808c1", "psignw": "660f3809c1", "psignd": "660f380ac1", "pmulhrsw": "660f380bc1",
    "pabsb": "660f381cc1", "pabsw": "660f381dc1", "pabsd": "660f381ec1", "palignr": "660f3a0fc105",
    "pblendvb": "660f3810c1", "blendvps": "660f3814c1", "blendvpd": "660f3815c1", "ptest": "660f3817c1",
    "pmovsxbw": "660f3820c1", "pmovsxbd": "660f3821c1", "pmovsxwd": "660f3823c1", "pmovsxdq": "660f3825c1",
    "pmuldq": "660f3828c1", "pcmpeqq": "660f3829c1", "packusdw": "660f382bc1", "pmovzxbw": "660f3830c1",
    "pmovzxwd": "660f3833c1", "pmovzxdq": "660f3835c1", "pcmpgtq": "660f3837c1", "pminsb": "660f3838c1",
    "pminsd": "660f3839c1", "pminuw": "660f383ac1", "pminud": "660f383bc1", "pmaxsb": "660f383cc1",
    "pmaxsd": "660f383dc1", "pmaxuw": "660f383ec1", "pmaxud": "660f383fc1", "pmulld": "660f3840c1",
    "phminposuw": "660f3841c1", "pblendw": "660f3a0ec15a", "blendps": "660f3a0cc105", "blendpd": "660f3a0dc101",
    "mpsadbw": "660f3a42c105", "insertps": "660f3a21c194", "roundps": "660f3a08c101", "roundpd": "660f3a09c102",
    "dpps": "660f3a40c171", "dppd": "660f3a41c131", "pcmpistrm": "660f3a62c144", "pcmpestrm": "660f3a60c10c",
    # AES-NI and PCLMULQDQ
    "aesenc": "660f38dcc1", "aesenclast": "660f38ddc1", "aesdec": "660f38dec1", "aesdeclast": "660f38dfc1",
    "aesimc": "660f38dbc1", "aeskeygenassist": "660f3adfc11b", "pclmulqdq": "660f3a44c101",
}  # fmt: skip
FLOATS = {"roundps", "roundpd", "dpps", "dppd"}
"""Their operands are ordinary numbers: which of two NaNs a sum keeps is the engine's own choice."""
GENERAL = {
    # POPCNT, LZCNT, MOVBE (by way of the stack), CRC32 and ADX on rax, rbx
    "popcnt": "f3480fb8c3", "lzcnt": "f3480fbdc3", "crc32": "f2480f38f1c3", "adcx": "66480f38f6c3",
    "adox": "f3480f38f6c3", "movbe": "53480f38f004245b",
}  # fmt: skip
ROUNDS = 12


def program():
    """Writes, for each instruction and pair of operands, 16 bytes of result and the flags."""
    chance, data, steps = random.Random(7), b"", []
    for name, code in {**VECTOR, **GENERAL}.items():
        for _ in range(ROUNDS):
            if name in FLOATS:
                width, kind = (8, "d") if name.endswith("d") else (4, "f")
                values = [struct.pack(f"<{kind}", chance.uniform(-1000, 1000)) for _ in range(32 // width)]
                pair = b"".join(values)
            else:
                pair = chance.randbytes(32)
            steps.append((name in VECTOR, bytes.fromhex(code), len(data)))
            data += pair
    out_bytes = 24 * len(steps)

    def whole(data_at):
        code, out_at = b"", data_at + len(data)
        for number, (is_vector, instruction, at) in enumerate(steps):
            one, other, out = data_at + at, data_at + at + 16, out_at + 24 * number
            if is_vector:
                code += b"\xb8\x05\0\0\0\xba\x09\0\0\0"  # mov eax, 5; mov edx, 9 (lengths of pcmpestrm)
                code += b"\xf3\x0f\x6f\x04\x25" + struct.pack("<I", one)  # movdqu xmm0
                code += b"\xf3\x0f\x6f\x0c\x25" + struct.pack("<I", other)  # movdqu xmm1
                code += b"\x31\xc9" + instruction + b"\x9c\x5e"  # xor ecx, ecx; …; pushf; pop rsi
                code += b"\xf3\x0f\x7f\x04\x25" + struct.pack("<I", out)
            else:
                code += b"\x48\x8b\x04\x25" + struct.pack("<I", one) + b"\x48\x8b\x1c\x25" + struct.pack("<I", other)
                code += b"\x39\xd2" + instruction + b"\x9c\x5e"  # cmp edx, edx: CF 0; …; pushf; pop rsi
                code += b"\x48\x89\x04\x25" + struct.pack("<I", out)
            code += b"\x81\xe6\x41\0\0\0"  # and esi, CF | ZF: the others are undefined for most of these
            code += b"\x48\x89\x34\x25" + struct.pack("<I", out + 16)
        code += b"\xbf\x01\0\0\0\xbe" + struct.pack("<I", out_at) + b"\xba" + struct.pack("<I", out_bytes)
        code += b"\xb8" + struct.pack("<I", call_number("write")) + b"\x0f\x05\x31\xff"
        return code + b"\xb8" + struct.pack("<I", call_number("exit_group")) + b"\x0f\x05"

    data_at = code_vaddr(64) + len(whole(0))
    data_at += -data_at % 16
    code = whole(data_at)
    image = code + bytes(data_at - code_vaddr(64) - len(code)) + data + bytes(out_bytes)
    return build_elf64(image), [name for name in (*VECTOR, *GENERAL) for _ in range(ROUNDS)]


def host_flags():
    with open("/proc/cpuinfo") as lines:
        return set(next(line for line in lines if line.startswith("flags")).split(":")[1].split())


@pytest.mark.guest
def test_the_kernel_finds_all_of_the_level_and_nothing_undetermined(guest):
    def flags(ready):
        return set(run(ready, ["grep", "-m1", "^flags", "/proc/cpuinfo"]).stdout.decode().split(":")[1].split())

    assert V2 | KERNELS <= flags(guest) and not UNDETERMINED & flags(guest)
    plain = flags(prepare(None, BootParams(cpu="v1")))
    assert not (V2 - {"cx16", "lahf_lm", "pni"}) & plain and plain < flags(guest)


@pytest.mark.guest
def test_every_instruction_does_what_the_hosts_own_cpu_does(guest, tmp_path):
    missing = {"ssse3", "sse4_2", "aes", "pclmulqdq", "popcnt", "movbe", "adx", "abm"} - host_flags()
    if missing:
        pytest.skip(f"the host's own CPU has no {', '.join(sorted(missing))}")
    image, names = program()
    path = tmp_path / "program"
    path.write_bytes(image)
    path.chmod(0o755)
    wanted = subprocess.run([str(path)], capture_output=True, check=True).stdout
    result = run(guest, ["/program"], RunOptions(rootfs=tmp_path, isolate="none"))
    assert result.exit_code == 0 and len(result.stdout) == len(wanted) == 24 * len(names)
    rows = [(name, wanted[24 * n : 24 * n + 24], result.stdout[24 * n : 24 * n + 24]) for n, name in enumerate(names)]
    assert {name for name, one, other in rows if one != other} == set()
    # Operands that differ give results that differ: the test looks at something.
    assert len({one for _name, one, _other in rows}) > len(rows) // 2


def test_there_are_two_levels_and_no_other():
    assert set(MODELS) == {"v1", "v2"} and cpu_model(DEFAULT_CPU).name == "v2"
    with pytest.raises(InputError, match="no CPU 'v9'"):
        BootParams(cpu="v9")


def test_features_are_added_and_left_out_by_name():
    assert set(cpu_model("v2").features) - set(cpu_model("v2,-smap,-aes").features) == {"smap", "aes"}
    assert cpu_model("v1,+smep").adds == {"7.ebx": 1 << 7}
    for wrong in ("v2,smap", "v2,-avx", "v2,", "v2,-", "-smap"):
        with pytest.raises(InputError):
            cpu_model(wrong)


def assembled(*parts):
    """Return a program that writes RAX of each part (which may be several instructions), then exits with 0."""
    code = b"".join(part + b"\x50\x48\x89\xe6\x6a\x01\x5f\x6a\x08\x5a\x6a\x01\x58\x0f\x05\x58" for part in parts)
    return build_elf64(code + b"\x31\xff\xb8" + struct.pack("<I", call_number("exit_group")) + b"\x0f\x05")


def killed(result):
    return result.record.kills


def written(guest, tmp_path, policy, *parts):
    path = tmp_path / "program"
    path.write_bytes(assembled(*parts))
    path.chmod(0o755)
    result = run(guest, ["/program"], RunOptions(rootfs=tmp_path, policy=policy))
    assert result.exit_code == 0 and not killed(result)
    return struct.unpack(f"<{len(parts)}Q", result.stdout)


KERNEL_ADDRESS = 0xFFFF_FFFF_8100_0000
WRITE_GS = b"\x48\xb8" + struct.pack("<Q", KERNEL_ADDRESS) + b"\xf3\x48\x0f\xae\xd8"  # mov rax, …; wrgsbase rax
WRITE_FS = b"\x48\xb8" + struct.pack("<Q", 0x1234_5678_9ABC) + b"\xf3\x48\x0f\xae\xd0"
READ_GS, READ_FS = b"\xf3\x48\x0f\xae\xc8", b"\xf3\x48\x0f\xae\xc0"
SPIN = b"\xb9\0\0\x40\0\xe2\xfe"  # mov ecx, 4 Mi; loop: several timer interrupts
NEW_PAGE = b"\x48\x8d\x84\x24\0\0\xff\xff\xc6\0\x01"  # lea rax, [rsp - 64 KiB]; mov byte [rax], 1: a page fault
SINGLE_STEP = b"\x9c\x80\x4c\x24\x01\x01\x9d\x90"  # pushf; set TF; popf; nop: #DB, a paranoid entry


@pytest.mark.guest
@pytest.mark.parametrize("policy", ["live", "live+guard"])
def test_bases_that_programs_set_are_theirs_and_no_kernels(guest, tmp_path, policy):
    """FSGSBASE (SDM vol. 1, 17): a base in the kernel's half is no way into it, by calls, faults or interrupts."""
    found = written(guest, tmp_path, policy, WRITE_GS + WRITE_FS, SPIN + READ_GS, NEW_PAGE + READ_GS, READ_FS)
    assert found[1:] == (KERNEL_ADDRESS, KERNEL_ADDRESS, 0x1234_5678_9ABC)


@pytest.mark.guest
def test_a_debug_exception_with_a_kernel_address_in_gs_is_the_programs_own(guest, tmp_path):
    """`paranoid_entry` (arch/x86/entry/entry_64.S) tells by the base it reads whose it is."""
    path = tmp_path / "program"
    path.write_bytes(assembled(WRITE_GS + SINGLE_STEP + SPIN))
    path.chmod(0o755)
    result = run(guest, ["/program"], RunOptions(rootfs=tmp_path))
    assert result.exit_code == 128 + 5 and not killed(result)


@pytest.mark.guest
def test_rdtscp_reads_virtual_time_and_the_number_of_the_cpu(guest, tmp_path):
    clock = b"\x0f\x01\xf9\x48\xc1\xe2\x20\x48\x09\xd0"  # rdtscp; shl rdx, 32; or rax, rdx
    processor = b"\x0f\x01\xf9\x89\xc8"  # rdtscp; mov eax, ecx
    first, second, number = found = written(guest, tmp_path, "live", clock, clock, processor)
    assert 0 < first < second < 1 << 48 and number == 0
    assert written(guest, tmp_path, "live", clock, clock, processor) == found
