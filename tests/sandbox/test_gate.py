"""Dispositions on a real kernel: what a plan says is done before the kernel runs anything of the call."""

import errno
import hashlib
import sys

import pytest
from tests.enforcement.test_call_path import THREAD
from tests.enforcement.test_compat import INT80, program
from tests.support.call_program import CODE, DATA, RESULT, Step, build_program, load_word, raw_call, results
from thinbox.errors import InputError
from thinbox.kernel.populate import find_populate
from thinbox.planning.microbench import build_step
from thinbox.sandbox.plan_file import parse_plan
from thinbox.session.session import RunOptions, run
from thinbox.syscalls.table import call_number

HEAD = 'schema = "thinbox.plan/1"\nname = "test"\ndefault = "isolate"\n'


def make(calls, top="", head=HEAD):
    return parse_plan(f"{head}{top}[calls]\n{calls}", "test.toml", lambda path: open(path, "rb").read())


@pytest.fixture
def run_steps(guest, tmp_path):
    def start(steps, plan=None, image=None, **options):
        path = tmp_path / "program"
        path.write_bytes(image or build_program(*steps))
        path.chmod(0o755)
        return run(guest, ["/program"], RunOptions(rootfs=tmp_path, plan=plan, **options))

    return start


def names(result, *dispositions):
    return [call.name for call in result.record.calls if call.disposition in dispositions]


def test_a_denied_call_fails_with_its_errno_and_the_kernel_does_nothing(guest):
    plan = make('mkdir = "deny:EACCES"')
    result = run(guest, ["sh", "-c", "mkdir /tmp/x; echo $?; ls /tmp | wc -l"], RunOptions(plan=plan, coverage=True))
    assert result.stdout == b"1\n0\n"
    assert b"Permission denied" in result.stderr
    denied = next(call for call in result.record.calls if call.name == "mkdir")
    assert (denied.ret, denied.verdict, denied.isolated) == (-errno.EACCES, "denied", False)
    assert not denied.reaches_kernel and denied.coverage is None
    assert not any("mkdir" in name for name in result.record.coverage.functions)
    assert result.record.totals["reaching_kernel"] == result.record.totals["calls"] - 1
    (refusal,) = result.record.refusals
    assert "mkdir was refused by test, line 5 (deny EACCES)" in refusal.sentence()


def test_a_killed_call_ends_its_process_by_sigsys_and_the_others_go_on(guest):
    plan = make('mkdir = "kill"')
    script = "trap 'echo caught' SYS; mkdir /tmp/x; echo $?; ls /tmp | wc -l; cat /proc/uptime >/dev/null; echo on"
    result = run(guest, ["sh", "-c", script], RunOptions(plan=plan))
    assert result.stdout == b"159\n0\non\n"  # 128 + SIGSYS
    assert result.exit_code == 137
    assert result.record.killed.call == "mkdir" and "line 5" in result.record.killed.sentence()
    assert result.record.table_pages_made == result.record.table_pages_freed
    assert not result.record.stuck


def test_the_way_back_is_as_after_sysret(run_steps):
    """RCX is the next instruction, R11 the flags; all other registers are kept."""
    code = raw_call(call_number("getuid"))
    after_rcx = code + b"\x48\x89\xc8"  # mov rax, rcx
    after_r11 = code + b"\x9c\x58\x4c\x29\xd8"  # pushf; pop rax; sub rax, r11
    kept = b"\x48\xc7\xc3\x07\0\0\0" + code + b"\x48\x89\xd8"  # mov rbx, 7 … mov rax, rbx
    steps = (after_rcx, after_r11, kept)
    emulated = run_steps(steps, make('getuid = "emulate"'))
    plain = run_steps(steps)
    assert results(emulated.stdout) == results(plain.stdout)
    assert results(plain.stdout)[1:] == [0, 7]
    assert names(emulated, "emulate") == ["getuid"] * 3


IDENTITY = "getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups"
SYSTEM = "uname sysinfo sched_yield getcpu getrlimit prlimit64 sched_getaffinity"


