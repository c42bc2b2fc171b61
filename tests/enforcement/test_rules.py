"""The nine rules of SCI (docs/rules.md) on a real kernel; each test fails without its rule."""

import numpy as np
import pytest
from thinbox import paging
from thinbox.address import to_signed
from thinbox.attacks.hijack import HijackedCall
from thinbox.isolation import pagetable
from thinbox.isolation.verdict import Verdict
from thinbox.machine import cpu as registers
from thinbox.machine import slots
from thinbox.session.session import RunOptions, run
from thinbox.enforcement.shootdown import Shootdown

BUSY = "i=0; while [ $i -lt 30 ]; do i=$((i+1)); cat /proc/self/maps; done | wc -l"
MIXED = "sleep 0.05 & (echo a; sleep 0.02; echo b) | cat; wait; mkfifo /tmp/f; (sleep 0.01; echo x >/tmp/f) & cat /tmp/f; wait"
COMPARED = paging.FRAME_MASK | paging.WRITABLE | paging.USER | paging.NO_EXECUTE


class GrantAll:
    name = "grant-all"
    grants_all_data = True

    def check_access(self, _access, _call):
        return Verdict(granted=True, rule="test", reason="everything")


class Watch:
    """Calls `check(machine, enforcer)` at kernel functions while the tenant runs."""

    def __init__(self, *functions, check):
        self.functions, self.check, self.count = functions, check, 0

    def install(self, machine, enforcer):
        self.machine, self.enforcer = machine, enforcer
        for name in self.functions:
            address = name if isinstance(name, int) else enforcer.view.symbols.address_of(name)
            machine.cpu.add_code_hook(address, self._at)

    def _at(self):
        self.count += bool(self.check(self.machine, self.enforcer))


