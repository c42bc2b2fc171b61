"""A million calls take flat memory, their record is written as a stream, and its totals are exact."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.support.written_records import coverage, killed_record, refused_record, run_record
from thinbox.cli.output import render_json, write_json
from thinbox.cli.results import tenants_json, tenants_object
from thinbox.records.fault_log import FaultRecord
from thinbox.records.json_rows import JsonRows
from thinbox.records.row_store import CHUNK_ROWS
from thinbox.records.run import CallRecord, RunRecord
from thinbox.session.session import RunResult

pytestmark = pytest.mark.slow
MILLION = 1_000_000
MEBIBYTES = 60
"""A million call objects are 560, their faults 200, their dictionaries 1,500: whoever holds one a call is found out."""

SEQ, KILLED = b'\n   "seq": ', b'\n   "verdict": "killed",\n'
COUNTED = (SEQ, KILLED)

MEASURE = f"""
import json, resource, sys
from thinbox.cli.output import write_json
from thinbox.isolation.verdict import Violation
from thinbox.records.run import CallRecord, FaultRecord, RunRecord
from thinbox.report.summary import render_summary

def use(count):
    record = RunRecord("k", "s", "sci", ("loop",))
    wait4 = CallRecord(0, "tenant", 1, 61, "wait4", (0,) * 6)
    record.calls.append(wait4)
    for seq in range(1, count):
        args = (seq, 0, 0, 0, 0, 0)
        call = CallRecord(len(record.calls), "tenant", 79, 39, "getpid", args, seq, True, "granted", 7, 8)
        record.calls.append(call)
        record.events.rows.extend([[0, seq % 2, 0, 0, 0, 0, 0]])
        record.fault_us.append(1.5)
        record.faults.append(FaultRecord(seq, seq << 12, seq, "fetch", f"x+{{seq % 4096:#x}}"))
        if seq % 100 == 0:
            call.verdict = "killed"
            record.kills.append(Violation("getpid", "r", "6b", 1, None, 0, "sci", "fetch"))
    wait4.virtual_ns = 12345
    record.events.totals = {{"exceptions": record.events.rows.total(1)}}
    write_json("-" if count == {MILLION} else "/dev/null", record.json_object())
    return record

