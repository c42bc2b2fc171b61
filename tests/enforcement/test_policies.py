"""The policies on a real kernel: what they leave alone, and the attacks each was made for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import thinbox
from tests.support.debian_rootfs import rootfs_folder
from thinbox.address import to_signed
from thinbox.attacks.hijack import HijackedCall
from thinbox.errors import InputError
from thinbox.isolation.policies import load_policy
from thinbox.isolation.policies.profile import Profile
from thinbox.isolation.policies.transfer import Transfer
from thinbox.isolation.transfers import Flow, decode_function
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.enforcement.callgraph_cache import load_live_graph
from thinbox.records.profile import profile_of
from thinbox.session.session import RunOptions, Session, run

SCRIPT = Path(thinbox.__file__).parent / "data" / "script.sh"
ISSUE_COMMAND = "echo hello | wc -c; ls -l /; cat /proc/self/status; uname -a"
DAMAGED_MODULE = "head -c 300000 /dev/zero >/tmp/module; insmod /tmp/module; echo $?"
MIDDLE = ("hugetlb_reserve_pages", 0xC5)


class Counting(Transfer):
    asked = 0

    def check_access(self, access, call):
        self.asked += 1
        return super().check_access(access, call)


class At:
    """Runs `action(machine, enforcer)` once, when an isolated call of `call` comes to `place` after `skip` times."""

    def __init__(self, place, action, call=None, skip=0):
        self.place, self.action, self.call, self.skip, self.done = place, action, call, skip, False

    def install(self, machine, enforcer):
        symbols = enforcer.view.symbols
        place = symbols.address_of(self.place) if isinstance(self.place, str) else self.place(machine, enforcer)

        def act():
            state = enforcer.tasks.get(enforcer.view.current)
            open_call = state.call if state is not None else None
            wanted = open_call is not None and machine.slot[slots.ACTIVE]
            if wanted and not self.done and self.call in (None, open_call.record.name):
                self.skip -= 1
                if self.skip < 0:
                    self.done = True
                    self.action(machine, enforcer)

        machine.cpu.add_code_hook(place, act)


def function_of(machine, enforcer, name):
    symbol = enforcer.view.symbols.text_symbol_at(enforcer.view.symbols.address_of(name))
    size = symbol.end_exclusive - symbol.start
    return decode_function(machine.memory.read_virtual(enforcer.kernel_root, symbol.start, size), symbol.start)


def last_return_of(name):
    def find(machine, enforcer):
        return max(i.vaddr for i in function_of(machine, enforcer, name).by_end.values() if i.flow is Flow.RETURN)

    return find


def write_stack(machine, enforcer, offset, value):
    rsp = to_signed(machine.cpu.regs[registers.RSP])
    machine.memory.write_virtual(enforcer.kernel_root, rsp + offset, value.to_bytes(8, "little"))


def address(enforcer, name, offset=0):
    return enforcer.view.symbols.address_of(name) + offset


def behind_a_call_in(name):
    def find(machine, enforcer):
        found = function_of(machine, enforcer, name).by_end
        return min(end for end, made in found.items() if made.flow is Flow.CALL)

    return find


def attacked(guest, command, attack, policy):
    result = run(guest, command, RunOptions(policy=policy, on_machine=attack.install))
    assert attack.done, "the attack found no place"
    return result


@pytest.mark.parametrize("policy", ["function", "transfer", "callgraph", "function+transfer"])
def test_the_issues_pipeline_is_not_killed(guest, policy):
    command = ["sh", "-c", ISSUE_COMMAND]
    result, plain = run(guest, command, RunOptions(policy=policy)), run(guest, command, RunOptions(isolate="none"))
    assert result.record.kills == []
    assert (result.exit_code, result.stdout, result.stderr) == (0, plain.stdout, plain.stderr)


@pytest.mark.parametrize("policy", ["function", "transfer", "callgraph"])
def test_a_script_of_300_lines_is_not_killed(guest, policy):
    result = run(guest, ["sh", "-c", SCRIPT.read_text()], RunOptions(policy=policy))
    assert result.record.kills == []
    assert b"checks ok" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize("policy", ["function", "transfer", "function+transfer"])
def test_a_cold_part_jumped_into_by_its_function_is_not_killed(guest, policy):
    result = run(guest, ["sh", "-c", DAMAGED_MODULE], RunOptions(policy=policy))
    assert result.record.kills == []
    assert b"invalid module format" in result.stderr
    sci = run(guest, ["sh", "-c", DAMAGED_MODULE], RunOptions(policy="sci"))
    assert sci.record.killed.symbol == "load_module.cold", "the false kill this is about"


def test_transfer_lets_an_exception_be_fixed_up(guest):
    program = "import ctypes, os; c = ctypes.CDLL(None, use_errno=True); r = os.pipe()\n"
    program += "print(c.write(r[1], ctypes.c_void_p(8), 10), ctypes.get_errno())\n"
    program += "print(c.uname(ctypes.c_void_p(8)), ctypes.get_errno())"
    root = rootfs_folder("python3")
    result = run(guest, ["/usr/bin/python3", "-c", program], RunOptions(policy="transfer", rootfs=root))
    assert result.record.kills == []
    assert result.stdout == b"-1 14\n-1 14\n", result.stderr


def test_fixups_are_read_while_the_call_is_isolated(guest):
    seen = []
    watch = At("vfs_write", lambda _m, e: seen.append((e.tenants["tenant"].judge.fixups, e.view.symbols)), "write")
    run(guest, ["echo", "x"], RunOptions(policy="transfer", on_machine=watch.install))
    fixups, symbols = seen[0]
    assert len(fixups) > 100
    assert all(symbols.is_text(vaddr) or vaddr > symbols.text_end for vaddr in fixups)
    inside = [vaddr for vaddr in fixups if symbols.is_text(vaddr)]
    assert "copy_user" in " ".join(symbols.describe(vaddr) for vaddr in inside)


# -- attacks ------------------------------------------------------------------------------------------------
def overwritten_return(name, offset=0, find=None):
    """The return address of `getuid`'s handler goes elsewhere, at the last moment; the true one lies behind it."""

    def overwrite(machine, enforcer):
        target = find(machine, enforcer) if find else address(enforcer, name, offset)
        kept = machine.memory.read_virtual(enforcer.kernel_root, to_signed(machine.cpu.regs[registers.RSP]), 8)
        machine.cpu.regs[registers.RSP] -= 8
        write_stack(machine, enforcer, 8, int.from_bytes(kept, "little"))
        write_stack(machine, enforcer, 0, target)

    return At(last_return_of("__x64_sys_getuid"), overwrite, "getuid")


