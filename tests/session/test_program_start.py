"""A program that cannot be executed ends at once, with a shell's status and a reason; what can be is a stranger."""

import struct

import pytest
from tests.support.static_elf import build_elf64
from thinbox.errors import InputError
from thinbox.machine.slots import HYPERCALL_NR
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants

NOT_EXECUTABLE, NOT_FOUND = 126, 127


def elf(machine=62, interpreter=b""):
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        2,
        machine,
        1,
        0x400078,
        64,
        0,
        0,
        64,
        56,
        2 if interpreter else 1,
        0,
        0,
        0,
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 4096, 4096, 4096)
    if not interpreter:
        return header + load + bytes(4096)
    named = struct.pack("<IIQQQQQQ", 3, 4, 176, 0x4000B0, 0x4000B0, len(interpreter) + 1, len(interpreter) + 1, 1)
    return header + named + load + interpreter + bytes(4096)


PROGRAMS = {
    "empty": (b"", NOT_EXECUTABLE, "neither an x86-64 program nor a script"),
    "text": (b"echo hello\n", NOT_EXECUTABLE, "neither an x86-64 program nor a script"),
    "script": (b"#!/no/such/interpreter\n", NOT_FOUND, "interpreter or loader"),
    "dynamic": (elf(interpreter=b"/lib64/no-loader.so"), NOT_FOUND, "interpreter or loader"),
    "arm64": (elf(machine=183), NOT_EXECUTABLE, "neither an x86-64 program nor a script"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    for name, (content, _status, _words) in PROGRAMS.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("isolate", ["all", "none"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_cannot_be_executed_ends_at_once_with_a_shells_status(guest, root, name, isolate):
    _content, status, words = PROGRAMS[name]
    result = run(guest, [f"/{name}"], RunOptions(rootfs=root, isolate=isolate))
    assert (result.exit_code, result.stdout, result.stderr) == (status, b"", b"")
    assert f"cannot run /{name}: " in result.not_started and words in result.not_started
    assert result.record.not_started == result.not_started == result.record.to_json()["not_started"]
    first = result.record.calls[0]
    assert first.name == "execve" and first.ret < 0 and not result.record.kills
    # For a format it does not know the kernel starts modprobe, which is the tenant's too.
    helped = "program started by the kernel: /sbin/modprobe" in result.record.outside
    assert helped == (name in ("empty", "arm64")) == any(call.pid != first.pid for call in result.record.calls)
    assert result.record.tables_made == result.record.tables_freed == (isolate == "all") * (1 + helped)
    assert result.record.virtual_ns < 10**9


def test_of_tenants_one_that_cannot_be_executed_leaves_the_others_alone(guest, root):
    found = run_tenants(
        guest,
        [
            TenantSpec("bad", ("/arm64",), rootfs=root),
            TenantSpec("good", ("sh", "-c", "echo fine; exit 3")),
            TenantSpec("worse", ("/script",), rootfs=root),
        ],
    )
    assert [result.exit_code for result in found.values()] == [NOT_EXECUTABLE, 3, NOT_FOUND]
    assert found["good"].stdout == b"fine\n" and not found["good"].not_started
    assert found["bad"].not_started and found["worse"].not_started


def test_the_agents_own_program_is_no_tenants(guest):
    with pytest.raises(InputError, match="thinbox's own agent"):
        run(guest, ["/init"])


def test_a_tenant_that_asks_as_the_agent_does_is_not_answered(guest, tmp_path):
    """Before its `execve` succeeded the process was the agent's: the same question by the program is an unknown call."""
    code = (
        b"\xbf"
        + (-2 & 0xFFFFFFFF).to_bytes(4, "little")  # mov edi, -2
        + b"\xb8"
        + HYPERCALL_NR.to_bytes(4, "little")
        + b"\x0f\x05"  # what the agent's loop does
        + b"\x48\xf7\xd8"  # neg rax: ENOSYS
        + b"\x48\x89\xc7\xb8\xe7\x00\x00\x00\x0f\x05"  # exit_group(rax)
    )
    (tmp_path / "asks").write_bytes(build_elf64(code))
    (tmp_path / "asks").chmod(0o755)
    for isolate in ("all", "none"):
        result = run(guest, ["/asks"], RunOptions(rootfs=tmp_path, isolate=isolate))
        assert result.exit_code == 38 and not result.not_started


def test_a_folder_to_start_in_that_is_not_there_is_refused(guest, tmp_path):
    (tmp_path / "file").touch()
    for workdir in ("/nope", "/file"):
        with pytest.raises(InputError, match=f"cannot start in {workdir}"):
            run(guest, ["true"], RunOptions(workdir=workdir, rootfs=tmp_path))
        with pytest.raises(InputError, match=f"cannot start in {workdir}"):
            run_tenants(guest, [TenantSpec("a", ("true",), workdir=workdir, rootfs=tmp_path)])
    assert run(guest, ["pwd"], RunOptions(workdir="/tmp")).stdout == b"/tmp\n"
