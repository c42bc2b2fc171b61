"""What coverage says of a real kernel's calls; each test fails without the rule it is named after."""

import json
import subprocess
import sys

import pytest
from thinbox.address import to_signed
from thinbox.attacks.hijack import HijackedCall
from thinbox.coverage.published import PUBLISHED, render_comparison
from thinbox.machine import coverage_slots, slots
from thinbox.session.session import RunOptions, Session, run

MIXED = "echo hello | wc -c; ls -l /; cat /proc/self/status; uname -a; sleep 0.02"


def covered(guest, command, **options):
    return run(guest, command, RunOptions(coverage=True, **options)).record


@pytest.fixture(scope="module")
def isolated(guest):
    return covered(guest, ["sh", "-c", MIXED])


@pytest.fixture(scope="module")
def plain(guest):
    return covered(guest, ["sh", "-c", MIXED], isolate="none")


def test_getpid_executes_its_handler_and_nothing_of_open(isolated):
    entry = isolated.coverage.named("getpid")
    found = set(entry.functions)
    assert {"do_syscall_64", "__x64_sys_getpid", "__task_pid_nr_ns"} <= found
    assert found.isdisjoint({"do_sys_openat2", "do_filp_open", "vfs_read", "schedule", "__schedule"})
    assert len(found) < 30
    assert any("do_filp_open" in isolated.coverage.named(name).functions for name in ("openat", "open"))


def test_a_call_has_neither_the_entry_code_before_it_nor_the_exit_code_behind_it(isolated, guest):
    # The block behind the call of do_syscall_64 is announced before recording can end.
    symbols = guest.facts.symbols
    entry = symbols.text_symbol_at(symbols.address_of("entry_SYSCALL_64")).name
    after = symbols.text_symbol_at(symbols.address_of("entry_SYSCALL_64_after_hwframe")).name
    for name in ("getpid", "read", "write"):
        executed = {use.name for use in isolated.coverage.named(name).executed}
        assert executed.isdisjoint({entry, after, "syscall_return_via_sysret"})


def test_isolated_and_not_a_call_enters_the_same_functions(isolated, plain):
    assert isolated.coverage.functions == plain.coverage.functions
    pairs = zip(isolated.calls, plain.calls, strict=True)
    assert all(a.coverage.functions == b.coverage.functions for a, b in pairs)
    for entry in isolated.coverage.calls:
        other = plain.coverage.named(entry.name)
        assert entry.entered == other.entered
        assert entry.executed_pages == other.executed_pages


def test_data_pages_are_known_of_isolated_calls_only(isolated, plain):
    for call in isolated.calls:
        # A page granted to read may be written later without a fault, and each data fault grants one page.
        assert 0 < call.coverage.data_pages <= call.data_faults
        assert call.coverage.written_pages <= call.coverage.data_pages
    assert any(0 < c.coverage.written_pages < c.coverage.data_pages for c in isolated.calls)
    assert all(call.coverage.data_pages is None for call in plain.calls)
    assert all(entry.to_json()["data_pages"] is None for entry in plain.coverage.calls)


def test_a_page_that_is_first_read_and_then_written_is_a_written_page(guest):
    record = covered(guest, ["sh", "-c", MIXED], keep_faults=True)
    writes = {}
    for one in record.faults:
        if one.kind == "write":
            writes.setdefault(one.seq, set()).add(one.vaddr & ~0xFFF)
    by_fault = {call.seq: len(writes.get(call.seq, ())) for call in record.calls}
    assert all(call.coverage.written_pages >= by_fault[call.seq] for call in record.calls)
    assert any(call.coverage.written_pages > by_fault[call.seq] for call in record.calls)


def test_the_workloads_profile_is_the_union_of_its_calls(isolated):
    found = isolated.coverage
    assert {use.vaddr for use in found.entered} == {use.vaddr for entry in found.calls for use in entry.entered}
    assert found.hap == len({use.vaddr for use in found.entered}) > max(len(e.entered) for e in found.calls)
    assert sum(entry.calls for entry in found.calls) == len(isolated.calls)
    assert 0 < found.traceable < found.hap
    for entry in found.calls:
        assert all(1 <= use.calls <= entry.calls for use in entry.entered)


def test_one_call_leaves_no_mark_for_the_next(isolated):
    # Every call enters do_syscall_64 and its common part; a mark left over would hide them from later calls.
    for entry in isolated.coverage.calls:
        always = {use.name for use in entry.entered if use.calls == entry.calls}
        assert {"do_syscall_64", "syscall_enter_from_user_mode", "x64_sys_call"} <= always
    reads = [call for call in isolated.calls if call.name == "getpid" or call.name == "getuid"]
    assert all(call.coverage.functions < 40 for call in reads)


def test_two_runs_give_the_same_coverage_to_the_byte(guest, isolated):
    again = covered(guest, ["sh", "-c", MIXED])
    assert json.dumps(again.coverage.to_json()) == json.dumps(isolated.coverage.to_json())


@pytest.mark.parametrize("isolate", ["all", "none"])
def test_a_call_that_sleeps_is_not_charged_for_other_tasks(guest, isolate):
    # While the shell waits in wait4, its child reads /proc, which no wait4 does by itself.
    record = covered(guest, ["sh", "-c", "cat /proc/self/maps; echo"], isolate=isolate)
    child = "show_map_vma"
    assert child in record.coverage.named("read").functions
    waiting = record.coverage.named("wait4")
    assert "schedule" in waiting.functions
    assert child not in waiting.functions
    # Nor for the switch itself; it goes on behind the start of finish_task_switch.
    assert "__switch_to_asm" not in waiting.functions
    assert "__switch_to" not in waiting.functions
    assert not any(name.startswith("finish_task_switch") for name in waiting.functions)
    assert any(use.name.startswith("finish_task_switch") for use in waiting.executed)