def test_transfer_kills_a_return_into_the_middle_of_a_function(guest):
    violation = attacked(guest, ["id", "-u"], overwritten_return(*MIDDLE), "transfer").record.killed
    assert (violation.rule, violation.symbol, violation.offset) == ("T3", *MIDDLE)


def test_transfer_kills_a_return_to_a_functions_start_which_sci_grants(guest):
    """The fault-in gadget of the review: a whole function is returned to, and its page is mapped from then on."""
    gadget = "__x64_sys_getpgrp"
    sci = attacked(guest, ["id", "-u"], overwritten_return(gadget), "sci")
    assert sci.record.killed is None
    assert next(c for c in sci.record.calls if c.name == "getuid").ret != 0, "it ran, and its value came back"
    violation = attacked(guest, ["id", "-u"], overwritten_return(gadget), "transfer").record.killed
    assert (violation.call, violation.rule, violation.symbol, violation.offset) == ("getuid", "T3", gadget, 0)


def test_transfer_kills_a_return_behind_a_call_that_was_never_made(guest):
    attack = overwritten_return(None, find=behind_a_call_in("hugetlb_reserve_pages"))
    violation = attacked(guest, ["id", "-u"], attack, "transfer").record.killed
    assert (violation.rule, violation.symbol) == ("T3", "hugetlb_reserve_pages")
    assert "never executed" in violation.reason


@pytest.mark.parametrize("policy", ["transfer", "function", "function+transfer"])
def test_a_jump_to_a_gadget_in_an_unmapped_page_is_killed(guest, policy):
    violation = run(guest, ["id"], RunOptions(policy=policy, on_machine=HijackedCall().install)).record.killed
    assert (violation.symbol, violation.offset) == MIDDLE


def test_transfer_kills_an_indirect_call_into_the_middle_of_a_function(guest):
    def corrupt(machine, enforcer):
        machine.cpu.regs[registers.RAX] = address(enforcer, *MIDDLE)

    attack = At("__x86_indirect_thunk_rax", corrupt, "write")
    violation = attacked(guest, ["echo", "x"], attack, "transfer").record.killed
    assert (violation.call, violation.rule, violation.symbol, violation.offset) == ("write", "T2", *MIDDLE)


