"""What a user sees of a run: the same bytes and status, isolated and not; the record; the kill."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import thinbox
from tests.support.debian_rootfs import rootfs_folder
from thinbox.address import to_signed
from thinbox.attacks.hijack import HijackedCall
from thinbox.errors import InputError
from thinbox.machine.machine import Machine
from thinbox.session.session import RunOptions, run

WORKLOADS = Path(__file__).parent.parent / "workloads"
SCRIPT = Path(thinbox.__file__).parent / "data" / "script.sh"
ISSUE_COMMAND = "echo hello | wc -c; ls -l /; cat /proc/self/status; uname -a"
HOST_FIELDS = ("wall_s", "fault_us_median")


def both(guest, command, **options):
    """Run isolated and not; require the same bytes, status and virtual time; return the isolated result."""
    isolated = run(guest, command, RunOptions(**options))
    options.pop("policy", None)
    plain = run(guest, command, RunOptions(isolate="none", **{k: v for k, v in options.items() if k != "stdin"}))
    assert isolated.stdout == plain.stdout
    assert isolated.stderr == plain.stderr
    assert isolated.exit_code == plain.exit_code
    assert calls_by_process(isolated) == calls_by_process(plain)
    # The part of a block that runs again after a grant is not counted twice, and no interrupt comes between its parts.
    # What is left: a block that is cut in its second page may end later than it would have (the engine ends a block
    # that crosses a page sooner than one that starts there), so an interrupt may come a few instructions later.
    difference = abs(isolated.record.virtual_ns - plain.record.virtual_ns)
    assert difference <= plain.record.virtual_ns / 1e4, "isolation takes no virtual time"
    totals = isolated.record.totals
    assert totals["isolated"] == totals["calls"] > 0
    assert totals["killed"] == 0
    assert plain.record.totals["isolated"] == 0
    assert totals["tables_made"] == totals["tables_freed"]
    assert totals["table_pages_made"] == totals["table_pages_freed"]
    return isolated


def calls_by_process(result):
    """The calls of each process in order. Two that run side by side may take turns a few nanoseconds earlier or later:
    the clock's grain, below."""
    found = {}
    for call in result.record.calls:
        found.setdefault(call.pid, []).append(call.name)
    return found


def test_the_issues_pipeline_prints_the_same_isolated_and_not(guest):
    result = both(guest, ["sh", "-c", ISSUE_COMMAND])
    assert result.stdout.startswith(b"6\n")
    assert b"Linux thinbox 6." in result.stdout


def test_a_script_of_300_lines_prints_the_same_isolated_and_not(guest, tmp_path):
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (tmp_path / name).mkdir()
    script = SCRIPT.read_text()
    assert len(script.splitlines()) >= 300
    command = ["sh", "-c", script]
    result = both(guest, command)
    assert result.exit_code == 0, result.stdout.decode()[-800:]
    assert b"checks ok" in result.stdout.splitlines()[-1]


def test_dash_from_debian_packages_runs_isolated(guest):
    root = rootfs_folder("dash")
    result = both(guest, ["/bin/dash", "-c", "for i in 1 2 3; do (echo $i; exit $i); echo $?; done"], rootfs=root)
    assert result.stdout == b"1\n1\n2\n2\n3\n3\n"


def test_sqlite3_from_debian_packages_runs_isolated(guest, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(rootfs_folder("sqlite3"), root, symlinks=True)
    shutil.copy(WORKLOADS / "sqlite.sql", root / "work.sql")
    result = both(guest, ["/usr/bin/sqlite3", "/tmp/work.db", ".read /work.sql"], rootfs=root)
    assert result.exit_code == 0, result.stderr
    assert result.stdout


def test_python3_from_debian_packages_runs_isolated(guest, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(rootfs_folder("python3"), root, symlinks=True)
    shutil.copy(WORKLOADS / "program.py", root / "program.py")
    result = both(guest, ["/usr/bin/python3", "/program.py"], rootfs=root)
    assert result.exit_code == 0, result.stderr.decode()[-500:]


def test_two_runs_give_the_same_record_to_the_byte(guest):
    records = []
    for _ in range(2):
        record = run(guest, ["sh", "-c", ISSUE_COMMAND], RunOptions(keep_faults=True)).record
        data = record.to_json()
        for name in HOST_FIELDS:
            del data["totals"][name]
        records.append(json.dumps(data) + repr(list(record.faults)))
    assert records[0] == records[1]


def test_stdin_stdout_and_stderr_are_binary_clean(guest, tmp_path):
    data = bytes(range(256)) * 2000 + os.urandom(70_000)
    source = tmp_path / "input"
    source.write_bytes(data)
    with source.open("rb") as stdin:
        result = run(guest, ["sh", "-c", "tee /dev/stderr"], RunOptions(stdin=stdin))
    assert result.stdout == data
    assert result.stderr == data


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("nosuchprogram", 127)],
)
def test_the_exit_status_is_the_tenants_own(guest, script, status):
    result = run(guest, ["sh", "-c", script])
    assert result.exit_code == status
    assert result.record.killed is None


