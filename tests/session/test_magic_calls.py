"""The agent's magic calls are the agent's: a tenant that makes them gets ENOSYS, and nobody's start is taken."""

import struct

import pytest
from tests.support.static_elf import build_elf64
from thinbox.machine.slots import HYPERCALL_NR
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants
from thinbox.syscalls.table import call_number

ENOSYS = 38
OTHERS = "echo I am $(hostname); id -u; cat /proc/self/cgroup"


def flood(times, *, fork=False):
    """`times` magic calls, in a child too if `fork`; status 0 if the last of them said ENOSYS."""
    code = (b"\xb8" + struct.pack("<I", call_number("fork")) + b"\x0f\x05") if fork else b""
    code += b"\x49\xc7\xc4" + struct.pack("<i", times)  # mov r12, times
    loop = b"\xb8" + struct.pack("<I", HYPERCALL_NR) + b"\x0f\x05\x49\xff\xcc"  # mov eax; syscall; dec r12
    code += loop + b"\x75" + struct.pack("b", -len(loop) - 2)  # jnz loop
    # add eax, ENOSYS; mov edi, eax; exit_group
    return build_elf64(code + b"\x83\xc0\x26\x89\xc7\xb8" + struct.pack("<I", call_number("exit_group")) + b"\x0f\x05")


@pytest.fixture
def flooder(tmp_path):
    def make(times, **options):
        root = tmp_path / "root"
        root.mkdir()
        (root / "flood").write_bytes(flood(times, **options))
        (root / "flood").chmod(0o755)
        return root

    return make


def test_a_tenants_magic_call_is_a_call_the_kernel_does_not_have(guest, flooder):
    result = run(guest, ["/flood"], RunOptions(policy="live", rootfs=flooder(3)))
    assert result.exit_code == 0
    magic = [call for call in result.record.calls if call.nr == HYPERCALL_NR]
    assert [call.ret for call in magic] == [-ENOSYS] * 3
    assert all(call.isolated for call in magic)


def test_a_flood_of_magic_calls_takes_no_neighbours_start(guest, flooder):
    """The first tenant calls while the others are being started: each of them still becomes itself."""
    options = {"policy": "live", "view": "none"}
    specs = [TenantSpec("evil", ("/flood",), rootfs=flooder(4000, fork=True), **options)]
    specs += [TenantSpec(name, ("sh", "-c", OTHERS), **options) for name in ("first", "second")]
    results = run_tenants(guest, specs)
    assert results["evil"].exit_code == 0
    for name in ("first", "second"):
        assert results[name].exit_code == 0
        assert results[name].stdout.decode().splitlines()[:2] == [f"I am {name}", "0"]
        assert {call.tenant for call in results[name].record.calls} == {name}
