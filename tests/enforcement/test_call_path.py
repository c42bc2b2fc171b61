"""Whose call it is, and where a task ends, on a real kernel."""

import struct

from tests.support.call_program import DATA, Step, build_program, results
from thinbox.planning.microbench import build_elf, build_step
from thinbox.session.session import RunOptions, run

THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000
"""CLONE_VM, FS, FILES, SIGHAND, THREAD (include/uapi/linux/sched.h)."""


def test_an_end_that_is_not_among_the_calls_to_isolate_is_judged_all_the_same(guest):
    """The task made an isolated call, so it may have forged what its end looks at."""
    record = run(guest, ["id", "-u"], RunOptions(policy="live", isolate="getuid")).record
    assert [call.name for call in record.calls if call.isolated] == ["getuid"] * 2
    assert record.outside["exits, judged"] == 1 and record.outside["pages granted to ends"] > 10
    assert not record.kills and record.tables_made == record.tables_freed == 1


def test_a_thread_that_executes_a_program_goes_by_its_groups_number(guest, tmp_path):
    """execve in a thread ends the others, and gives the thread their leader's number (fs/exec.c, de_thread)."""
    child = build_step(Step("execve", (DATA + 256, 0, 0)))
    code = build_step(Step("clone", (THREAD, DATA + 4000, 0, 0, 0)))
    wait = build_step(Step("pause"))
    code += b"\x85\xc0\x74" + bytes((len(wait) + 2,)) + wait + b"\xeb" + struct.pack("<b", -len(wait) - 2) + child
    for name, image in (("program", build_elf(code, {256: b"/other\0"})), ("other", build_program(Step("getpid")))):
        (tmp_path / name).write_bytes(image)
        (tmp_path / name).chmod(0o755)
    result = run(guest, ["/program"], RunOptions(policy="live", rootfs=tmp_path))
    (leader,) = results(result.stdout)
    calls = result.record.calls
    assert [call.pid for call in calls if call.name in ("getpid", "write", "exit_group")] == [leader] * 3
    assert [call.pid for call in calls if call.name == "execve"] != [leader] * 2, "it was no thread that executed it"
