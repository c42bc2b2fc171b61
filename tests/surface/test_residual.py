"""What a call leaves to an exploit, on the live kernel."""

import dataclasses
import json
import subprocess
import sys

import pytest
from thinbox.address import PAGE_BYTES, page_start
from thinbox.isolation.policies.sci import Sci
from thinbox.isolation.verdict import AccessKind, Verdict
from thinbox.records.run import CallRecord, FaultRecord, RunRecord
from thinbox.session.session import RunOptions, Session
from thinbox.surface.residual import Grants, Surface, grants_of
from thinbox.surface.run_surface import MEASURES, load_surface, render_surface, tabulate

SCRIPT = ["sh", "-c", "echo hi > /tmp/x; mkdir /tmp/d"]
NOTHING = Grants()


class OneMore:
    """Grants the start of one function, and no other."""

    name = "one-more"
    grants_all_data = True
    wanted = "vfs_write"

    def check_access(self, access, call):
        granted = access.symbol == self.wanted and access.offset == 0 and not call.is_executable(access.vaddr)
        return Verdict(granted=granted, rule="one", reason="a test", cacheable=False)


def measured(guest, policy="sci", isolate="all", command=SCRIPT):
    session = Session.alone(guest, command, RunOptions(policy=policy, isolate=isolate, keep_faults=True))
    surface = load_surface(session)
    result = session.run()["tenant"]
    assert result.exit_code == 0
    return result.record, surface


@pytest.fixture(scope="module")
def sci(guest):
    return measured(guest)


def test_a_fault_tells_whether_its_page_may_be_written(sci):
    record, _surface = sci
    kinds = {(fault.kind, fault.writable) for fault in record.faults}
    assert ("write", True) in kinds
    assert ("read", True) in kinds, "a grant on a read keeps the kernel's protection"
    assert ("read", False) in kinds, "kernel constants"
    assert ("write", False) not in kinds
    assert ("fetch", True) not in kinds, "the kernel maps no page writable and executable"


def test_grants_are_gathered_by_call_and_page():
    faults = [
        FaultRecord(3, 0x5010, 0, "fetch", "", writable=False),
        FaultRecord(3, 0x5FF0, 0, "fetch", "", writable=False),
        FaultRecord(3, 0x7000, 0, "read", "", writable=True),
        FaultRecord(3, 0x8000, 0, "write", "", writable=True),
        FaultRecord(4, 0x5000, 0, "read", "", writable=False),
    ]
    assert grants_of(faults) == {
        3: Grants(frozenset({0x5000}), frozenset({0x7000, 0x8000}), frozenset({0x7000, 0x8000})),
        4: Grants(frozenset(), frozenset({0x5000}), frozenset()),
    }
    assert grants_of([]) == {}


def test_getpid_leaves_something_and_far_less_than_the_whole(sci):
    record, surface = sci
    (seq,) = (call.seq for call in record.calls if call.name == "getpid")
    left = surface.measure_call(grants_of(record.faults)[seq])
    for measure, take in MEASURES.items():
        if measure != "functions_startable":
            assert 0 < take(left) < take(surface.whole), measure
    assert 0 < left.share_of(surface.whole) < 0.02
    assert left.functions_startable == surface.whole.functions_startable, "rule 6a grants every function's start"
    counts = left.gadgets
    assert counts.total == counts.returns + counts.jumps + counts.calls + counts.system


def test_the_baseline_counts_for_every_call(sci):
    _record, surface = sci
    left = surface.measure_call(NOTHING)
    assert left.code_pages == len(surface.baseline.code) > 0
    symbols = surface._symbols
    assert page_start(symbols.address_of("do_syscall_64")) in surface.baseline.code
    assert page_start(symbols.address_of("entry_SYSCALL_64")) in surface.baseline.code
    assert left.gadgets.total > 0
    assert left.writable_pages >= 4, "the stack"
    assert left.data_pages >= left.writable_pages


def test_a_page_more_adds_what_is_in_it(sci):
    _record, surface = sci
    symbols = surface._symbols
    page = page_start(symbols.address_of("vfs_write"))
    before = surface.measure_call(NOTHING)
    after = surface.measure_call(Grants(code=frozenset({page})))
    inside = [start for start in symbols.text_starts if page <= start < page + PAGE_BYTES]
    assert after.code_pages == before.code_pages + 1
    assert after.functions_in_pages == before.functions_in_pages + len(inside) > before.functions_in_pages
    assert after.gadgets.total == before.gadgets.total + surface.gadgets.in_pages([page]).total
    data = surface.measure_call(Grants(data=frozenset({page})))
    assert (data.code_pages, data.gadgets, data.data_pages) == (
        before.code_pages,
        before.gadgets,
        before.data_pages + 1,
    )


def test_all_code_pages_are_the_whole(sci):
    _record, surface = sci
    pages = frozenset(page for start, end in surface.gadgets.spans for page in range(start, end, PAGE_BYTES))
    left, whole = surface.measure_call(Grants(code=pages)), surface.whole
    assert (left.code_pages, left.gadgets, left.functions_in_pages) == (
        whole.code_pages,
        whole.gadgets,
        whole.functions_in_pages,
    )
    assert left.share_of(whole) == 1.0