use(20_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
record = use({MILLION})
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {{"grown_mib": (after - before) >> 10, "totals": record.totals, "summary": render_summary(record)}}
print(json.dumps(found), file=sys.stderr)
"""
BLOCK = 1 << 20


@pytest.fixture(scope="module")
def a_million():
    """What the process found of itself, how often its JSON (500 MB) has some texts, and its beginning and end."""
    with subprocess.Popen([sys.executable, "-c", MEASURE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        counts, head, tail = Counter(), process.stdout.read(100), b""
        while block := process.stdout.read(BLOCK):
            for text in COUNTED:
                # What stands across two blocks is counted with the second.
                counts[text] += (tail[-len(text) + 1 :] + block).count(text)
            tail = (tail + block)[-4000:]
        said = process.stderr.read()
    assert process.returncode == 0, said.decode()
    return json.loads(said), counts, head, tail


def test_a_million_calls_take_flat_memory(a_million):
    found = a_million[0]
    assert found["grown_mib"] < MEBIBYTES


def test_their_totals_are_exact(a_million):
    found = a_million[0]
    totals = found["totals"]
    assert (totals["calls"], totals["isolated"], totals["killed"]) == (MILLION, MILLION - 1, MILLION // 100 - 1)
    assert (totals["code_faults"], totals["data_faults"]) == (7 * (MILLION - 1), 8 * (MILLION - 1))
    assert (totals["reaching_kernel"], totals["reaching_unisolated"]) == (MILLION, 1)
    assert totals["fault_us_median"] == pytest.approx(1.5, rel=0.01)
    rows = {line.split()[0]: line.split()[1:] for line in found["summary"].splitlines() if line}
    assert rows["getpid"] == ["999,999", "999,999", "6,999,993", "7,999,992", "15", "0.000", "ms"]
    assert rows["wait4"] == ["1", "0", "0", "0", "0", "0.012", "ms"]


def test_their_record_is_whole(a_million):
    _found, counts, head, tail = a_million
    assert head.startswith(b'{\n "schema": "thinbox.run/1",\n "kernel": {\n')
    assert counts[SEQ] == MILLION and counts[KILLED] == MILLION // 100 - 1
    assert tail.endswith(b'\n "coverage": null,\n "kills_left_out": %d\n}\n' % (MILLION // 100 - 1 - 4096))


def test_a_long_record_can_be_read(tmp_path):
    record = run_record(calls=[])
    for n in range(10 * CHUNK_ROWS):
        record.calls.append(CallRecord(n, "tenant", 1, 39, "getpid", (n, 0, 0, 0, 0, 0), n))
        record.events.rows.extend([[0, 1, 0, 0, 0, 0, 0]])
    write_json(str(tmp_path / "run.json"), record.json_object())
    data = json.loads((tmp_path / "run.json").read_text())
    assert [call["seq"] for call in data["calls"]] == [call["ret"] for call in data["calls"]] == list(range(40960))
    assert data == json.loads(json.dumps(record.to_json()))


def whole(record):
    return json.dumps(record.to_json(), indent=1) + "\n"


def long_record() -> RunRecord:
    record = run_record(coverage=coverage())
    record.calls = [
        CallRecord(n, "tenant", 1, 39, "getpid", (n, 2**64 - 1, 0, 0, 0, 0), -n or None) for n in range(3000)
    ]
    return record


@pytest.mark.parametrize(
    "record",
    [run_record(), run_record(calls=[]), killed_record(), refused_record(), long_record(),
     run_record(command=("sh", "no\udc80utf8", "zwölf \x00\u2028")), RunRecord("k", "s", "none", ())],
)  # fmt: skip
def test_what_is_streamed_is_what_json_dumps_writes_to_the_byte(record, tmp_path, capsys):
    write_json(str(tmp_path / "run.json"), record.json_object())
    write_json("-", record.json_object())
    assert (tmp_path / "run.json").read_text() == capsys.readouterr().out == whole(record)


def test_several_tenants_are_streamed_the_same():
    results = {name: RunResult(0, b"", b"", long_record(), "") for name in ("a", "b")}
    assert "".join(render_json(tenants_object(results))) == json.dumps(tenants_json(results), indent=1)


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1025])
def test_rows_of_any_number_are_a_list(count):
    rows = [[n, {"a": [], "b": {}, "c": (n,)}] for n in range(count)]
    data = {"rows": JsonRows(lambda: iter(rows)), "in": {"rows": JsonRows(lambda: rows)}, "z": []}
    want = {"rows": rows, "in": {"rows": rows}, "z": []}
    assert "".join(render_json(data)) == json.dumps(want, indent=1)


def test_a_call_is_written_as_it_is_declared():
    call = long_record().calls[5]
    assert list(call.to_json()) == list(CallRecord.__dataclass_fields__)


def test_nothing_is_said_of_what_was_not_left_out():
    record = run_record()
    assert not record.left_out and record.left_out_sentence() == ""
    assert not [name for name in record.to_json() if name.endswith("_left_out")]


def test_parquet_has_row_groups_and_every_row(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from thinbox.report import parquet as ours

    record = run_record(faults=[FaultRecord(n, n, 2**64 - 1, "fetch", f"s{n}") for n in range(3 * CHUNK_ROWS)])
    ours.write_record(record, tmp_path)
    faults = parquet.read_table(tmp_path / "faults.parquet")
    assert faults.to_pylist()[-1] == {
        "seq": 12287, "vaddr": 12287, "rip": 2**64 - 1, "kind": "fetch", "symbol": "s12287", "writable": False,
    }  # fmt: skip
    assert faults.num_rows == 3 * CHUNK_ROWS and faults.schema.metadata[b"schema"] == b"thinbox.faults/1"
    assert b"left_out" not in faults.schema.metadata
    record.calls = []
    ours.write_record(record, tmp_path)
    assert parquet.read_table(tmp_path / "calls.parquet").num_rows == 0