def test_identity_and_system_are_the_guests_own(guest):
    calls = "".join(f'{n} = {{ do = "emulate", otherwise = "isolate" }}\n' for n in f"{IDENTITY} {SYSTEM}".split())
    script = (
        "id; id -u nobody; echo $$ $PPID; sh -c 'echo $$ $PPID'; uname -a; unshare -pf sh -c 'echo $$ $PPID; id -u';"
        "unshare -U sh -c 'id -u; id -g'; unshare -Ur id -u; unshare -u sh -c 'hostname other; uname -n';"
        "su -s /bin/sh nobody -c 'id -u; id -G'; ulimit -n; (ulimit -n 77; sh -c 'ulimit -n'); setsid sh -c 'ps -o pid,pgid,sid,args | wc -l'; nproc"
    )
    plain = run(guest, ["sh", "-c", script], RunOptions(isolate="none"))
    emulated = run(guest, ["sh", "-c", script], RunOptions(plan=make(calls)))
    assert emulated.stdout == plain.stdout
    assert plain.stdout.count(b"\n") > 15
    assert {"getpid", "getppid", "getuid", "uname"} <= set(names(emulated, "emulate"))


@pytest.mark.parametrize("clock", [0, 1, 5, 6, 7])
def test_the_clock_is_the_guests_own(run_steps, clock):
    """The same program asks thinbox, then (in the second phase) the kernel."""
    ask = Step("clock_gettime", (clock, DATA + 512))
    steps = (
        ask, load_word(DATA + 512), load_word(DATA + 520), Step("write", (-1, DATA, 0)),
        ask, load_word(DATA + 512), load_word(DATA + 520),
    )  # fmt: skip
    rules = """clock_gettime = [
  { do = "emulate", phase = "start" },
  { do = "isolate", phase = "steady" },
]
"""
    result = run_steps(steps, make(rules, 'phase_marker = "accept"\n'))
    ok, seconds, ns, marker, ok2, seconds2, ns2 = results(result.stdout)
    assert (ok, ok2, marker) == (0, 0, -errno.EBADF)
    assert names(result, "emulate") == ["clock_gettime"]
    passed = (seconds2 - seconds) * 10**9 + ns2 - ns
    assert 0 <= passed < 5_000_000
    assert result.record.steady_seq is not None


def test_random_bytes_are_those_of_the_seed(run_steps):
    steps = (
        Step("getrandom", (DATA + 512, 16, 0)), load_word(DATA + 512), load_word(DATA + 520),
        Step("getrandom", (DATA + 512, 8, 0)), load_word(DATA + 512), Step("getrandom", (DATA, 8, 6)),
    )  # fmt: skip
    first = results(run_steps(steps, make('getrandom = "emulate"', "seed = 7\n")).stdout)
    again = results(run_steps(steps, make('getrandom = "emulate"', "seed = 7\n")).stdout)
    other = results(run_steps(steps, make('getrandom = "emulate"', "seed = 8\n")).stdout)
    assert first == again
    assert first[0] == 16 and first[3] == 8 and first[5] == -errno.EINVAL
    assert len({first[1], first[2], first[4], other[1], other[2], other[4]}) == 6


def test_memory_has_efault_semantics_and_absent_pages_are_brought_in(guest, run_steps):
    fault = -errno.EFAULT
    steps = (
        Step("getrandom", (0, 8, 0)),
        Step("getrandom", (0x700000, 8, 0)),  # nothing mapped
        Step("getrandom", (CODE, 8, 0)),  # read-only
        Step("getrandom", (DATA + 4090, 32, 0)),  # over the end of the data
        Step("mmap", (0, 8192, 3, 0x22, -1, 0)),
        Step("getrandom", (RESULT, 8192, 0)),  # never touched
        raw_call(call_number("getuid")),
        Step("mmap", (0x20000000, 4096, 0, 0x32, -1, 0)),
        Step("getrandom", (0x20000000, 8, 0)),  # PROT_NONE
    )
    kernel = b"\x48\xbf" + (0xFFFFFFFF81000000).to_bytes(8, "little")  # movabs rdi
    steps += (kernel + b"\xbe\x08\0\0\0\x31\xd2" + raw_call(call_number("getrandom")),)
    populate = find_populate(guest.facts).call(0, write=True).name
    calls = f'getrandom = "emulate"\n{populate} = "deny:EPERM"'
    result = run_steps(steps, make(calls))
    got = results(result.stdout)
    assert got[:4] == [fault] * 4
    assert got[5] == 8192
    assert got[6] == 0
    assert got[8:] == [fault, fault]
    brought = [call for call in result.record.calls if call.disposition == "populate"]
    assert brought and all(call.name == populate and call.isolated for call in brought)
    plain = results(run_steps(steps).stdout)
    # Over the end of what is mapped the kernel gives a part, an emulation all or nothing.
    assert plain.pop(3) == 6 and got.pop(3) == fault
    assert [value if value < 0 else "ok" for value in got] == [value if value < 0 else "ok" for value in plain]