def pages_of(machine, root):
    """Every page mapped in the kernel half of an SCI table: address -> entry, and the table pages."""
    words, found, tables = machine.memory.words, {}, set()

    def walk(table, shift, vaddr):
        tables.add(table)
        for i in range(256 if shift == 39 else 0, 512):
            entry = words[table // 8 + i]
            if entry & 1:
                here = vaddr | i << shift
                if shift == 12:
                    found[here - (1 << 48)] = entry
                else:
                    walk(entry & paging.FRAME_MASK, shift - 9, here)

    walk(root, 39, 0)
    return found, tables


def kernel_tables(machine, root):
    words, tables = machine.memory.words, set()

    def walk(table, shift):
        if table in tables or table + 4096 > machine.memory.total_bytes:
            return
        tables.add(table)
        for i in range(256 if shift == 39 else 0, 512):
            entry = words[table // 8 + i]
            if entry & 1 and shift > 12 and not (entry & paging.LARGE and shift < 39):
                walk(entry & paging.FRAME_MASK, shift - 9)

    walk(root & paging.FRAME_MASK, 39)
    return tables


def baseline_of(enforcer, state, kernel_root):
    memory, sites = enforcer.memory, enforcer.sites
    expected = {}
    ranges = [*sites.entry_areas, sites.entry_text, (state.stack, state.stack + enforcer.view.stack_bytes)]
    ranges += [(entry, entry + 1) for entry in sites.entries]
    for start, end in ranges:
        for vaddr in range(start & ~0xFFF, end, 4096):
            leaf = paging.walk_leaf(memory.words, memory.total_bytes, kernel_root, to_signed(vaddr))
            if leaf:
                expected[to_signed(vaddr)] = leaf
    return expected


def current_call(enforcer):
    state = enforcer.tasks.get(enforcer.view.current)
    return state if state is not None and state.call is not None and state.call.isolated else None


def test_r1_at_entry_the_table_holds_the_baseline_and_nothing_else(guest):
    def check(machine, enforcer):
        state = current_call(enforcer)
        assert machine.slot[slots.ACTIVE]
        found, _tables = pages_of(machine, state.root)
        expected = baseline_of(enforcer, state, machine.slot[slots.KERNEL_ROOT])
        assert set(found) == set(expected)
        assert all((found[v] ^ expected[v]) & COMPARED == 0 for v in found)
        user = slice(0, 256)
        sci, kernel = machine.slot[slots.SCI_ROOT] >> 3, (machine.slot[slots.KERNEL_ROOT] & paging.FRAME_MASK) >> 3
        assert list(machine.memory.words[sci:][user]) == list(machine.memory.words[kernel:][user])
        return True

    watch = Watch("do_syscall_64", check=lambda m, e: current_call(e) and check(m, e))
    assert run(guest, ["sh", "-c", "ls /; id"], RunOptions(on_machine=watch.install)).exit_code == 0
    assert watch.count > 50


def test_r2_no_table_page_of_the_kernel_half_is_reachable_from_two_roots(guest):
    def check(machine, enforcer):
        roots = [state.root for state in enforcer.tasks.values() if state.root]
        sets = [pages_of(machine, root)[1] for root in roots]
        kernel = kernel_tables(machine, machine.slot[slots.KERNEL_ROOT])
        assert all(kernel.isdisjoint(tables) for tables in sets)
        assert sum(map(len, sets)) == len(set().union(*sets))
        return len(roots) > 1

    watch = Watch("__x64_sys_wait4", check=lambda m, e: current_call(e) and check(m, e))
    run(guest, ["sh", "-c", "(echo a; sleep 0.01) | cat; sh -c 'true | true'"], RunOptions(on_machine=watch.install))
    assert watch.count > 0


def test_r3_a_table_is_made_at_the_first_isolated_call_and_not_before(guest):
    none = run(guest, ["sh", "-c", "id -u; ls /"], RunOptions(isolate="nanosleep"))
    assert none.record.totals["tables_made"] == 0
    one = run(guest, ["sh", "-c", "id -u; ls /"], RunOptions(isolate="getdents64"))
    assert one.record.totals["tables_made"] == 1, "ls alone reads a directory"
    assert {call.name for call in one.record.calls if call.isolated} == {"getdents64"}


def test_r4_calls_run_on_the_table_and_user_code_and_interrupts_do_not(guest):
    inside = Watch("__x64_sys_read", check=lambda m, e: current_call(e) and m.cpu.cr3 == current_call(e).root)

    def interrupted(machine, enforcer):
        assert not machine.slot[slots.ACTIVE]
        state = enforcer.tasks.get(enforcer.view.current)
        assert state is None or machine.cpu.cr3 != state.root
        return machine.slot[slots.RESUME_RSP] != 0

    irq = Watch("handle_irq_event", check=interrupted)
    back = Watch("__x64_sys_read", check=lambda m, e: irq.count)

    def install(machine, enforcer):
        for watch in (inside, irq, back):
            watch.install(machine, enforcer)

    command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=8M", "count=8"]
    result = run(guest, command, RunOptions(on_machine=install))
    assert result.exit_code == 0
    assert inside.count == 8
    assert irq.count > 0, "no interrupt arrived inside an isolated call"
    assert back.count > 0
    assert result.stdout == run(guest, command, RunOptions(isolate="none")).stdout


def test_r4_a_fault_of_copy_to_user_goes_to_the_guest_and_comes_back(guest):
    nested = Watch("exc_page_fault", check=lambda m, _e: m.slot[slots.RESUME_RSP] != 0 and not m.slot[slots.ACTIVE])
    command = ["dd", "if=/dev/zero", "of=/tmp/zeros", "bs=1M", "count=2"]
    result = run(guest, command, RunOptions(on_machine=nested.install))
    assert result.exit_code == 0
    assert nested.count > 100, "each page of a new buffer is missing once"
    assert result.record.killed is None


def test_r6_a_jump_into_the_middle_of_a_function_is_killed(guest):
    bug = HijackedCall()
    result = run(guest, ["id"], RunOptions(on_machine=bug.install))
    violation = result.record.killed
    assert result.exit_code == 137
    assert (violation.call, violation.symbol, violation.offset) == ("getuid", "hugetlb_reserve_pages", 0xC5)
    assert violation.rule == "6b"
    plain = run(guest, ["id"], RunOptions(isolate="none", on_machine=HijackedCall().install))
    assert plain.record.killed is None
    assert "hugetlb_reserve_pages+0xc5" in plain.console, "the guest's own oops"


def test_r6_policy_patch_kills_a_function_of_three_pages(guest):
    result = run(guest, ["sh", "-c", "true | true"], RunOptions(policy="patch"))
    assert result.exit_code == 137
    assert result.record.killed.policy == "patch"
    assert result.record.killed.rule in ("6b (posted)", "limits (posted)")


def test_r7_what_a_call_was_granted_is_forgotten_when_it_ends(guest):
    def check(machine, enforcer):
        state = enforcer.tasks.get(enforcer.view.current)
        if state is None or not state.root:
            return False
        found, _tables = pages_of(machine, state.root)
        expected = baseline_of(enforcer, state, enforcer.view.kernel_root)
        assert set(found) == set(expected)
        return True

    class AtReturn(Watch):
        def install(self, machine, enforcer):
            self.functions = enforcer.sites.returns
            super().install(machine, enforcer)

    watch = AtReturn(check=check)
    run(guest, ["sh", "-c", "ls -l /; cat /proc/self/status | wc -l"], RunOptions(on_machine=watch.install))
    assert watch.count > 50


@pytest.mark.parametrize("attack", [None, HijackedCall])
def test_r8_all_table_pages_are_freed_after_exit_killed_or_not(guest, attack):
    kept = []

    def install(machine, enforcer):
        kept.append(enforcer)
        if attack:
            attack(skip=1).install(machine, enforcer)

    script = "sh -c 'exec ls /' | cat; (sleep 0.01 &) ; id -u; kill -9 $$"
    totals = run(guest, ["sh", "-c", script], RunOptions(on_machine=install)).record.totals
    assert totals["tables_made"] == totals["tables_freed"] > 3
    assert totals["table_pages_made"] == totals["table_pages_freed"] > 100
    pool = kept[0].tables._pool
    assert pool[0] == len(pool) - 1
    assert len(np.unique(pool[1:])) == len(pool) - 1
    assert totals["killed"] == bool(attack)


def test_r8_a_table_is_not_freed_before_its_task_is_dead(guest):
    def check(_machine, enforcer):
        record = enforcer.tenants["tenant"].record
        made, freed = record.tables_made, record.tables_freed
        assert made - freed == sum(bool(state.root) for state in enforcer.tasks.values())
        return True

    watch = Watch("__x64_sys_exit_group", "do_exit", check=check)
    run(guest, ["sh", "-c", "true | true; ls / | cat"], RunOptions(on_machine=watch.install))
    assert watch.count > 3


def test_r9_nobody_runs_on_a_foreign_table_and_sleepers_are_isolated_again(guest):
    seen = {"sleeper": 0, "idle": 0}

    def check(machine, enforcer):
        roots = {state.root: task for task, state in enforcer.tasks.items() if state.root}
        owner = roots.get(machine.cpu.cr3)
        assert owner is None or owner == enforcer.view.current, "a task runs on another's table"
        assert bool(machine.slot[slots.ACTIVE]) == (owner is not None)
        state = current_call(enforcer)
        if state is not None and state.call.slept and owner is not None:
            seen["sleeper"] += 1
        if enforcer.view.current not in enforcer.tasks:
            seen["idle"] += 1
        return True

    watch = Watch("_raw_spin_lock", "_raw_spin_lock_irqsave", "kmem_cache_free", "schedule", check=check)
    result = run(guest, ["sh", "-c", MIXED], RunOptions(on_machine=watch.install))
    assert result.exit_code == 0
    assert result.stdout == b"a\nb\nx\n"
    assert seen["sleeper"] > 50
    assert seen["idle"] > 50


def test_r9_a_fork_child_starts_without_a_table(guest):
    def check(machine, enforcer):
        state = enforcer.tasks.get(enforcer.view.current)
        if state is not None:
            assert state.root == 0
            assert not machine.slot[slots.ACTIVE]
        return state is not None

    watch = Watch("schedule_tail", check=check)
    run(guest, ["sh", "-c", "true | true; (true)"], RunOptions(on_machine=watch.install))
    assert watch.count >= 2


def test_r9_execve_resyncs_the_user_half(guest):
    def check(machine, enforcer):
        if not machine.slot[slots.ACTIVE]:
            return False
        sci, kernel = machine.slot[slots.SCI_ROOT] >> 3, (machine.slot[slots.KERNEL_ROOT] & paging.FRAME_MASK) >> 3
        assert list(machine.memory.words[sci : sci + 256]) == list(machine.memory.words[kernel : kernel + 256])
        roots.add(machine.slot[slots.KERNEL_ROOT])
        return True

    roots = set()
    watch = Watch("begin_new_exec", "setup_arg_pages", "start_thread", check=check)
    run(guest, ["sh", "-c", "exec ls /"], RunOptions(on_machine=watch.install))
    assert watch.count > 0
    assert len(roots) > 1, "execve changed the kernel's table inside the call"


def test_r9_a_mapping_torn_down_in_a_call_does_not_survive_in_the_table(guest):
    gone = []

    def check(machine, enforcer):
        if not machine.slot[slots.ACTIVE]:
            return False
        state = current_call(enforcer)
        start, end = (to_signed(machine.cpu.regs[r]) for r in (registers.RDI, registers.RSI))
        words, total = machine.memory.words, machine.memory.total_bytes
        for vaddr in range(start, end, 4096):
            index = paging.entry_index(words, total, state.root, vaddr)
            assert index < 0 or not words[index] & paging.PRESENT
        gone.append((state.call.record.seq, start, end))
        return True

    watch = Watch("__vunmap_range_noflush", check=check)
    # `sci` kills this call in load_module.cold, before it comes to free anything.
    options = RunOptions(on_machine=watch.install, keep_faults=True, policy=GrantAll())
    script = "head -c 300000 /dev/zero >/tmp/module; insmod /tmp/module"
    result = run(guest, ["sh", "-c", script], options)
    granted = [(fault.seq, to_signed(fault.vaddr)) for fault in result.record.faults]
    assert any(seq == s and start <= v < end for s, start, end in gone for seq, v in granted), (
        "no granted page was torn down"
    )


def test_user_half_of_the_kernels_table_is_not_executable_in_ring_0(guest):
    def check(machine, enforcer):
        words = machine.memory.words[machine.slot[slots.SCI_ROOT] >> 3 :][:256]
        present = words[(words & paging.PRESENT) != 0]
        assert len(present)
        assert (present < 0).all(), "NX is the sign bit"
        return True

    watch = Watch("__x64_sys_brk", check=lambda m, e: current_call(e) and check(m, e))
    run(guest, ["true"], RunOptions(on_machine=watch.install))
    assert watch.count
    assert pagetable.KERNEL_HALF_FIRST == 256


@pytest.mark.parametrize("stale", [1 << 13, paging.NO_EXECUTE], ids=["another frame", "execute taken away"])
def test_r9_a_flush_drops_what_the_kernels_table_no_longer_maps_alike(guest, stale):
    """Make one clone differ from the kernel's page, as if the kernel had changed its own, and flush."""

    def check(machine, enforcer):
        state = current_call(enforcer)
        if state is None or watch.count:
            return False
        enforcer.grants.drain(state, state.call)
        rows = [row for chunk in state.call.rows for row in chunk.tolist()]
        words = machine.memory.words
        candidates = [row[3] for row in rows if not row[2] & paging.FAULT_FETCH and words[row[3]] < 0]
        words[candidates[0]] ^= stale
        before = [bool(words[index]) for index in candidates]
        enforcer._drop(Shootdown(enforcer.target, enforcer.task_list).of_changes)
        assert words[candidates[0]] == 0
        kernel = [paging.walk_leaf(machine.memory.words, 1 << 40, enforcer.kernel_root, row[0]) for row in rows]
        assert all(kernel)
        assert sum(bool(words[index]) for index in set(candidates)) >= sum(before) // 2, "the rest stays"
        return True

    watch = Watch("__x64_sys_newfstatat", "vfs_statx", check=check)
    assert run(guest, ["ls", "-l", "/"], RunOptions(on_machine=watch.install)).exit_code == 0
    assert watch.count == 1