FORGED = {
    "a function's start": lambda _m, e: address(e, "do_syscall_64"),
    "behind a call of another function": lambda m, e: behind_a_call_in("do_syscall_64")(m, e),
    "behind a call that never ran": lambda m, e: behind_a_call_in("hugetlb_reserve_pages")(m, e),
    "no text": lambda m, e: m.cpu.regs[registers.RSP],
}


@pytest.mark.parametrize("target", FORGED.values(), ids=FORGED)
def test_transfer_finds_a_forged_frame_at_the_next_fault(guest, target):
    """The return address of `vfs_write` is overwritten while it runs; the next page it needs is a call as compiled."""

    def forge(machine, enforcer):
        write_stack(machine, enforcer, 0, target(machine, enforcer))

    violation = attacked(guest, ["echo", "x"], At("vfs_write", forge, "write"), "transfer").record.killed
    assert (violation.call, violation.rule) == ("write", "T6")


def test_transfer_finds_a_forged_frame_also_where_every_transfer_was_approved_before(guest):
    policy, asked = Counting(), []

    def forge(machine, enforcer):
        asked.append(policy.asked)
        write_stack(machine, enforcer, 0, behind_a_call_in("do_syscall_64")(machine, enforcer))

    script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo x; done >/dev/null"
    attack = At("vfs_write", forge, "write", skip=50)
    violation = attacked(guest, ["sh", "-c", script], attack, policy).record.killed
    assert (violation.call, violation.rule) == ("write", "T6")
    assert policy.asked == asked[0] + 1, "the compiled walk found it, at the first fault"


def test_transfer_finds_a_stack_pivot(guest):
    def pivot(machine, enforcer):
        machine.cpu.regs[registers.RSP] -= 0x100

    violation = attacked(guest, ["echo", "x"], At("vfs_write", pivot, "write"), "transfer").record.killed
    assert violation.rule == "T6"


def test_callgraph_kills_the_handler_of_another_call(guest):
    attack = HijackedCall(target="__x64_sys_getpgrp", offset=0)
    violation = run(guest, ["id"], RunOptions(policy="callgraph", on_machine=attack.install)).record.killed
    assert (violation.call, violation.rule, violation.symbol) == ("getuid", "G", "__x64_sys_getpgrp")
    attack = HijackedCall(target="__x64_sys_getpgrp", offset=0)
    assert run(guest, ["id"], RunOptions(policy="function", on_machine=attack.install)).record.killed is None


POLICY = """\
from thinbox.isolation.verdict import AccessKind, Verdict

class StartsOnly:
    name = "starts-only"
    grants_all_data = True

    def check_access(self, access, call):
        granted = access.kind is not AccessKind.FETCH or bool(access.symbol and access.offset == 0)
        return Verdict(granted=granted, rule="start", reason="only functions' starts")
"""


def test_a_policy_of_ten_lines_runs_from_the_command_line(guest, tmp_path):
    (tmp_path / "mine.py").write_text(POLICY)
    assert len(POLICY.splitlines()) <= 10
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    for spec, status in (("mine:StartsOnly", 137), ("sci", 0), ("sci+mine:StartsOnly", 137)):
        done = subprocess.run(
            [sys.executable, "-m", "thinbox", "run", "-q", "--policy", spec, "--", "true"],
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == status, done.stderr
        assert ("starts-only: only functions' starts" in done.stderr) == (status == 137)


# -- the mechanism ------------------------------------------------------------------------------------------
def test_transfer_is_asked_for_a_small_part_of_the_fetches(guest):
    policy = Counting()
    script = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); cat /proc/self/maps; done >/dev/null"
    totals = run(guest, ["sh", "-c", script], RunOptions(policy=policy)).record.totals
    assert totals["killed"] == 0
    assert policy.asked < totals["code_faults"] / 4