def test_a_number_with_garbage_above_is_the_number_the_kernel_sees(run_steps):
    number = call_number("getuid")
    steps = (raw_call(1 << 32 | number), raw_call(1 << 63 | number))
    plain = run_steps(steps)
    # Before 5.14 the kernel sees all 64 bits, and there is no such call; a plan refuses it all the same.
    assert results(plain.stdout) in ([0, 0], [-errno.ENOSYS] * 2)
    assert [call.name for call in plain.record.calls[1:3]] == ["getuid", "getuid"]
    denied = run_steps(steps, make('getuid = "deny:EPERM"'))
    assert results(denied.stdout) == [-errno.EPERM] * 2


def test_a_number_without_a_call_is_refused_by_default(run_steps):
    head = HEAD.replace('"isolate"', '"deny:EPERM"')
    plan = make('write = "isolate"\nexit_group = "isolate"', head=head)
    result = run_steps((raw_call(400), raw_call(0x40000000 | 39), raw_call(0xFFFFFFFF)), plan)
    assert results(result.stdout) == [-errno.EPERM] * 3


def test_32_bit_calls_are_refused_by_the_plan(run_steps):
    refused = run_steps((), make("", 'compat = "deny:EPERM"\n'), image=program(64, INT80))
    assert refused.stdout == b"" and refused.record.totals["reaching_kernel"] == 1
    assert {call.name for call in refused.record.calls} == {"execve", "i386#20", "i386#4", "i386#1"}
    killed = run_steps((), make("", 'compat = "kill"\n'), image=program(64, INT80))
    assert killed.exit_code == 137 and killed.record.killed.call == "i386#20"
    allowed = run_steps((), make("", 'compat = "isolate"\n'), image=program(64, INT80))
    assert allowed.exit_code == 7


def test_an_argument_outside_the_plan_is_named_with_the_line(run_steps):
    rules = 'socket = { do = "isolate", when = { family = ["AF_UNIX"] } }\n'
    steps = (Step("socket", (1, 1, 0)), Step("socket", (17, 3, 0)), Step("socket", (2, 1, 0)))
    result = run_steps(
        steps,
        make(rules, head=HEAD.replace('"isolate"', '"deny:EPERM"')),
    )
    # write and exit_group are refused too: only the record speaks.
    said = [refusal.sentence() for refusal in result.record.refusals]
    assert said[0].startswith("socket(family=AF_PACKET) was refused by test, line 5 (deny EPERM)")
    assert said[1].startswith("socket(family=AF_INET) was refused")
    assert any(sentence.startswith("write was refused by test, line 3") for sentence in said)


def test_isolate_and_pass_are_done_by_call(guest):
    plan = make('getuid = "pass"\nwrite = "pass"')
    result = run(guest, ["id", "-u"], RunOptions(plan=plan))
    assert result.stdout == b"0\n"
    unisolated = {call.name for call in result.record.calls if not call.isolated}
    assert unisolated == {"getuid", "write"}


def test_files_the_sandbox_owns_are_read_without_the_kernel(guest, tmp_path):
    (tmp_path / "host.txt").write_bytes(b"from the host\n" * 300)
    top = f'[[file]]\npath = "/etc/hello"\ntext = "owned\\n"\n[[file]]\npath = "/data"\nfrom = "{tmp_path}/host.txt"\n'
    script = (
        "cat /etc/hello; md5sum /data; wc -c /data; tail -c 5 /data; echo x >/etc/hello;"
        "ls -l /data; test -e /etc/hallo || echo absent; (cat </data) || echo no redirection"
    )
    result = run(guest, ["sh", "-c", script], RunOptions(plan=make("", top)))
    digest = hashlib.md5(b"from the host\n" * 300).hexdigest()
    lines = result.stdout.decode().split("\n")
    assert lines[:4] == ["owned", f"{digest}  /data", "4200 /data", "host"]
    assert lines[4].startswith("-r--r--r--    1 root     root          4200") and lines[5:] == [
        "absent",
        "no redirection",
        "",
    ]
    assert b"Read-only file system" in result.stderr
    assert {"openat", "read", "close", "newfstatat"} <= set(names(result, "emulate"))


