"""Several tenants on one guest: apart in what they see, print, may do, and in their records."""

import struct

import pytest
from tests.support.futex_tenants import WAKER, futex_tenants
from tests.support.static_elf import build_elf64
from tests.support.traced_program import SIGSTOP, TRACEME, call
from thinbox.boot.params import BootParams
from thinbox.boot.ready import prepare
from thinbox.errors import InputError
from thinbox.isolation.policies.sci import MIDDLE, Sci
from thinbox.session.session import RunOptions, TenantSpec, run, run_tenants
from thinbox.syscalls.table import call_number

SCRIPT = "hostname; id -u; cat; echo mine > /tmp/x; sleep 0.01; cat /tmp/x; ls /tmp | wc -l; ls /proc | grep -c '^[0-9]'; echo err >&2"


@pytest.fixture(scope="module")
def two(guest):
    kept = {}

    def watch(machine, enforcer):
        def look():
            if len({state.tenant.name for state in enforcer.tasks.values()}) == 2 and enforcer.running is None:
                root = enforcer.kernel_root
                kept["census"] = enforcer.views.cgroups.census(root)
                kept["tasks"] = {task: state.tenant.name for task, state in enforcer.tasks.items()}

        machine.cpu.add_code_hook(enforcer.view.symbols.address_of("__x64_sys_poll"), look)

    specs = [
        TenantSpec("red", ("sh", "-c", SCRIPT + "; exit 3"), stdin=b"to red\n"),
        TenantSpec("blue", ("sh", "-c", SCRIPT), stdin=b"to blue\n", view="none", isolate="openat,read"),
    ]
    return run_tenants(guest, specs, on_machine=watch), kept


def test_two_tenants_run_side_by_side_with_their_outputs_apart(two):
    results, _kept = two
    for name in ("red", "blue"):
        # Its own host name, root of its own user namespace, /tmp with one file, and few processes.
        lines = results[name].stdout.decode().splitlines()
        assert lines[:5] == [name, "0", f"to {name}", "mine", "1"], results[name].record.kills
        assert int(lines[5]) <= 5
        assert results[name].stderr == b"err\n"
    assert [results[name].exit_code for name in ("red", "blue")] == [3, 0]


def test_each_has_a_record_of_its_own_calls(two):
    results, _kept = two
    red, blue = (results[name].record for name in ("red", "blue"))
    assert {call.tenant for call in red.calls} == {"red"} and {call.tenant for call in blue.calls} == {"blue"}
    assert all(call.isolated for call in red.calls)
    assert {call.name for call in blue.calls if call.isolated} <= {"openat", "read"} and blue.totals["isolated"]
    assert not red.kills and not blue.kills
    for record in (red, blue):
        assert record.tables_made == record.tables_freed > 1
        assert record.table_pages_made == record.table_pages_freed > 50


def test_every_task_is_attributed_by_the_guests_own_structures(two):
    _results, kept = two
    census, tasks = kept["census"], kept["tasks"]
    assert {task: census[task] for task in tasks} == tasks
    # The two processes 1 too; and there are kernel threads and the agent, which are nobody's.
    assert list(census.values()).count("red") > list(tasks.values()).count("red")
    assert list(census.values()).count(None) > 10


def test_a_kill_of_one_leaves_the_other_alone(guest):
    class NoMkdir(Sci):
        name = "no-mkdir"

        def check_access(self, access, call):
            return MIDDLE if access.symbol == "shmem_mkdir" else super().check_access(access, call)

    specs = [
        TenantSpec("bad", ("mkdir", "/tmp/x"), policy=NoMkdir(), on_violation="undo"),
        TenantSpec("good", ("sh", "-c", "mkdir /tmp/x; sleep 0.02; rmdir /tmp/x; echo fine"), on_violation="oops"),
    ]
    results = run_tenants(guest, specs)
    assert results["bad"].exit_code == 137 and results["bad"].record.kills[0].undone
    assert results["bad"].record.kills[0].tenant == "bad"
    assert results["good"].exit_code == 0 and results["good"].stdout == b"fine\n" and not results["good"].record.kills


@pytest.mark.parametrize("on_violation", ["undo", "oops"])
@pytest.mark.parametrize("granted", [0, 100])
def test_one_that_is_killed_in_its_first_execve_is_a_result_and_the_other_goes_on(guest, granted, on_violation):
    class SomeOfExecve(Sci):
        name = "some-of-execve"
        asked = 0

        def check_access(self, access, call):
            self.asked += 1
            return MIDDLE if self.asked > granted else super().check_access(access, call)

    specs = [
        TenantSpec("bad", ("id",), policy=SomeOfExecve(), on_violation=on_violation),
        TenantSpec("good", ("sh", "-c", "sleep 0.02; echo fine"), policy="live", on_violation=on_violation),
    ]
    results = run_tenants(guest, specs)
    assert results["bad"].exit_code == 137 and [kill.call for kill in results["bad"].record.kills] == ["execve"]
    assert results["good"].exit_code == 0 and results["good"].stdout == b"fine\n" and not results["good"].record.kills


def test_limits_hold(guest):
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait"
    result = run_tenants(guest, [TenantSpec("few", ("sh", "-c", script), tasks=4, isolate="none")])["few"]
    assert b"fork" in result.stderr or b"vfork" in result.stderr