def test_what_was_approved_is_forgotten_when_the_kernel_patches_its_text(guest):
    kept = []

    def install(machine, enforcer):
        kept.append(enforcer.tenants["tenant"].judge)

        def patched():
            enforcer.tenants["tenant"].judge.forget_text()
            assert not enforcer.tenants["tenant"].judge._rows.any()

        machine.cpu.add_code_hook(enforcer.view.symbols.address_of("__text_poke"), patched)

    # A static key is switched: kernel/sched/core.c, sysctl_schedstats.
    script = "echo 1 >/proc/sys/kernel/sched_schedstats; ls / >/dev/null; echo 0 >/proc/sys/kernel/sched_schedstats"
    result = run(guest, ["sh", "-c", script], RunOptions(policy="transfer", on_machine=install))
    assert result.record.kills == []
    assert kept[0].text_version > 2


def test_the_walk_agrees_with_the_kernels_own(guest):
    """A sleeper's /proc/PID/stack is what unwind_next_frame says (kernel/stacktrace.c)."""
    seen = []

    def look(machine, enforcer):
        stack = enforcer.tenants["tenant"].judge.walk(machine.cpu.rip)
        assert stack.complete
        seen.append([enforcer.view.symbols.text_symbol_at(frame.back).name for frame in stack.frames])

    watch = At("do_nanosleep", look)
    script = "sleep 0.5 & sleep 0.1; cat /proc/$!/stack; wait"
    result = run(guest, ["sh", "-c", script], RunOptions(policy="transfer", on_machine=watch.install))
    names = [line.split()[1].split("+")[0] for line in result.stdout.decode().splitlines()]
    assert watch.done and len(names) > 3
    assert seen[0] == names, "the caller of do_nanosleep first, the entry code last"


def test_a_profile_learned_from_a_run_lets_it_run_again_and_nothing_else(guest, tmp_path):
    command = ["sh", "-c", "ls / | wc -l"]
    record = run(guest, command, RunOptions(keep_faults=True)).record
    path = tmp_path / "corpus.json"
    path.write_bytes(profile_of([record], guest.facts.symbols))
    again = run(guest, command, RunOptions(policy=f"profile:{path}"))
    assert (again.record.kills, again.exit_code) == ([], 0)
    policy = Profile.from_json(path.read_bytes())
    other = run(guest, ["mkdir", "/tmp/x"], RunOptions(policy=policy)).record.killed
    assert (other.call, other.rule) == ("mkdir", "P")
    assert policy.corpus_sha256[:12] in other.reason and policy.corpus_sha256[:12] in other.policy
    joined = run(guest, command, RunOptions(policy=f"profile:{path}+transfer"))
    assert (joined.record.kills, joined.exit_code) == ([], 0)


def test_profiles_of_other_kernels_and_records_without_faults_are_refused(guest, tmp_path):
    record = run(guest, ["true"], RunOptions()).record
    with pytest.raises(InputError, match="keep_faults"):
        profile_of([record], guest.facts.symbols)
    path = tmp_path / "other.json"
    path.write_text('{"schema": "thinbox.profile/1", "by": "pages", "kernel": {"sha256": "00"}, "calls": {}}')
    with pytest.raises(InputError, match="another kernel"):
        run(guest, ["true"], RunOptions(policy=f"sci+profile:{path}"))
    with pytest.raises(InputError, match="cannot read"):
        run(guest, ["true"], RunOptions(policy="profile:/nosuch"))


def test_the_graph_holds_every_direct_call_capstone_sees(guest):
    session = Session.alone(guest, ["true"], RunOptions())
    enforcer = session.enforcer
    graph = load_live_graph(session.view, session.machine.memory, tuple(enforcer.sites.entries))
    edges = set(zip(graph.froms.tolist(), graph.tos.tolist(), strict=True))
    seen = 0
    for name in ("vfs_write", "do_sys_openat2", "load_module", "do_exit", "kmem_cache_alloc", "x64_sys_call"):
        function = function_of(session.machine, enforcer, name)
        own = graph.index_of(function.start)
        targets = {i.target for i in function.by_end.values() if i.flow is Flow.CALL} | function.leaves
        for target in targets:
            assert graph.index_of(target) == own or (own, graph.index_of(target)) in edges
            seen += 1
    assert seen > 500


def test_the_graph_is_cached(guest):
    session = Session.alone(guest, ["true"], RunOptions())
    arguments = (session.view, session.machine.memory, tuple(session.enforcer.sites.entries))
    first, second = load_live_graph(*arguments), load_live_graph(*arguments)
    assert (first.froms == second.froms).all() and (first.tos == second.tos).all()
    assert first.reachable_count(39) == second.reachable_count(39) < len(first.starts)
    assert load_policy("callgraph").needs_graph
