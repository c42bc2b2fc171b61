"""Kernel work done for a tenant outside its calls is counted and named; 'all isolated' is not said where there was some."""

import struct

import pytest
from tests.support.static_elf import build_elf64, code_vaddr
from thinbox.sandbox.plan_file import parse_plan
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants
from thinbox.syscalls.io_uring import BY_PATH, OPERATIONS, calls_of_operation, operation_name
from thinbox.syscalls.table import call_number

MADVISE, MADV_DONTNEED = 25, 4
PAGE = 0x50000000
SQPOLL = 2
PARAMS_BYTES, ENTRY_BYTES = 120, 64
USED = ("io_uring_setup", "mmap", "nanosleep", "exit_group")
"""Calls of `sqpoll_program`."""
RINGS = 0x10000000
"""IORING_OFF_SQES; the queue itself is at offset 0 (include/uapi/linux/io_uring.h)."""


def test_page_faults_and_signals_are_counted(guest):
    script = "trap 'echo caught' USR1; kill -USR1 $$; head -c 3000000 /dev/zero | tail -c 1 | wc -c"
    record = run(guest, ["sh", "-c", script], RunOptions(policy="live")).record
    assert record.outside["page faults"] > 10
    assert record.to_json()["outside"] == dict(sorted(record.outside.items()))


def test_a_task_killed_by_a_signal_ends_in_judged_work(guest):
    result = run(
        guest, ["sh", "-c", "sh -c 'while :; do :; done' & kill -9 $!; wait $!; echo $?"], RunOptions(policy="live")
    )
    assert result.stdout == b"137\n"
    assert result.record.outside["exits, judged"] == 1
    assert "exits" not in result.record.outside


def test_an_unisolated_task_ends_as_ever_and_is_counted(guest):
    options = RunOptions(policy="live", isolate="none")
    result = run(guest, ["sh", "-c", "sh -c 'while :; do :; done' & kill -9 $!; wait $!; echo $?"], options)
    assert result.stdout == b"137\n"
    assert result.record.outside["exits"] == 1
    assert result.record.totals["isolated"] == 0


def test_two_runs_count_alike(guest):
    script = "for i in 1 2 3; do sh -c 'kill -9 $$'; done; seq 1000 | sort | tail -1"
    first, second = (run(guest, ["sh", "-c", script], RunOptions(policy="live")).record.outside for _ in range(2))
    assert first == second