def test_descriptors_of_owned_files_are_each_process_s_own(run_steps):
    """openat, read, fork (the child closes and leaves), wait, read on, close, read."""
    first = 1 << 30
    path = b"/owned\0"
    store = (
        b"\x48\xb8" + path.ljust(8, b"\0") + b"\x48\x89\x04\x25" + (DATA + 600).to_bytes(4, "little")
    )  # mov [path], …
    close = bytes.fromhex("48c7c7") + first.to_bytes(4, "little") + raw_call(call_number("close"))
    leave = close + b"\x31\xff" + raw_call(call_number("exit_group"))
    fork = raw_call(call_number("fork")) + b"\x85\xc0\x75" + bytes((len(leave),)) + leave
    wait = Step("wait4", (-1, 0, 0, 0))
    read = Step("read", (first, DATA + 512, 3))
    steps = (
        store,
        Step("open", (DATA + 600, 0)),
        read,
        fork,
        wait,
        read,
        load_word(DATA + 512),
        close,
        read,
        Step("dup", (first + 1,)),
    )
    result = run_steps(steps, make("", '[[file]]\npath = "/owned"\ntext = "abcdef"\n'))
    _store, opened, three, _pid, _waited, again, word, closed, after, unknown = results(result.stdout)
    assert (opened, three, again, closed) == (first, 3, 3, 0)
    assert word.to_bytes(8, "little")[:3] == b"def"
    assert after == unknown == -errno.EBADF
    assert names(result, "emulate").count("close") == 2


def test_ones_own_handler_in_a_few_lines(guest, tmp_path, monkeypatch):
    (tmp_path / "own_handler.py").write_text(
        "from thinbox.sandbox.emulation import CallError, NotOursError\n"
        "def fixed(call):\n    return 4242\n"
        "def host_name(call):\n    call.write(call.args[0], b'elsewhere'.ljust(390, b'\\0'))\n    return 0\n"
        "def sometimes(call):\n    if call.read_string(call.args[0]) == b'/tmp/no':\n        raise CallError(13)\n    raise NotOursError\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    calls = (
        'getuid = { emulate = "own_handler:fixed" }\nuname = { emulate = "own_handler:host_name" }\n'
        'mkdir = { emulate = "own_handler:sometimes", otherwise = "isolate" }\n'
    )
    result = run(
        guest, ["sh", "-c", "id -u; uname; mkdir /tmp/no; mkdir /tmp/yes; ls /tmp"], RunOptions(plan=make(calls))
    )
    sys.modules.pop("own_handler", None)
    assert result.stdout == b"4242\nelsewhere\nyes\n"
    assert b"Permission denied" in result.stderr
    with pytest.raises(InputError, match="PYTHONPATH"):
        run(guest, ["true"], RunOptions(plan=make('getuid = { emulate = "no_such_module:x" }')))


def test_what_start_up_may_do_is_refused_behind_the_marker(run_steps):
    rules = """socket = { do = "isolate", phase = "start" }
poll = "isolate"
write = "isolate"
exit_group = "isolate"
"""
    steps = (Step("socket", (1, 1, 0)), Step("poll", (0, 0, 0)), Step("socket", (1, 1, 0)))
    plan = make(rules, 'phase_marker = ["poll"]\n', HEAD.replace('"isolate"', '"deny:EPERM"'))
    result = run_steps(steps, plan)
    first, polled, second = results(result.stdout)
    assert (first, polled, second) == (3, 0, -errno.EPERM)
    (refusal,) = result.record.refusals
    assert "in start-up only" in refusal.sentence() and "line 6" in refusal.sentence()


def test_a_plan_changes_nothing_else(guest):
    script = "echo hello | wc -c; ls -l / | head -3; (sleep 0.01; echo slept) | cat; cat /proc/self/status"
    plain = run(guest, ["sh", "-c", script], RunOptions())
    planned = run(guest, ["sh", "-c", script], RunOptions(plan=make("")))
    assert planned.stdout == plain.stdout
    assert planned.record.virtual_ns == plain.record.virtual_ns
    assert [c.code_faults for c in planned.record.calls] == [c.code_faults for c in plain.record.calls]


def test_a_plan_and_undo_go_together(guest):
    plan = make('mkdir = "kill"\nrmdir = "deny:EPERM"\ngetuid = "emulate"')
    script = "id -u; mkdir /tmp/x; echo $?; rmdir /tmp/y; echo $?; echo on"
    result = run(guest, ["sh", "-c", script], RunOptions(plan=plan, on_violation="undo"))
    assert result.stdout == b"0\n159\n1\non\n"
    assert result.record.table_pages_made == result.record.table_pages_freed