def test_a_kill_names_call_address_symbol_rule_and_policy_and_the_guest_lives_on(guest):
    bug = HijackedCall(skip=1)
    result = run(guest, ["sh", "-c", "id -u; echo status $?; ls /bin/sh"], RunOptions(on_machine=bug.install))
    assert result.stdout == b"status 137\n/bin/sh\n"
    assert result.exit_code == 137
    assert len(result.record.kills) == 1
    call = next(call for call in result.record.calls if call.verdict == "killed")
    assert call.name == "getuid"
    assert call.ret is None
    assert "oops" not in result.console.lower()


def test_a_policy_object_of_the_users_decides(guest):
    asked = []

    class Counting:
        name = "counting"
        grants_all_data = False

        def check_access(self, access, _call):
            from thinbox.isolation.verdict import Verdict

            asked.append(access)
            return Verdict(granted=True, rule="mine", reason="counted")

    record = run(guest, ["true"], RunOptions(policy=Counting())).record
    assert len(asked) == record.totals["code_faults"] + record.totals["data_faults"] > 100


def test_only_chosen_calls_are_isolated(guest):
    record = run(guest, ["sh", "-c", "id; pwd"], RunOptions(isolate="getuid,write")).record
    assert {call.name for call in record.calls if call.isolated} == {"getuid", "write"}
    with pytest.raises(InputError, match="getuid"):
        run(guest, ["true"], RunOptions(isolate="getuidd"))


def test_the_records_agree_with_the_guests_own_view(guest):
    result = run(guest, ["sh", "-c", "echo $$; exec cat /etc/hostname"])
    writes = [call for call in result.record.calls if call.name == "write" and call.ret and call.ret > 0]
    assert sum(call.ret for call in writes) + sum(
        call.ret for call in result.record.calls if call.name == "sendfile"
    ) == len(result.stdout)
    assert {call.pid for call in result.record.calls} == {int(result.stdout.split()[0])}
    opened = [call for call in result.record.calls if call.name in ("open", "openat")]
    assert all(call.ret is not None and to_signed(call.ret) < 1024 for call in opened)


def test_symbols_agree_with_the_guests_own_kallsyms(guest):
    result = run(
        guest, ["sh", "-c", "echo 0 >/proc/sys/kernel/kptr_restrict; cat /proc/kallsyms"], RunOptions(isolate="none")
    )
    seen = 0
    for line in result.stdout.decode().splitlines():
        address, kind, name = line.split()[:3]
        if "[" in line or kind in "aA":
            continue
        assert int(address, 16) in guest.facts.symbols.addresses_of(name)
        seen += 1
    assert seen > 50_000


def test_parquet_records_are_written(guest, tmp_path):
    from pyarrow import parquet
    from thinbox.report.parquet import write_record

    record = run(guest, ["ls", "/"], RunOptions(keep_faults=True)).record
    write_record(record, tmp_path / "out")
    calls = parquet.read_table(tmp_path / "out" / "calls.parquet")
    faults = parquet.read_table(tmp_path / "out" / "faults.parquet")
    assert calls.num_rows == len(record.calls)
    assert faults.num_rows == record.totals["code_faults"] + record.totals["data_faults"]
    assert calls.schema.metadata[b"schema"] == b"thinbox.calls/1"


def test_command_line_json_has_the_promised_fields(guest, tmp_path):
    path = tmp_path / "run.json"
    done = subprocess.run(
        [sys.executable, "-m", "thinbox", "run", "-q", "--json", str(path), "--", "sh", "-c", "cat; exit 5"],
        input=b"in\0put",
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (5, b"in\0put", b"")
    data = json.loads(path.read_text())
    assert data["schema"] == "thinbox.run/1"
    assert set(data) >= {"kernel", "policy", "command", "exit_code", "killed", "calls", "totals"}
    names = {"seq", "tenant", "pid", "nr", "name", "args", "ret", "isolated", "verdict", "code_faults", "data_faults"}
    assert set(data["calls"][0]) >= names | {"code_bytes", "virtual_ns"}


def test_memory_is_lazily_allocated(guest):
    assert dataclasses.is_dataclass(guest)
    before = _resident_bytes()
    machine = Machine(2048)
    assert machine.memory.total_bytes > 2 << 30
    assert _resident_bytes() - before < 200 << 20


def _resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_killed_task_that_waits_for_its_own_lock_does_not_hang_the_run(guest):
    class StartsOnly:
        """Kills `brk` while it holds its mmap_lock, which its own exit then waits for."""

        name = "starts-only"
        grants_all_data = True

        def check_access(self, access, _call):
            from thinbox.isolation.verdict import Verdict

            granted = access.kind != "fetch" or access.offset == 0
            return Verdict(granted=granted, rule="start", reason="not a function's start")

    result = run(guest, ["id", "-u"], RunOptions(policy=StartsOnly(), isolate="brk"))
    assert result.exit_code == 137
    assert result.record.stuck
    assert result.record.killed.call == "brk"


def test_threads_of_one_process_each_get_their_own_table(guest):
    program = "import threading,time\nt=[threading.Thread(target=time.sleep,args=(0.01,)) for _ in range(4)]\n"
    program += "[x.start() for x in t]; [x.join() for x in t]; print('joined')"
    result = run(guest, ["/usr/bin/python3", "-c", program], RunOptions(rootfs=rootfs_folder("python3")))
    assert result.stdout == b"joined\n", result.stderr
    assert result.record.totals["tables_made"] == result.record.totals["tables_freed"] == 5
    assert len({call.pid for call in result.record.calls}) == 5