def call(name, *arguments):
    code, loads = b"", (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
    for load, value in zip(loads, arguments, strict=False):
        code += b"" if value is None else load + struct.pack("<Q", value & (1 << 64) - 1)
    return code + b"\xb8" + struct.pack("<I", call_number(name)) + b"\x0f\x05"


def sqpoll_program():
    """madvise(MADV_DONTNEED) by an io_uring with IORING_SETUP_SQPOLL: no call of its own empties the page. Status 0 once
    it is empty, 1 if it is not after 200 sleeps of 1 ms."""
    labels = {}

    def place(name):
        return labels.get(name, code_vaddr(64))

    def whole():
        # mmap(PAGE, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); mov dword [PAGE], 1
        code = call("mmap", PAGE, 4096, 3, 0x32, -1, 0)
        code += b"\xc7\x04\x25" + struct.pack("<II", PAGE, 1)
        code += call("io_uring_setup", 8, place("params"))
        code += b"\x49\x89\xc4"  # mov r12, rax
        for offset, register in ((0, b"\x49\x89\xc5"), (RINGS, b"\x49\x89\xc6")):  # mov r13, rax; mov r14, rax
            # mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset)
            code += call("mmap", 0, 4096, 3, 0x8001, None, offset)[:-7]
            code += b"\x4d\x89\xe0" + b"\xb8" + struct.pack("<I", call_number("mmap")) + b"\x0f\x05" + register
        # Copy the entry: rsi = entry, rdi = r14, rcx = 64, rep movsb
        code += b"\x48\xbe" + struct.pack("<Q", place("entry")) + b"\x4c\x89\xf7\xb9\x40\0\0\0\xf3\xa4"
        # eax = params.sq_off.array; mov dword [r13 + rax], 0
        code += b"\x8b\x04\x25" + struct.pack("<I", place("params") + 40 + 24) + b"\x41\xc7\x44\x05\x00\0\0\0\0"
        # eax = params.sq_off.tail; mov dword [r13 + rax], 1
        code += b"\x8b\x04\x25" + struct.pack("<I", place("params") + 40 + 4) + b"\x41\xc7\x44\x05\x00\x01\0\0\0"
        code += b"\x41\xbf\xc8\0\0\0"  # mov r15d, 200
        loop = call("nanosleep", place("time"), 0) + b"\x8b\x04\x25" + struct.pack("<I", PAGE)  # mov eax, [PAGE]
        done = call("exit_group", 0)
        loop += b"\x85\xc0\x75" + bytes((len(done),)) + done  # test eax, eax; jnz over
        loop += b"\x41\xff\xcf"  # dec r15d
        return code + loop + b"\x0f\x85" + struct.pack("<i", -len(loop) - 6) + call("exit_group", 1)

    at = code_vaddr(64) + len(whole())
    at += -at % 8
    labels["params"] = at
    labels["entry"], labels["time"] = at + PARAMS_BYTES, at + 184
    params = struct.pack("<5I", 0, 0, SQPOLL, 0, 10_000).ljust(PARAMS_BYTES, b"\0")
    entry = struct.pack("<BBHiQQII", MADVISE, 0, 0, -1, 0, PAGE, 4096, MADV_DONTNEED).ljust(ENTRY_BYTES, b"\0")
    data = params + entry + struct.pack("<qq", 0, 1_000_000)
    code = whole()
    return build_elf64(code + bytes(-(code_vaddr(64) + len(code)) % 8) + data)


@pytest.fixture
def ring_program(guest, tmp_path):
    """A root file system with such a program; skipped on a kernel whose rings have no such operation."""
    try:
        guest.facts.types.enum_value("IORING_OP_MADVISE")
    except KeyError:
        pytest.skip("needs a kernel with io_uring's madvise (5.6, CONFIG_IO_URING)")
    (tmp_path / "program").write_bytes(sqpoll_program())
    (tmp_path / "program").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("isolate", ["all", "none"])
def test_what_a_polling_ring_does_stands_in_the_record(guest, ring_program, isolate):
    result = run(guest, ["/program"], RunOptions(policy="live", rootfs=ring_program, isolate=isolate))
    assert result.exit_code == 0, result.record.killed
    assert not [c for c in result.record.calls if c.name.startswith(("madvise", "io_uring_enter"))]
    # It may sleep, so the poller leaves it to a worker: having tried (IO_URING_F_NONBLOCK), or, since 6.3, without (commit
    # aebb224fd4fc "io_uring: for requests that require async, force it").
    assert result.record.outside.get("io_uring sqpoll: madvise", 0) in (0, 1)
    assert result.record.outside["io_uring worker: madvise"] == 1


@pytest.mark.parametrize(
    ("rule", "is_done"),
    [
        ('madvise = "deny:EACCES"', False),
        ('madvise = "kill"', False),
        ('madvise = { do = "isolate", when = { behavior = [4] } }\n', False),
        ('madvise = { do = "isolate", phase = "start" }', True),
        ('mincore = "deny:EACCES"', True),
    ],
)
def test_a_plan_is_asked_about_operations_of_a_ring(guest, ring_program, rule, is_done):
    """Arguments of an operation are not compared: a rule that asks for some lets none through."""
    default = "deny:EPERM" if "when" in rule else "isolate"
    rest = "" if default == "isolate" else "".join(f'{name} = "isolate"\n' for name in USED)
    text = f'schema = "thinbox.plan/1"\nname = "test"\ndefault = "{default}"\n[calls]\n{rule}\n{rest}'
    plan = parse_plan(text, "test.toml", lambda _path: b"")
    result = run(guest, ["/program"], RunOptions(policy="live", rootfs=ring_program, plan=plan))
    assert result.exit_code == (0 if is_done else 1), result.record.kills
    assert [refusal.call for refusal in result.record.refusals] == ([] if is_done else ["madvise (io_uring)"])
    assert result.record.outside.get("io_uring refused: madvise", 0) == (0 if is_done else 1)


def test_a_program_that_the_kernel_starts_for_a_tenant_is_the_tenants(guest):
    """Root has the kernel start it at a crash (core_pattern); its calls are planned, isolated and recorded."""
    script = """printf '#!/bin/sh\\nmkdir /tmp/made\\n' >/tmp/helper; chmod 755 /tmp/helper
echo '|/tmp/helper' >/proc/sys/kernel/core_pattern; ulimit -c unlimited
sh -c 'kill -SEGV $$'; sleep 0.1; ls /tmp"""
    free = run(guest, ["sh", "-c", script], RunOptions(policy="live"))
    assert b"made" in free.stdout.split()
    assert [call.isolated for call in free.record.calls if call.name == "mkdir"] == [True]
    text = 'schema = "thinbox.plan/1"\nname = "test"\ndefault = "isolate"\n[calls]\nmkdir = "deny:EACCES"\n'
    plan = parse_plan(text, "test.toml", lambda _path: b"")
    bound = run(guest, ["sh", "-c", script], RunOptions(policy="live", plan=plan))
    assert b"made" not in bound.stdout.split() and b"helper" in bound.stdout.split()
    assert [refusal.call for refusal in bound.record.refusals] == ["mkdir"]


def test_what_a_ring_does_can_be_the_phase_marker_and_opens_no_file_of_the_plans(guest, ring_program):
    head = 'schema = "thinbox.plan/1"\nname = "test"\ndefault = "isolate"\n'
    plan = parse_plan(f'{head}phase_marker = ["madvise"]\n[calls]\n', "test.toml", lambda _path: b"")
    record = run(guest, ["/program"], RunOptions(policy="live", rootfs=ring_program, plan=plan)).record
    assert record.steady_seq is not None and not record.refusals
    assert BY_PATH <= set(OPERATIONS)


def test_an_operation_is_asked_about_as_every_call_it_can_be():
    assert set(calls_of_operation("renameat")) == {"renameat", "renameat2"}
    assert {"pwrite64", "write"} <= set(calls_of_operation("write"))
    assert calls_of_operation("mkdirat") == ("mkdirat",) and calls_of_operation("nop") == ()
    for name in OPERATIONS:
        assert all(call_number(call) >= 0 for call in calls_of_operation(name))


def test_a_programs_name_does_not_reach_a_terminal_as_it_is(guest):
    script = "printf '|/tmp/\\033]0;x\\007' >/proc/sys/kernel/core_pattern; ulimit -c unlimited; sh -c 'kill -SEGV $$'"
    outside = run(guest, ["sh", "-c", script], RunOptions(policy="live")).record.outside
    assert outside["program started by the kernel: /tmp/\\x1b]0;x\\x07"] == 1


def test_operations_are_named_as_the_kernel_numbers_them():
    assert [operation_name(n) for n in (0, 9, 18, 37, 46, 62)] == [
        "nop",
        "sendmsg",
        "openat",
        "mkdirat",
        "uring_cmd",
        "pipe",
    ]
    assert operation_name(len(OPERATIONS)) == f"#{len(OPERATIONS)}"


def test_no_view_holds_for_what_the_kernel_starts_and_nobody_dies_of_it(guest):
    """mount of a file system it does not know has the kernel start modprobe, whose memory is charged to nobody."""
    script = "mount -t nosuchfs none /tmp 2>/dev/null; echo $?"
    specs = [TenantSpec(name, ("sh", "-c", script)) for name in ("one", "other")]
    for result in run_tenants(guest, specs).values():
        assert (result.exit_code, result.record.kills) == (0, []) and result.stdout.strip().isdigit()
        assert any(name.startswith("program started by the kernel: /sbin/modprobe") for name in result.record.outside)