def test_a_limit_of_memory_holds_and_without_one_the_same_is_done(guest):
    """/tmp is memory, charged to who writes it: past the limit the guest's own OOM killer ends the writer."""
    command = ("sh", "-c", "dd if=/dev/zero of=/tmp/x bs=65536 count=256 2>/dev/null; echo status $?; wc -c </tmp/x")
    specs = [
        TenantSpec("little", command, memory_bytes=8 << 20, isolate="none"),
        TenantSpec("much", command, isolate="none"),
    ]
    found = run_tenants(guest, specs)
    assert found["much"].stdout == b"status 0\n16777216\n"
    status, size = found["little"].stdout.splitlines()
    assert status == b"status 137" and 1 << 20 < int(size) < 8 << 20


def test_what_cannot_be_a_tenant_is_said(guest):
    with pytest.raises(InputError, match="no tenant's name"):
        TenantSpec("a/b", ("true",))
    with pytest.raises(InputError, match="two tenants"):
        run_tenants(guest, [TenantSpec("a", ("true",)), TenantSpec("a", ("true",))])
    with pytest.raises(InputError, match="no view"):
        run_tenants(guest, [TenantSpec("a", ("true",), view="some")])


def test_sixteen_tenants_at_once(guest):
    found = run_tenants(guest, [TenantSpec(f"t{number}", ("id", "-u")) for number in range(16)])
    assert [(r.exit_code, r.stdout, r.record.kills) for r in found.values()] == [(0, b"0\n", [])] * 16


class KillsAt(Sci):
    """Policy sci, but these functions are refused: what their call holds then, it holds for ever."""

    name = "kills-at"
    grants_all_data = True

    def __init__(self, *symbols):
        self.symbols = symbols

    def check_access(self, access, call):
        return MIDDLE if access.symbol in self.symbols else super().check_access(access, call)


def test_a_lock_that_a_killed_task_took_along_does_not_hang_the_run_of_who_spins_for_it(guest, tmp_path):
    """Each of five dies in futex() with the lock of one of the kernel's 256 chains; another wakes at 240 addresses."""
    found = run_tenants(guest, futex_tenants(tmp_path, KillsAt("plist_add")))
    killed = [name for name, result in found.items() if result.record.kills]
    assert killed and all(found[name].record.stuck for name in killed)
    # The one who spins was not killed; it is cut off, and that is said, not taken for an end of its own.
    assert found[WAKER].record.stuck and found[WAKER].exit_code == 137 and not found[WAKER].record.kills


def test_a_folder_that_a_killed_task_left_locked_does_not_hang_the_run(guest):
    """The second mkdir sleeps for a lock that nobody will give back."""
    options = RunOptions(policy=KillsAt("shmem_mkdir", "shmem_mknod", "shmem_get_inode"))
    result = run(guest, ["sh", "-c", "mkdir /tmp/a; mkdir /tmp/b; echo never"], options)
    assert result.record.stuck and result.stdout == b"" and result.exit_code == 137
    assert [kill.call for kill in result.record.kills] == ["mkdir"]


def test_a_tenant_that_stops_for_a_tracer_has_not_ended(guest):
    """It makes process 1 its tracer, which is told of every stop as of an end; what it left behind goes on."""
    code = call("ptrace", TRACEME, 0, 0, 0) + call("getpid") + b"\x48\x89\xc7"  # mov rdi, rax
    code += b"\xbe" + struct.pack("<I", SIGSTOP) + b"\xb8" + struct.pack("<I", call_number("kill")) + b"\x0f\x05"
    text = "".join(f"\\{byte:03o}" for byte in build_elf64(code + call("exit_group", 5)))
    script = f"printf '{text}' >/tmp/p; chmod 755 /tmp/p; (sleep 0.05; echo alive; kill -9 $$) & exec /tmp/p"
    specs = [TenantSpec("stops", ("sh", "-c", script)), TenantSpec("works", ("sh", "-c", "sleep 0.1; echo done"))]
    found = run_tenants(guest, specs)
    assert (found["works"].exit_code, found["works"].stdout) == (0, b"done\n")
    assert (found["stops"].exit_code, found["stops"].stdout) == (137, b"alive\n")
    assert not found["stops"].record.stuck and not found["stops"].record.kills


def test_a_tenant_that_makes_tasks_without_end_leaves_the_others_theirs(guest):
    bomb = "while :; do sleep 9 & done"
    works = "sleep 3; for i in 1 2 3 4 5; do (echo $i) || echo none; done; echo done"
    specs = [
        TenantSpec("bomb", ("timeout", "6", "sh", "-c", bomb), isolate="none", memory_bytes=128 << 20),
        TenantSpec("works", ("sh", "-c", works), isolate="none", memory_bytes=64 << 20),
    ]
    found = run_tenants(guest, specs)
    assert (found["works"].exit_code, found["works"].stdout) == (0, b"1\n2\n3\n4\n5\ndone\n")


@pytest.mark.guest
def test_a_kernel_that_charges_none_of_its_own_memory_has_no_views():
    ready = prepare(None, BootParams(append="cgroup.memory=nokmem"))
    assert run(ready, ["id", "-u"]).stdout == b"0\n"
    with pytest.raises(InputError, match="nokmem"):
        run(ready, ["id", "-u"], RunOptions(view="strict"))