@pytest.mark.guest
def test_the_command_line_takes_a_plan_and_says_what_it_refused(tmp_path, capfd):
    from thinbox.cli import group

    path = tmp_path / "p.toml"
    path.write_text(HEAD + '[calls]\nmkdir = "deny:EPERM"\n')
    with pytest.raises(SystemExit):
        group.main(["run", "-q", "--plan", str(path), "--", "mkdir", "/tmp/x"])
    said = capfd.readouterr().err
    assert "thinbox: mkdir was refused by test, line 5 (deny EPERM)" in said
    with pytest.raises(InputError, match="thinbox brings gvisor-ptrace-gofer"):
        group.main(["run", "-q", "--plan", "no-such-plan", "--", "true"], standalone_mode=False)


def test_an_offset_past_what_a_register_holds_is_refused(run_steps, tmp_path):
    (tmp_path / "conf").write_bytes(b"content")
    plan = parse_plan(
        f'{HEAD}[[file]]\npath = "/etc/conf"\ntext = "content"\n[calls]\n', "test.toml", lambda _path: b"content"
    )
    path = DATA + 512
    text = b"/etc/conf\0".ljust(16, b"\0")
    write = b"".join(b"\x48\xb8" + text[at : at + 8] + b"\x48\xa3" + (path + at).to_bytes(8, "little") for at in (0, 8))
    seek = b"\x89\xc7\x48\xbe" + ((1 << 63) - 1).to_bytes(8, "little") + b"\xba\0\0\0\0\xb8\x08\0\0\0\x0f\x05"
    again = b"\xbf\0\0\0\x40\xbe\x01\0\0\0\xba\x01\0\0\0\xb8\x08\0\0\0\x0f\x05"  # lseek(2^30, 1, SEEK_CUR)
    result = run_steps((write, Step("open", (path, 0)), seek, again), plan)
    _stored, number, first, second = results(result.stdout)
    assert (number, first, second) == (1 << 30, (1 << 63) - 1, -errno.EINVAL)


def test_a_process_that_ended_leaves_no_descriptors_in_the_host(guest):
    plan = parse_plan(f'{HEAD}[[file]]\npath = "/etc/conf"\ntext = "x"\n[calls]\n', "test.toml", lambda _path: b"")
    kept = {}
    options = RunOptions(plan=plan, on_machine=lambda _machine, enforcer: kept.update(enforcer=enforcer))
    result = run(guest, ["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do head -c 1 /etc/conf; done"], options)
    assert (result.exit_code, result.stdout) == (0, b"x" * 8)
    gate = kept["enforcer"].tenants["tenant"].gate
    assert len(gate._files._tables) <= 1 and len(gate._members) <= 1


def test_a_program_that_cannot_be_executed_leaves_descriptors_as_they_are(run_steps):
    """Those to be closed on exec are closed if there is one."""
    plan = parse_plan(
        f'{HEAD}[[file]]\npath = "/etc/conf"\ntext = "content"\n[calls]\n', "test.toml", lambda _path: b""
    )
    path = DATA + 512
    text = b"/etc/conf\0".ljust(16, b"\0")
    write = b"".join(b"\x48\xb8" + text[at : at + 8] + b"\x48\xa3" + (path + at).to_bytes(8, "little") for at in (0, 8))
    steps = (write, Step("open", (path, 0o2000000)), Step("execve", (path, 0, 0)), Step("lseek", (1 << 30, 0, 0)))
    _stored, number, executed, found = results(run_steps(steps, plan).stdout)
    assert (number, executed, found) == (1 << 30, -errno.ENOENT, 0)


def test_a_thread_that_ends_leaves_its_process_its_descriptors(run_steps):
    """The tenant's first process: its first task was forked by nobody of the tenant's."""
    plan = parse_plan(
        f'{HEAD}[[file]]\npath = "/etc/conf"\ntext = "content"\n[calls]\n', "test.toml", lambda _path: b""
    )
    path, time = DATA + 512, DATA + 528
    words = b"/etc/conf\0".ljust(16, b"\0") + (0).to_bytes(8, "little") + (20_000_000).to_bytes(8, "little")
    write = b"".join(
        b"\x48\xb8" + words[at : at + 8] + b"\x48\xa3" + (path + at).to_bytes(8, "little") for at in range(0, 32, 8)
    )
    ends = b"\x31\xff\xb8\x3c\0\0\0\x0f\x05"  # exit(0), of the thread alone
    thread = build_step(Step("clone", (THREAD, DATA + 4000, 0, 0, 0))) + b"\x85\xc0\x75" + bytes((len(ends),)) + ends
    steps = (write, Step("open", (path, 0)), thread, Step("nanosleep", (time, 0)), Step("lseek", (1 << 30, 0, 0)))
    _stored, number, thread_number, _slept, found = results(run_steps(steps, plan).stdout)
    assert number == 1 << 30 and thread_number > 0 and found == 0