def test_startable_functions_are_those_the_policy_would_grant(guest, sci):
    _record, surface = sci
    picky = Surface(surface.gadgets, surface._symbols, surface.baseline, OneMore(), 1, 1)
    left = picky.measure_call(NOTHING)
    assert left.functions_startable == left.functions_in_pages + 1
    page = page_start(surface._symbols.address_of("vfs_write"))
    there = picky.measure_call(Grants(code=frozenset({page})))
    assert there.functions_startable == there.functions_in_pages > left.functions_in_pages


def test_a_policy_is_asked_with_fresh_notes_about_starts_only(sci):
    _record, surface = sci
    asked = []

    class Watch(Sci):
        def check_access(self, access, call):
            assert access.kind is AccessKind.FETCH
            assert access.offset == 0
            assert call.notes == {}
            call.notes["seen"] = True
            asked.append((access.vaddr, call.granted_pages))
            return super().check_access(access, call)

    watched = Surface(surface.gadgets, surface._symbols, surface.baseline, Watch(), 1, 1)
    first = watched.measure_call(Grants(data=frozenset({0x1000})))
    count = len(asked)
    assert count == first.functions_startable - first.functions_in_pages
    assert {granted for _vaddr, granted in asked} == {1}
    watched.measure_call(Grants(data=frozenset({0x2000})))
    assert len(asked) == count, "a cacheable verdict is not asked for twice"


def test_two_runs_measure_the_same(guest, sci):
    record, surface = sci
    one = tabulate(record, surface)
    other = tabulate(*measured(guest))
    assert one.to_json() == other.to_json()


def test_the_table_has_every_name_with_median_and_most(sci):
    record, surface = sci
    found = tabulate(record, surface)
    assert [call.name for call in found.calls] == sorted({call.name for call in record.calls})
    assert sum(call.times for call in found.calls) == len(record.calls) == found.all_calls.times
    for call in (*found.calls, found.all_calls):
        assert call.isolated == call.times
        for measure in MEASURES:
            assert 0 < call.median[measure] <= call.most[measure] <= found.all_calls.most[measure]
    grants = grants_of(record.faults)
    opens = [surface.measure_call(grants[c.seq]).gadgets.total for c in record.calls if c.name == "openat"]
    (row,) = (call for call in found.calls if call.name == "openat")
    assert row.most["gadgets"] == max(opens)
    assert row.median["gadgets"] == sorted(opens)[(len(opens) - 1) // 2]
    lines = render_surface(found).splitlines()
    assert len(lines) == 2
    assert "execve" in lines[0]


def test_an_unisolated_call_has_the_whole_kernel(guest):
    record, surface = measured(guest, isolate="mkdir")
    found = tabulate(record, surface)
    by_name = {call.name: call for call in found.calls}
    assert by_name["mkdir"].most["gadgets"] < surface.whole.gadgets.total / 10
    other = by_name["execve"]
    assert other.isolated == 0
    assert {m: take(surface.whole) for m, take in MEASURES.items()} == other.median == other.most


def test_a_run_without_calls_has_a_surface_too(sci):
    _record, surface = sci
    empty = RunRecord("6.1", "", "sci", ("true",))
    found = tabulate(empty, surface)
    assert found.to_json()["all"] is None
    assert len(render_surface(found).splitlines()) == 2
    lone = RunRecord("6.1", "", "sci", ("true",), calls=[CallRecord(0, "tenant", 1, 39, "getpid", (), isolated=True)])
    assert tabulate(lone, surface).calls[0].most["code_pages"] == len(surface.baseline.code)


@pytest.mark.guest
def test_the_command_line_adds_the_object_and_two_lines(tmp_path):
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "thinbox", "run", "--surface", "--json", str(path), "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sum("surface left" in line or "startable under live" in line for line in done.stderr.splitlines()) == 2
    found = json.loads(path.read_text())
    assert found["schema"] == "thinbox.run/1"
    surface = found["surface"]
    assert surface["schema"] == "thinbox.surface/1"
    assert surface["unisolated"]["gadgets"]["total"] > 100_000
    assert {call["name"] for call in surface["calls"]} == {call["name"] for call in found["calls"]}
    for call in surface["calls"]:
        assert 0 < call["gadget_share"]["median"] <= call["gadget_share"]["most"] < 0.5
        assert set(call) == {"name", "times", "isolated", "gadget_share", *MEASURES}
    plain = subprocess.run(
        [sys.executable, "-m", "thinbox", "run", "-q", "--json", "-", "--", "true"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "surface" not in json.loads(plain.stdout)


def test_residuals_are_plain_values(sci):
    _record, surface = sci
    values = surface.whole.to_json()
    assert set(values) == {field.name for field in dataclasses.fields(surface.whole)}
    assert values["gadgets"]["total"] == surface.gadgets.count
    json.dumps(values)