@pytest.mark.parametrize("isolate", ["all", "none"])
def test_interrupts_inside_a_call_are_kept_apart(guest, isolate):
    # dd runs long inside its calls, so that the timer comes there.
    record = covered(guest, ["dd", "if=/dev/zero", "of=/dev/null", "bs=16M", "count=8"], isolate=isolate)
    found = record.coverage
    timer = {"timer_interrupt", "update_process_times", "asm_common_interrupt", "common_interrupt"}
    assert timer & set(found.interrupts)
    assert "update_process_times" in found.interrupts
    assert timer.isdisjoint(found.functions)
    reading = found.named("read")
    assert any(
        name.startswith(("clear_user", "__clear_user", "read_zero", "iov_iter_zero")) for name in reading.functions
    )


def test_a_killed_call_is_covered_up_to_the_kill_and_not_its_death(guest):
    record = covered(guest, ["sh", "-c", "id -u; echo"], on_machine=HijackedCall(skip=1).install)
    assert record.killed.call == "getuid"
    killed = record.coverage.named("getuid")
    assert "do_syscall_64" in killed.functions
    assert not {"do_exit", "make_task_dead"} & set(killed.functions)


def test_a_run_without_coverage_pays_nothing_and_says_none(guest):
    session = Session.alone(guest, ["true"], RunOptions())
    assert session.machine.slot[slots.TRACK_USE] == 0
    record = session.run()["tenant"].record
    assert record.coverage is None
    assert all(call.coverage is None for call in record.calls)
    assert record.to_json()["coverage"] is None


def test_coverage_changes_nothing_the_tenant_or_the_record_sees(guest, isolated):
    bare = run(guest, ["sh", "-c", MIXED]).record
    for with_it, without in zip(isolated.calls, bare.calls, strict=True):
        assert (with_it.name, with_it.ret, with_it.args) == (without.name, without.ret, without.args)
        assert (with_it.code_faults, with_it.data_faults) == (without.code_faults, without.data_faults)
    assert isolated.virtual_ns == bare.virtual_ns


def test_a_block_that_crosses_a_page_end_counts_for_both_pages(guest):
    session = Session.alone(guest, ["sh", "-c", MIXED], RunOptions(coverage=True))
    record = session.run()["tenant"].record
    recorder = session.recorder
    count = recorder._cov[coverage_slots.BLOCK_COUNT]
    start = to_signed(session.view.symbols.text_start)
    executed = {use.vaddr for entry in record.coverage.calls for use in entry.executed_pages}
    crossing = 0
    irq = set(recorder._irq_log[: recorder._cov[coverage_slots.IRQ_COUNT]].tolist())
    for number, block in enumerate(recorder._blocks[:count].tolist()):
        first = start + (block >> 16)
        last = first + (block & 0xFFFF) - 1
        if first >> 12 != last >> 12 and number not in irq:
            crossing += 1
            assert {(first & ~0xFFF) % (1 << 64), (last & ~0xFFF) % (1 << 64)} <= executed
    assert crossing > 0


def test_a_full_table_of_blocks_is_said(guest, monkeypatch):
    monkeypatch.setattr("thinbox.coverage.recorder.CAPACITY", 500)
    found = covered(guest, ["true"]).coverage
    assert found.lost_blocks > 0
    assert found.totals["lost_blocks"] == found.lost_blocks


def test_the_comparison_names_every_published_figure_and_its_source(isolated):
    text = render_comparison({"a pipeline": isolated.coverage})
    for figure in PUBLISHED:
        assert f"{figure.sandbox} [" in text
        assert f"about {figure.functions} |" in text
        assert figure.source in text
    assert f"| a pipeline | none (thinbox) | {isolated.coverage.hap:,} |" in text
    assert "ftrace" in text.split("What differs in method:")[1]


@pytest.mark.guest
def test_the_command_writes_the_coverage_and_the_summary_says_it(tmp_path):
    target, folder = tmp_path / "coverage.json", tmp_path / "record"
    command = [sys.executable, "-m", "thinbox", "run", "--coverage", str(target), "--record", str(folder), "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    data = json.loads(target.read_text())
    assert data["schema"] == "thinbox.coverage/1"
    assert data["totals"]["hap"] == len(data["functions"])
    (exits,) = [entry for entry in data["calls"] if entry["name"] == "exit_group"]
    assert exits["functions_entered"] == len(exits["functions"]) > 100
    assert {"do_exit", "exit_mm"} & set(exits["functions"])
    assert exits["executed_pages"]
    assert exits["written_pages"]
    assert f"coverage: {data['totals']['hap']:,} kernel functions entered" in done.stderr
    from pyarrow import parquet

    table = parquet.read_table(folder / "coverage.parquet")
    assert table.schema.metadata[b"schema"] == b"thinbox.coverage_uses/1"
    rows = [row for row in table.to_pylist() if row["call"] == "exit_group" and row["kind"] == "entered"]
    assert [row["symbol"] for row in rows] == exits["functions"]
